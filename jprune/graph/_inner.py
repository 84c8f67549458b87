"""Groups inside of residual branches: those that no sum of two paths ties together."""

from collections.abc import Callable, Iterator

from jprune.graph._depth import ancestors
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.program import Node, Program, Value
from jprune.graph._groups import Group
from jprune.graph._trace import Graph

PRODUCTS = ("dot_general", "conv_general_dilated")
MOVES = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "name",
    "pad",
    "reduce_window_sum",
    "reshape",
    "slice",
    "squeeze",
    "transpose",
)
"""What a shortcut may do to a stream: every other pixel of it, zeros around it."""


def is_inner(graph: Graph) -> Callable[[Group], bool]:
    """Returns the predicate of groups whose axes meet no residual sum.

    A residual sum adds two paths from one value, of which one has a matrix product or
    a convolution and the other has one too, or only moves the value: `x + f(x)`, or
    a projected shortcut. What it adds are streams, whose widths many layers share; the
    hidden units, heads and channels inside of a branch are one layer's own. Stacked
    layers are no width, and never inner.

    Args:
      graph: the recorded function.

    Returns:
      `group -> bool`, as `where` of `select` and `keep_groups` takes it.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> def net(p, x):
      ...   x = x @ p["stem"]
      ...   return (x + jnp.tanh(x @ p["up"]) @ p["down"]) @ p["head"]
      >>> params = {"stem": jnp.ones((2, 3)), "up": jnp.ones((3, 4))}
      >>> params |= {"down": jnp.ones((4, 3)), "head": jnp.ones((3, 1))}
      >>> graph = jg.trace(net, params, jnp.ones((5, 2)))
      >>> inner = is_inner(graph)
      >>> {name: inner(group) for name, group in graph.groups.items()}
      {'up[1]': True, 'down[1]': False}
    """
    streams = {
        id(leaf)
        for value in residual_sums(graph.program)
        for axis in value.axes
        for leaf in dims_lib.leaves_of(axis)
    }

    def inner(group: Group) -> bool:
        mine = dims_lib.resolve(group.dim)
        return group.kind != "layer" and id(mine) not in streams

    return inner


def residual_sums(program: Program) -> Iterator[Value]:
    """Yields the results of residual sums, those inside of loops too.

    Args:
      program: the equations.
    """
    above = ancestors(program)
    maker = {id(v): n for n in program.nodes for v in n.outputs}
    order = {key: i for i, key in enumerate(maker)}  # inputs come before
    made = [v for n in program.nodes if _multiplies(n) for v in n.outputs]
    for node in program.nodes:
        for body in node.inner:
            yield from residual_sums(body)
        if node.name not in ("add", "add_any") or len(node.inputs) != 2:
            continue
        if not all(v.active for v in node.inputs):
            continue
        paths = [above.get(id(v), set()) | {id(v)} for v in node.inputs]
        common = paths[0] & paths[1]
        if not common:
            continue
        begin = max(common, key=lambda key: order.get(key, -1))
        products = [
            any(id(v) in path and begin in above[id(v)] for v in made) for path in paths
        ]
        moved = [_moves(v, begin, maker) for v in node.inputs]
        if any(products) and all(p or m for p, m in zip(products, moved, strict=True)):
            yield node.outputs[0]


def _multiplies(node: Node) -> bool:
    inside = (n for body in node.inner for n in body.nodes)
    return node.name in PRODUCTS or any(map(_multiplies, inside))


def _moves(value: Value, begin: int, maker: dict[int, Node]) -> bool:
    """Whether a value is one of before, at most moved."""
    while id(value) != begin:
        node = maker.get(id(value))
        if node is None or node.name not in MOVES:
            return False
        value = node.inputs[0]
    return True
