"""The cost of a function, as polynomials in the sizes of its groups.

Every axis is a product or a sum of group sizes, so the numbers of parameters and of
multiply-adds are polynomials of degree one in each size. They are exact for every
choice of entries, without shrinking anything, and differentiable: budgets are solved
for, and learned masks can be penalised for what they keep.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import source_info_util

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Axes, Node, Program, Value
from jprune.graph._engine.rules.control import scan_counts
from jprune.graph._engine.rules.sharding import devices_of
from jprune.graph._engine.sizes import added, known, multiplied
from jprune.graph._groups import check_known
from jprune.graph._trace import Graph, param_values

PRODUCTS = ("dot_general", "conv_general_dilated")
"""Primitives that count as operations."""

COUNTED = (*PRODUCTS, "ragged_dot_general")
"""Primitives whose multiply-adds are counted."""

Sizes = Mapping[str, Any]
"""Group name -> number of entries, perhaps fractional or traced."""

Cost = Callable[[Graph, Sizes], Any]
"""`(graph, sizes) -> cost` of the function with groups of these sizes."""


class Operation(NamedTuple):
    """A matrix product or a convolution.

    Attributes:
      name: name of the primitive.
      where: file, line and function of the user's code.
      leaves: paths of the params that it multiplies by.
      factors: dims whose sizes multiply to the number of multiply-adds.
      operands: dims of its two operands.
      result: dims of its result.
      item_bytes: bytes per element of each operand and of the result.
    """

    name: str
    where: str
    leaves: tuple[str, ...]
    factors: Axes
    operands: tuple[Axes, ...]
    result: Axes
    item_bytes: tuple[int, ...]


def operations(graph: Graph) -> list[Operation]:
    """Returns the matrix products and convolutions of a program, in order.

    Those inside of a `scan` count once for each iteration. A `while` loop counts as
    one iteration, and a `cond` as its most expensive branch.

    Args:
      graph: the recorded function.

    Returns:
      One `Operation` for each product in the program.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> [(o.name, o.leaves) for o in jg.operations(graph)]
      [('dot_general', ('in',)), ('dot_general', ('out',))]
    """
    return _operations(graph.program, param_values(graph), ())


def _operations(program: Program, origins: dict[Value, str], turns: Axes) -> Any:
    found: list[Operation] = []
    for node in program.nodes:
        if node.name in COUNTED:
            named = [origins[v] for v in node.inputs if v in origins]
            found.append(_operation(node, tuple(dict.fromkeys(named)), turns))
        elif node.inner:
            found += _inside(node, origins, turns)
        else:
            note_view(node, origins)
    return found


def note_view(node: Node, origins: dict[Value, str]) -> None:
    """Records the origin of a result that is a view of a leaf, such as a cast.

    Args:
      node: the equation.
      origins: value -> path of its leaf; the result is added to it.
    """
    named = [origins[v] for v in node.inputs if v in origins]
    if node.inner or len(named) != 1 or len(node.outputs) != 1:
        return
    if not any(v.active for v in node.inputs if v not in origins):
        origins[node.outputs[0]] = named[0]


def _inside(node: Node, origins: dict[Value, str], turns: Axes) -> list[Operation]:
    if node.name == "scan":
        constants, carried = scan_counts(node.params)
        stacked = [*node.inputs[constants + carried :], *node.outputs[carried:]]
        length = dims_lib.leaf(node.params["length"])
        turns = (*turns, stacked[0].axes[0] if stacked else length)
    if node.name == "shard_map":  # what all devices do together
        turns = (*turns, dims_lib.leaf(devices_of(node)))
    lists = []
    for body in node.inner:
        inner = dict(origins)
        outside = node.inputs[len(node.inputs) - len(body.inputs) :]
        for a, b in zip(outside, body.inputs, strict=False):
            if a in origins:
                inner[b] = origins[a]
        lists.append(_operations(body, inner, turns))
    if node.name != "cond":
        return [o for each in lists for o in each]
    return max(lists, key=lambda each: sum(dims_lib.count_of(o.factors) for o in each))


def _operation(node: Node, leaves: tuple[str, ...], turns: Axes) -> Operation:
    left, right = node.inputs[:2]
    result = node.outputs[0].axes
    made = result
    if node.name == "dot_general":
        (summed, _), _ = node.params["dimension_numbers"]
        over = tuple(left.axes[i] for i in summed)
    elif node.name == "ragged_dot_general":
        numbers = node.params["ragged_dot_dimension_numbers"]
        (summed, _), _ = numbers.dot_dimension_numbers
        over = tuple(left.axes[i] for i in summed)
        if not numbers.rhs_group_dimensions:  # each row is in the sum of one group
            made = result[1:]
    else:
        spec = node.params["dimension_numbers"].rhs_spec
        over = tuple(right.axes[i] for i in spec[1:])
    return Operation(
        name=node.name,
        where=source_info_util.summarize(node.equation.source_info),
        leaves=leaves,
        factors=(*turns, *made, *over),
        operands=((*turns, *left.axes), (*turns, *right.axes)),
        result=(*turns, *result),
        item_bytes=tuple(v.dtype.itemsize for v in (left, right, node.outputs[0])),
    )


def multiply_adds(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the multiply-adds of all matrix products and convolutions.

    Args:
      graph: the recorded function, for inputs of the recorded shapes.
      sizes: sizes of groups; missing ones are whole.

    Returns:
      Number of multiply-adds, half the FLOPs; an exact integer for integer sizes.

    Raises:
      PruningError: if there is no such group.

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
    return added(elements(size, o.factors) for o in operations(graph))


def parameters(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the number of parameters.

    Args:
      graph: the recorded function.
      sizes: sizes of groups; missing ones are whole.

    Returns:
      Number of elements of all params; an exact integer for integer sizes.

    Raises:
      PruningError: if there is no such group.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.parameters(graph), jg.parameters(graph, {"in[1]": 4})
      (40, 20)
    """
    size = measure(graph, sizes)
    return added(elements(size, axes) for axes in graph.axes.values())


def parameter_bytes(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the bytes of all params.

    Args:
      graph: the recorded function.
      sizes: sizes of groups; missing ones are whole.

    Returns:
      Bytes; an exact integer for integer sizes.

    Raises:
      PruningError: if there is no such group.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.parameter_bytes(graph), jg.parameter_bytes(graph, {"in[1]": 4})
      (160, 80)
    """
    size = measure(graph, sizes)
    values = zip(graph.axes.values(), graph.program.inputs, strict=False)
    return added(elements(size, a) * v.dtype.itemsize for a, v in values)


def activation_bytes(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the bytes of the results of all products, which training has to store.

    Args:
      graph: the recorded function, for inputs of the recorded shapes.
      sizes: sizes of groups; missing ones are whole.

    Returns:
      Bytes; an exact integer for integer sizes.

    Raises:
      PruningError: if there is no such group.

    Example:
      Results of shapes (5, 8) and (5, 2), in float32:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.activation_bytes(graph), jg.activation_bytes(graph, {"in[1]": 4})
      (200, 120)
    """
    size = measure(graph, sizes)
    return added(elements(size, o.result) * o.item_bytes[-1] for o in operations(graph))


def bytes_moved(graph: Graph, sizes: Sizes | None = None) -> Any:
    """Returns the bytes that all products read and write, each operand once.

    Args:
      graph: the recorded function, for inputs of the recorded shapes.
      sizes: sizes of groups; missing ones are whole.

    Returns:
      Bytes; an exact integer for integer sizes.

    Raises:
      PruningError: if there is no such group.

    Example:
      The first product reads 5 x 3 and 3 x 8 numbers and writes 5 x 8, the second reads
      5 x 8 and 8 x 2 and writes 5 x 2, each of four bytes:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.bytes_moved(graph), jg.bytes_moved(graph, {"in[1]": 4})
      (580, 340)
    """
    size = measure(graph, sizes)
    return added(
        elements(size, axes) * each
        for o in operations(graph)
        for axes, each in zip((*o.operands, o.result), o.item_bytes, strict=True)
    )


def measure(graph: Graph, sizes: Sizes | None = None) -> Callable[[Dim], Any]:
    """Returns the function that gives the size of a dim, for given sizes of groups.

    Args:
      graph: the recorded function.
      sizes: sizes of groups; missing ones are whole.

    Returns:
      `dim -> size`.

    Raises:
      PruningError: if there is no such group.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> size = jg.measure(graph, {"in[1]": 4})
      >>> [size(dim) for dim in graph.axes["out"]]
      [4, 2]
    """
    check_known(graph.groups, sizes or {})
    given = {graph.groups[n].dim: s for n, s in (sizes or {}).items()}
    found: dict[Dim, Any] = {}

    def size(d: Dim) -> Any:
        d = dims_lib.resolve(d)
        if d not in found:
            found[d] = layout.size_of(d, given)
        return found[d]

    return size


def elements(size: Callable[[Dim], Any], axes: Axes) -> Any:
    """Returns the number of elements of an array with these dims.

    Args:
      size: `dim -> size`.
      axes: the dims.

    Raises:
      PruningError: if a size is symbolic and another one is fractional or traced.
    """
    return multiplied([size(d) for d in axes])


def penalty(cost: Cost, target: float) -> Callable[[Graph, Sizes], Any]:
    """Returns a differentiable penalty on the cost above a share of the full cost.

        max(0, log(cost(sizes) / (target * full cost)))

    Args:
      cost: the cost, such as `multiply_adds`.
      target: allowed share of the full cost, in (0, 1].

    Returns:
      `(graph, sizes) -> penalty`, on the same scale for every model and unit of cost.

    Raises:
      PruningError: when it is called, if the cost depends on symbolic sizes.

    Example:
      The target is half of 200 multiply-adds, so the full function pays log 2:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> charge = jg.penalty(jg.multiply_adds, target=0.5)
      >>> [round(float(charge(graph, {"in[1]": n})), 3) for n in (8, 4)]
      [0.693, 0.0]

    References:
      The form is that of the resource loss of APTP (Ganjdanesh et al., 2024,
      arXiv:2406.12042).
    """

    def charge(graph: Graph, sizes: Sizes) -> Any:
        share = cost(graph, sizes) / (target * float(known(cost(graph, {}))))
        return jnp.maximum(jnp.log(share), 0.0)

    return charge
