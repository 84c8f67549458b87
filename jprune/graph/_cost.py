"""What a function costs, as polynomials in the sizes of its groups.

Every axis is a product or a sum of group sizes, so the parameters and the products of
a program are polynomials of degree one in each size. They are exact for every plan
without making it, and differentiable, so a budget can be solved for and learned masks
can be charged for what they keep.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import source_info_util

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Axes, Node, Program
from jprune.graph._engine.rules.control import scan_counts
from jprune.graph._groups import check_known
from jprune.graph._trace import Graph

Sizes = Mapping[str, Any]
"""Group name -> how many entries: a number, perhaps a fraction of one, or traced."""

Cost = Callable[[Graph, Sizes], Any]
"""What a function costs at some sizes."""


class Operation(NamedTuple):
    """A matrix product or a convolution.

    Attributes:
      name: of the primitive.
      where: file, line and function of the user's code.
      leaves: paths of the params that it multiplies by.
      factors: dims of whose sizes the multiply-adds are the product.
      operands: the dims of its two operands.
      result: the dims of its result.
      item_bytes: of an entry of each operand, and of the result.
    """

    name: str
    where: str
    leaves: tuple[str, ...]
    factors: Axes
    operands: tuple[Axes, ...]
    result: Axes
    item_bytes: tuple[int, ...]


def operations(graph: Graph) -> list[Operation]:
    """Returns the products of a program in order, those of a loop once for each turn.

    A `while` loop counts as one turn; of a `cond` the dearest branch counts.

    Args:
      graph: the recorded function.

    Returns:
      One `Operation` for each matrix product or convolution of the program.
    """
    origins = {
        id(v): path for path, v in zip(graph.axes, graph.program.inputs, strict=False)
    }
    return _operations(graph.program, origins, ())


def _operations(program: Program, origins: dict[int, str], turns: Axes) -> Any:
    found: list[Operation] = []
    for node in program.nodes:
        given = [origins.get(id(v)) for v in node.inputs]
        named = [path for path in given if path is not None]
        if node.name in ("dot_general", "conv_general_dilated"):
            found.append(_operation(node, tuple(dict.fromkeys(named)), turns))
        elif node.inner:
            found += _inside(node, origins, turns)
        else:
            note_view(node, origins)
    return found


def note_view(node: Node, origins: dict[int, str]) -> None:
    """Notes where the result of an equation comes from, if it is a view of a leaf.

    Args:
      node: the equation; a cast, a transposition.
      origins: id of a value -> path of the leaf; the result is added.
    """
    named = [origins[id(v)] for v in node.inputs if id(v) in origins]
    if node.inner or len(named) != 1 or len(node.outputs) != 1:
        return
    if not any(v.active for v in node.inputs if id(v) not in origins):
        origins[id(node.outputs[0])] = named[0]


def _inside(node: Node, origins: dict[int, str], turns: Axes) -> list[Operation]:
    if node.name == "scan":
        constants, carried = scan_counts(node.params)
        stacked = [*node.inputs[constants + carried :], *node.outputs[carried:]]
        length = dims_lib.leaf(node.params["length"])
        turns = (*turns, stacked[0].axes[0] if stacked else length)
    lists = []
    for body in node.inner:
        inner = dict(origins)
        outside = node.inputs[len(node.inputs) - len(body.inputs) :]
        for a, b in zip(outside, body.inputs, strict=False):
            if id(a) in origins:
                inner[id(b)] = origins[id(a)]
        lists.append(_operations(body, inner, turns))
    if node.name != "cond":
        return [o for each in lists for o in each]
    return max(lists, key=lambda each: sum(dims_lib.count_of(o.factors) for o in each))


def _operation(node: Node, leaves: tuple[str, ...], turns: Axes) -> Operation:
    left, right = node.inputs
    result = node.outputs[0].axes
    if node.name == "dot_general":
        (summed, _), _ = node.params["dimension_numbers"]
        over = tuple(left.axes[i] for i in summed)
    else:
        spec = node.params["dimension_numbers"].rhs_spec
        over = tuple(right.axes[i] for i in spec[1:])
    return Operation(
        name=node.name,
        where=source_info_util.summarize(node.equation.source_info),
        leaves=leaves,
        factors=(*turns, *result, *over),
        operands=((*turns, *left.axes), (*turns, *right.axes)),
        result=(*turns, *result),
        item_bytes=tuple(v.dtype.itemsize for v in (left, right, node.outputs[0])),
    )


def multiply_adds(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the multiply-adds of all matrix products and convolutions.

    Args:
      graph: the recorded function, for inputs of the recorded shapes.
      sizes: of groups; those that are missing are whole.

    Returns:
      A number; an exact integer if all sizes are integers. Twice that many FLOPs.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> multiply_adds(graph), multiply_adds(graph, {"in[1]": 4})
      (200, 100)
    """
    size = measure(graph, sizes)
    return sum(_product(size, o.factors) for o in operations(graph))


def parameters(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns how many entries all params have.

    Args:
      graph: the recorded function.
      sizes: of groups; those that are missing are whole.

    Returns:
      A number; an exact integer if all sizes are integers.
    """
    size = measure(graph, sizes)
    return sum(_product(size, axes) for axes in graph.axes.values())


def parameter_bytes(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the bytes of all params.

    Args:
      graph: the recorded function.
      sizes: of groups; those that are missing are whole.

    Returns:
      A number; an exact integer if all sizes are integers.
    """
    size = measure(graph, sizes)
    values = zip(graph.axes.values(), graph.program.inputs, strict=False)
    return sum(_product(size, a) * v.dtype.itemsize for a, v in values)


def activation_bytes(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the bytes of the results of all products, which training has to keep.

    Args:
      graph: the recorded function, for inputs of the recorded shapes.
      sizes: of groups; those that are missing are whole.

    Returns:
      A number; an exact integer if all sizes are integers.
    """
    size = measure(graph, sizes)
    return sum(_product(size, o.result) * o.item_bytes[-1] for o in operations(graph))


def bytes_moved(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the bytes that all products read and write, each operand once.

    Args:
      graph: the recorded function, for inputs of the recorded shapes.
      sizes: of groups; those that are missing are whole.

    Returns:
      A number; an exact integer if all sizes are integers.
    """
    size = measure(graph, sizes)
    return sum(
        _product(size, axes) * each
        for o in operations(graph)
        for axes, each in zip((*o.operands, o.result), o.item_bytes, strict=True)
    )


def measure(graph: Graph, sizes: Sizes | None = None) -> Callable[[Dim], Any]:
    """Returns the function from a dim to its size, given those of groups.

    Args:
      graph: the recorded function.
      sizes: of groups; those that are missing are whole.

    Returns:
      `dim -> size`.

    Raises:
      PruningError: if there is no such group.
    """
    check_known(graph.groups, sizes or {})
    given = {id(graph.groups[n].dim): s for n, s in (sizes or {}).items()}
    known: dict[int, Any] = {}

    def size(d: Dim) -> Any:
        d = dims_lib.resolve(d)
        if id(d) not in known:
            known[id(d)] = layout.evaluate(
                d,
                lambda x: given.get(id(x), x.size),
                lambda a, b: a * b,
                lambda a, b: a + b,
            )
        return known[id(d)]

    return size


def _product(size: Callable[[Dim], Any], axes: Axes) -> Any:
    return functools.reduce(lambda a, d: a * size(d), axes, 1)


def penalty(cost: Cost, target: float) -> Callable[[Graph, Sizes], Any]:
    """Returns a differentiable penalty for costing more than a share of the whole.

    Args:
      cost: such as `multiply_adds`.
      target: the share that is allowed, in (0, 1].

    Returns:
      `(graph, sizes) -> |log(cost / (target * full cost))|` above the target, else 0:
      of one scale for every model and unit.

    References:
      The form is that of the resource loss of APTP (Ganjdanesh et al., 2024,
      arXiv:2406.12042).
    """

    def charge(graph: Graph, sizes: Sizes) -> Any:
        share = cost(graph, sizes) / (target * float(cost(graph, {})))
        return jnp.maximum(jnp.log(share), 0.0)

    return charge
