"""Depth: residual branches that can be removed as a whole.

A *branch* is a term that an addition adds to a value that the term was computed from,
the *stream*. Without the branch, the addition returns the stream; leaves that only
the branch used become empty. The stacked layers of a scan are not branches but a
group, of kind "layer".
"""

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._engine.program import Node, Outcome, Program, Value
from jprune.graph._groups import unused_name
from jprune.graph._shrink import call, signature, small_view
from jprune.graph._trace import Graph, param_values, retrace


class Branch(NamedTuple):
    """A residual branch.

    Attributes:
      name: common path of its kernels, or the path of the first.
      leaves: paths of the params that nothing else uses.
      node: index of the addition among the program's equations.
      stream: which operand of the addition is the stream, 0 or 1.
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
      Name -> branch, in the order of the program, without those that have no params
      of their own. Branches may contain each other.

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
    maker = {v: i for i, n in enumerate(program.nodes) for v in n.outputs}
    needed = set(map(id, _needed(program.nodes, _results(graph))))
    users = _users({i: n for i, n in enumerate(program.nodes) if id(n) in needed})
    found: dict[str, Branch] = {}
    for i, node in enumerate(program.nodes):
        if node.name not in ("add", "add_any") or len(node.inputs) != 2:
            continue
        for stream in (0, 1):
            passing, added = node.inputs[stream], node.inputs[1 - stream]
            if passing.shape != added.shape or passing is added:
                continue
            source = _source(passing, program.nodes, maker)
            if source not in before.get(added, ()):
                continue
            leaves = _own_leaves(graph, added, passing, maker, users, i)
            if leaves:
                name = unused_name(_name(graph, leaves), found)
                found[name] = Branch(name, leaves, i, stream)
            break
    return found


def without_branches(
    graph: Graph, params: base.Params, names: Iterable[str]
) -> tuple[Callable[..., Any], base.Params]:
    """Returns the function without some of its residual branches, and its params.

    Args:
      graph: the recorded function.
      params: full arrays.
      names: names of `branches(graph)`.

    Returns:
      `(fn, params)`: the params keep their tree; leaves that are no longer used have
      shape (0,). The function can be traced and pruned again.

    Raises:
      PruningError: if there is no such branch.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> block = lambda p, x: x + jnp.tanh(x @ p["a"])
      >>> params, x = {"a": jnp.ones((3, 3))}, jnp.ones((2, 3))
      >>> fn, rest = jg.without_branches(jg.trace(block, params, x), params, ["a"])
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
    """Returns the mean score of the weights that belong to each branch alone.

    Args:
      graph: the recorded function.
      scores: the params' tree, a score for each weight.

    Returns:
      Branch name -> float scalar.

    Raises:
      ValueError: if the tree of scores has another number of leaves than the params.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> block = lambda p, x: x + jnp.tanh(x @ p["a"]) @ p["b"]
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 3))}
      >>> graph = jg.trace(block, params, jnp.ones((2, 3)))
      >>> scores = {"a": jnp.full((3, 4), 1.0), "b": jnp.full((4, 3), 3.0)}
      >>> jg.branch_scores(graph, scores)
      {'a': Array(2., dtype=float32)}
    """
    leaves = dict(zip(graph.axes, jax.tree.leaves(scores), strict=True))
    found: dict[str, jax.Array] = {}
    for name, branch in branches(graph).items():
        each = [leaves[path] for path in branch.leaves]
        count = sum(np.size(x) for x in each)
        found[name] = jnp.stack([jnp.sum(x) for x in each]).sum() / count
    return found


def _rewired(graph: Graph, names: Iterable[str]) -> Graph:
    """Returns the graph with the additions of branches returning their streams."""
    known = branches(graph)
    nodes = list(graph.program.nodes)
    for name in names:
        if name not in known:
            raise base.PruningError(
                f"There is no branch {name!r}; there are: {', '.join(known)}"
            )
        branch = known[name]
        nodes[branch.node] = _passing(nodes[branch.node], branch.stream)
    return _without_lost_state(graph, nodes)


def _results(graph: Graph) -> Sequence[Value]:
    """Returns the outputs of the program that are no new state."""
    return graph.program.outputs[: len(graph.program.outputs) - len(graph.state)]


def _without_lost_state(graph: Graph, nodes: list[Node]) -> Graph:
    """Returns the graph with other equations, which compute no state of what is gone.

    A removed branch still shows in the running statistics inside of it: state that is
    computed from equations that the results no longer need is given up.
    """
    results = _results(graph)
    left = set(map(id, _needed(nodes, results)))
    before = _needed(graph.program.nodes, results)
    lost = {v for n in before if id(n) not in left for v in n.outputs}
    kept = {v for n in nodes if id(n) in left for v in n.outputs}
    lost -= kept  # a rewired addition is another node with the same results
    for node in nodes:
        if any(v in lost for v in node.inputs):
            lost.update(v for v in node.outputs if v not in kept)
    each = zip(graph.state, graph.program.outputs[len(results) :], strict=True)
    state = [(i, v) for i, v in each if v not in lost]
    outputs = [*results, *(v for _, v in state)]
    program = graph.program._replace(nodes=_needed(nodes, outputs), outputs=outputs)
    return graph._replace(program=program, state=tuple(i for i, _ in state))


def _passing(node: Node, stream: int) -> Node:
    new = Node(node.equation, [node.inputs[stream]])
    new.outputs = node.outputs
    new.outcome = Outcome((), run=lambda view, x: [x])
    return new


def _needed(nodes: list[Node], outputs: Sequence[Value]) -> list[Node]:
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if node.equation.effects or any(v in wanted for v in node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


def _used_leaves(graph: Graph) -> set[str]:
    used = {v for n in graph.program.nodes for v in n.inputs}
    used.update(graph.program.outputs)
    return {path for v, path in param_values(graph).items() if v in used}


def _source(value: Value, nodes: list[Node], maker: dict[Value, int]) -> Value:
    """Returns the value before operations without effect, such as padding by 0."""
    while value in maker:
        node = nodes[maker[value]]
        moves = ("pad", "slice", "reshape", "convert_element_type", "copy", "name")
        operand = node.inputs[0]
        if node.name not in moves or operand.shape != value.shape:
            break
        if operand.dtype != value.dtype:
            break
        if node.name == "pad" and any(map(any, node.params["padding_config"])):
            break  # cut on one side and padded on the other
        value = operand
    return value


def ancestors(program: Program) -> dict[Value, set[Value]]:
    """Returns for each value the active values that it was computed from.

    Args:
      program: the program; a loop counts as one equation.
    """
    found: dict[Value, set[Value]] = {}
    for node in program.nodes:
        above: set[Value] = set()
        for value in node.inputs:
            if value.active:
                above |= {value} | found.get(value, set())
        for value in node.outputs:
            found[value] = above
    return found


def _users(nodes: Mapping[int, Node]) -> dict[Value, list[int]]:
    found: dict[Value, list[int]] = {}
    for i, node in nodes.items():
        for value in node.inputs:
            found.setdefault(value, []).append(i)
    return found


def _own_leaves(
    graph: Graph,
    added: Value,
    passing: Value,
    maker: dict[Value, int],
    users: dict[Value, list[int]],
    addition: int,
) -> tuple[str, ...]:
    """Returns the paths of the leaves that only the added value is computed from."""
    nodes = graph.program.nodes
    inside: set[int] = set()  # equations whose results only the addition uses
    outputs = set(_results(graph))
    waiting = [added]
    while waiting:
        value = waiting.pop()
        i = maker.get(value)
        if i is None or i in inside or value is passing:
            continue
        results = nodes[i].outputs
        goes = {u for v in results for u in users.get(v, ())}
        if goes <= inside | {addition} and not any(v in outputs for v in results):
            inside.add(i)
            waiting += nodes[i].inputs
    return tuple(
        path
        for v, path in param_values(graph).items()
        if v in users and inside.issuperset(users[v])
    )


def _name(graph: Graph, paths: tuple[str, ...]) -> str:
    """Returns the common path of a branch's kernels, or the path of the first."""
    kernels = [p for p in paths if len(graph.axes[p]) > 1] or list(paths)
    shared = posixpath.commonpath(kernels)
    return shared if "/" in shared else kernels[0]
