"""Groups inside of residual branches, which no residual sum couples to other layers."""

from collections.abc import Callable, Iterator

from jprune.graph._budget import is_width
from jprune.graph._cost import COUNTED
from jprune.graph._depth import ancestors
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.program import Node, Program, Value
from jprune.graph._groups import Group
from jprune.graph._trace import Graph

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
"""Primitives of shortcuts without weights: strided slices, zero padding, pooling."""


def is_inner(graph: Graph) -> Callable[[Group], bool]:
    """Returns the predicate of the groups that take part in no residual sum.

    A residual sum adds two paths from the same value: at least one has a matrix
    product or a convolution, and the other has one too, or only moves elements, as in
    `x + f(x)` or with a projected shortcut. It couples the width of the stream across
    many layers, whereas hidden units, heads and channels inside of a branch belong to
    one layer. Stacked layers and tables are never inner.

    Args:
      graph: the recorded function.

    Returns:
      `group -> bool`, for `where=` of `choose` and `keep_groups`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> def net(p, x):
      ...   x = x @ p["stem"]
      ...   return (x + jnp.tanh(x @ p["up"]) @ p["down"]) @ p["head"]
      >>> params = {"stem": jnp.ones((2, 3)), "up": jnp.ones((3, 4))}
      >>> params |= {"down": jnp.ones((4, 3)), "head": jnp.ones((3, 1))}
      >>> graph = jg.trace(net, params, jnp.ones((5, 2)))
      >>> inner = jg.is_inner(graph)
      >>> {name: inner(group) for name, group in graph.groups.items()}
      {'up[1]': True, 'down[1]': False}
    """
    streams = {
        leaf
        for value in residual_sums(graph.program)
        for axis in value.axes
        for leaf in dims_lib.leaves_of(axis)
    }

    def inner(group: Group) -> bool:
        return is_width(group) and dims_lib.resolve(group.dim) not in streams

    return inner


def residual_sums(program: Program) -> Iterator[Value]:
    """Yields the results of residual sums, including those inside of loops.

    Args:
      program: the program.
    """
    above = ancestors(program)
    maker = {v: n for n in program.nodes for v in n.outputs}
    order = {v: i for i, v in enumerate(maker)}  # inputs of the program come before
    made = [v for n in program.nodes if _multiplies(n) for v in n.outputs]
    for node in program.nodes:
        for body in node.inner:
            yield from residual_sums(body)
        if node.name not in ("add", "add_any") or len(node.inputs) != 2:
            continue
        if not all(v.active for v in node.inputs):
            continue
        paths = [above.get(v, set()) | {v} for v in node.inputs]
        common = paths[0] & paths[1]
        if not common:
            continue
        begin = max(common, key=lambda v: order.get(v, -1))
        products = [
            any(v in path and begin in above[v] for v in made) for path in paths
        ]
        moved = [_moves(v, begin, maker) for v in node.inputs]
        if any(products) and all(p or m for p, m in zip(products, moved, strict=True)):
            yield node.outputs[0]


def _multiplies(node: Node) -> bool:
    inside = (n for body in node.inner for n in body.nodes)
    return node.name in COUNTED or any(map(_multiplies, inside))


def _moves(value: Value, begin: Value, maker: dict[Value, Node]) -> bool:
    """Returns whether a value is an earlier one with its elements moved, at most."""
    while value is not begin:
        node = maker.get(value)
        if node is None or node.name not in MOVES:
            return False
        value = node.inputs[0]
    return True
