"""Residual branches that can be removed whole: what is left is the stream past them.

A branch is what an addition adds to a value that it was computed from. Removing it
makes the addition pass the stream through; leaves that only the branch used become
empty. Stacked layers of a scan are a group of their own kind, "layer".
"""

import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._engine.program import Node, Outcome, Program, Value
from jprune.graph._shrink import call, signature, small_view
from jprune.graph._trace import Graph, retrace


class Branch(NamedTuple):
    """A residual branch.

    Attributes:
      name: the path that its kernels share, or that of the first.
      leaves: paths of the params that nothing else uses.
      node: the number of the addition among the program's equations.
      stream: which operand of the addition passes when the branch is removed.
    """

    name: str
    leaves: tuple[str, ...]
    node: int
    stream: int

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.leaves)}"


def branches(graph: Graph) -> dict[str, Branch]:
    """Returns the residual branches of a recorded function by name.

    Args:
      graph: the recorded function.

    Returns:
      In the order of the program; those without params of their own are left out.
      Branches may contain each other.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> def block(params, x):
      ...   return x + jnp.tanh(x @ params["a"]) @ params["b"]
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 3))}
      >>> print(*jg.branches(jg.trace(block, params, jnp.ones((2, 3)))).values())
      a: a, b
    """
    program = graph.program
    before = ancestors(program)
    maker = {id(v): i for i, n in enumerate(program.nodes) for v in n.outputs}
    users = _users(program)
    found: dict[str, Branch] = {}
    for i, node in enumerate(program.nodes):
        if node.name not in ("add", "add_any") or len(node.inputs) != 2:
            continue
        for stream in (0, 1):
            passing, added = node.inputs[stream], node.inputs[1 - stream]
            if passing.shape != added.shape or passing is added:
                continue
            source = _source(passing, program.nodes, maker)
            if id(source) not in before.get(id(added), ()):
                continue
            leaves = _own_leaves(graph, added, passing, maker, users, i)
            if leaves:
                name = _unused(_name(graph, leaves), found)
                found[name] = Branch(name, leaves, i, stream)
            break
    return found


def without(
    graph: Graph, params: base.Params, names: Iterable[str]
) -> tuple[Callable[..., Any], base.Params]:
    """Returns the function without some residual branches, and its params.

    Args:
      graph: the recorded function.
      params: full arrays.
      names: of `branches(graph)`.

    Returns:
      `(fn, params)`: the params' tree, with arrays of shape (0,) for leaves that
      nothing uses any more. The function can be traced and pruned again.

    Raises:
      PruningError: if there is no such branch.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> block = lambda p, x: x + jnp.tanh(x @ p["a"])
      >>> params, x = {"a": jnp.ones((3, 3))}, jnp.ones((2, 3))
      >>> fn, rest = jg.without(jg.trace(block, params, x), params, ["a"])
      >>> bool((fn(rest, x) == x).all()), rest["a"].shape
      (True, (0,))
    """
    names = list(names)
    gone = _used_leaves(graph) - _used_leaves(_rewired(graph, names))
    programs = {signature(graph.inputs): _rewired(graph, names)}

    def fn(given: Any, *inputs: Any) -> Any:
        key = signature(inputs)
        if key not in programs:
            programs[key] = _rewired(retrace(graph, graph.params, inputs), names)
        return call(programs[key], small_view(graph, {}), given, inputs)

    rest = tree.map_with_path(
        lambda path, w: jnp.zeros((0,), w.dtype) if path in gone else w, params
    )
    return fn, rest


def branch_scores(graph: Graph, scores: base.Scores) -> dict[str, jax.Array]:
    """Returns the mean score of each branch's own weights.

    Args:
      graph: the recorded function.
      scores: the params' tree, a score for each weight.

    Returns:
      Branch name -> scalar.
    """
    leaves = dict(zip(graph.axes, jax.tree.leaves(scores), strict=True))
    found: dict[str, jax.Array] = {}
    for name, branch in branches(graph).items():
        each = [leaves[path] for path in branch.leaves]
        count = sum(np.size(x) for x in each)
        found[name] = jnp.stack([jnp.sum(x) for x in each]).sum() / count
    return found


def _rewired(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph with the additions of some branches passing their stream."""
    known = branches(graph)
    nodes = list(graph.program.nodes)
    for name in names:
        if name not in known:
            raise base.PruningError(
                f"There is no branch {name!r}; there are: {', '.join(known)}"
            )
        branch = known[name]
        nodes[branch.node] = _passing(nodes[branch.node], branch.stream)
    program = graph.program._replace(nodes=_needed(nodes, graph.program.outputs))
    return graph._replace(program=program)


def _passing(node: Node, stream: int) -> Node:
    new = Node(node.equation, [node.inputs[stream]])
    new.outputs = node.outputs
    new.outcome = Outcome((), run=lambda view, x: [x])
    return new


def _needed(nodes: list[Node], outputs: Sequence[Value]) -> list[Node]:
    wanted = {id(v) for v in outputs}
    kept = []
    for node in reversed(nodes):
        if node.equation.effects or any(id(v) in wanted for v in node.outputs):
            kept.append(node)
            wanted |= {id(v) for v in node.inputs}
    return kept[::-1]


def _used_leaves(graph: Graph) -> set[str]:
    used = {id(v) for n in graph.program.nodes for v in n.inputs}
    used |= {id(v) for v in graph.program.outputs}
    inputs = zip(graph.axes, graph.program.inputs, strict=False)
    return {path for path, v in inputs if id(v) in used}


def _source(value: Value, nodes: list[Node], maker: dict[int, int]) -> Value:
    """The value before operations that change nothing, as a padding by 0 entries."""
    while id(value) in maker:
        node = nodes[maker[id(value)]]
        moves = ("pad", "slice", "reshape", "convert_element_type", "copy", "name")
        operand = node.inputs[0]
        if node.name not in moves or operand.shape != value.shape:
            break
        if operand.dtype != value.dtype:
            break
        if node.name == "pad" and any(map(any, node.params["padding_config"])):
            break  # cut off on one side, and padded on the other
        value = operand
    return value


def ancestors(program: Program) -> dict[int, set[int]]:
    """Returns for each value the ids of the active values that it was computed from.

    Args:
      program: the equations; those of loops are one step.
    """
    found: dict[int, set[int]] = {}
    for node in program.nodes:
        above: set[int] = set()
        for value in node.inputs:
            if value.active:
                above |= {id(value)} | found.get(id(value), set())
        for value in node.outputs:
            found[id(value)] = above
    return found


def _users(program: Program) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, node in enumerate(program.nodes):
        for value in node.inputs:
            found.setdefault(id(value), []).append(i)
    return found


def _own_leaves(
    graph: Graph,
    added: Value,
    passing: Value,
    maker: dict[int, int],
    users: dict[int, list[int]],
    addition: int,
) -> tuple[str, ...]:
    """Paths of the leaves that are used for what is added and for nothing else."""
    nodes = graph.program.nodes
    inside: set[int] = set()  # equations of which all results go to the addition
    outputs = {id(v) for v in graph.program.outputs}
    waiting = [added]
    while waiting:
        value = waiting.pop()
        i = maker.get(id(value))
        if i is None or i in inside or value is passing:
            continue
        results = nodes[i].outputs
        goes = {u for v in results for u in users.get(id(v), ())}
        if goes <= inside | {addition} and not any(id(v) in outputs for v in results):
            inside.add(i)
            waiting += nodes[i].inputs
    inputs = zip(graph.axes, graph.program.inputs, strict=False)
    return tuple(
        path for path, v in inputs if users.get(id(v)) and set(users[id(v)]) <= inside
    )


def _name(graph: Graph, paths: tuple[str, ...]) -> str:
    """The path that the kernels of a branch share, or that of the first of them."""
    kernels = [p for p in paths if len(graph.axes[p]) > 1] or list(paths)
    shared = posixpath.commonpath(kernels)
    return shared if "/" in shared else kernels[0]


def _unused(name: str, found: dict[str, Any]) -> str:
    if name not in found:
        return name
    i = 1
    while f"{name}.{i}" in found:
        i += 1
    return f"{name}.{i}"
