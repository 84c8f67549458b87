"""Workloads of traced functions, and their cost as a function of groups' sizes.

`jprune.graph` records the products of a function with sizes that are polynomials in
those of its groups. The cost of a pruned function therefore needs no smaller model, and
is differentiable with respect to the sizes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import graph as graph_lib
from jprune._core import base
from jprune.graph import Graph
from jprune.hardware import _ranges
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._cost import Cost, cost
from jprune.hardware._workload import RANGES, Names, Workload, arrays
from jprune.hardware.workload import product

Metric = Callable[[Cost], Any]
"""`Cost -> scalar`, such as `lambda found: found.energy`."""


def from_graph(
    graph: Graph,
    sizes: graph_lib.Sizes | None = None,
    *,
    bits: float | None = None,
    density: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Workload:
    """Returns the matrix products and convolutions of a traced function as a workload.

    With L, R, O the entries of operands and result, and P multiply-adds of a product,

        batch = L R O / P^2,   m = P / R,   n = P / L,   k = P / O,

    and for convolutions m = P / R, n = R / k, where the inputs L are the part of m k
    that are not copies. Iterations of loops count in the batch. Element-wise work is
    not counted; a grouped convolution counts as one product of a smaller k.

    Args:
      graph: result of `jprune.graph.trace`, for inputs of the recorded shapes.
      sizes: group name -> size, may be fractional or traced; groups left out are whole.
      bits: bit width of all operands; that of their recorded types if None.
      density: path of a leaf -> fraction of its weights that is not zero. The products
        of these leaves are unstructured, unless `pattern` is among the fields.
      **fields: other fields of `Workload`, for all operations: `input_dram`, ...

    Returns:
      A `Workload` with one operation for each product, in the program's order. Its
      shape does not depend on the sizes. Operations are named by the leaves that they
      multiply by; products of activations by their line of the program.

    Raises:
      PruningError: if the function has no product, a group or a field does not exist,
        no product uses a leaf that has a density, or a size, width, density or field is
        out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> half = from_graph(graph, {"in[1]": 4})
      >>> [x.tolist() for x in (half.m, half.n, half.k)]
      [[5.0, 5.0], [4.0, 2.0], [3.0, 4.0]]
      >>> half.names
      ('in', 'out')
    """
    found = graph_lib.operations(graph)
    if not found:
        raise base.PruningError(
            "The traced function has no matrix product or convolution."
        )
    shares = density or {}
    _check(sizes, bits, shares, fields)
    unused = set(shares) - {path for o in found for path in o.leaves}
    if unused:
        raise base.PruningError(
            f"No product uses the leaves {sorted(unused)}, which were given a density."
        )
    size = graph_lib.measure(graph, sizes)
    rows = [_operation(o, size, bits) for o in found]
    names = ("batch", "m", "n", "k", "input_unique")
    measured = {
        name: jnp.stack([jnp.asarray(row[i], jnp.float32) for row in rows])
        for i, name in enumerate(names)
    }
    widths = np.asarray([row[5] for row in rows], np.float32)
    sparse = [[shares[p] for p in o.leaves if p in shares] for o in found]
    kept = [jnp.asarray(d[0] if d else 1.0, jnp.float32) for d in sparse]
    plain = {
        "pattern": 1.0 if density else 0.0,
        **dict(
            zip(("input_bits", "weight_bits", "output_bits"), widths.T, strict=True)
        ),
        **fields,
    }
    count = len(rows)
    like = arrays(product(1, 1, 1)) | plain
    full = {
        k: jnp.broadcast_to(jnp.asarray(v, jnp.float32), (count, *np.shape(v)[1:]))
        for k, v in like.items()
    }
    full |= measured | {"density": jnp.stack(kept)}
    return Workload(**full, names=Names(map(_name, found)))


def _check(
    sizes: graph_lib.Sizes | None,
    bits: float | None,
    density: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> None:
    _ranges.check_numbers(_ranges.POSITIVE, bits=bits)
    for what, numbers, allowed in (
        ("the sizes", sizes or {}, _ranges.ANY),
        ("the densities", density, _ranges.SHARE),
    ):
        _ranges.check_fields(numbers, dict.fromkeys(numbers, allowed), what)
    unknown = sorted(set(fields) - RANGES.keys())
    if unknown:
        raise base.PruningError(f"An operation has no fields {unknown}.")
    _ranges.check_fields(fields, RANGES, "an operation")


def _name(o: graph_lib.Operation) -> str:
    """The leaves that a product multiplies by, or the line of one of activations."""
    if o.leaves:
        return " ".join(o.leaves)
    path, _, function = o.where.partition(" ")
    file, *numbers = path.rsplit("/", 1)[-1].split(":")
    return " ".join([":".join([file, *numbers[:1]]), function]).strip()


def _operation(
    o: graph_lib.Operation, size: Callable[[Any], Any], bits: float | None
) -> tuple[Any, ...]:
    """Returns batch, m, n, k, the fraction of inputs that are no copies, and widths."""

    def entries(axes: Any) -> Any:
        return functools.reduce(lambda a, d: a * size(d), axes, 1.0)

    left, right = (entries(axes) for axes in o.operands)
    result, total = entries(o.result), entries(o.factors)
    widths = [8 * b if bits is None else bits for b in o.item_bytes]
    k = total / result
    if o.name == "conv_general_dilated":
        m, n = total / right, right / k
        unique = left / (m * k)
        unique = jnp.minimum(jnp.asarray(unique, jnp.float32), 1.0)
        return 1.0, m, n, k, unique, widths
    batch = left * right / total * result / total
    return batch, total / right, total / left, k, 1.0, widths


def as_graph_cost(
    machine: Accelerator,
    metric: Metric,
    *,
    temperature: Any = None,
    **fields: Any,
) -> graph_lib.Cost:
    """Returns the cost of traced functions on a machine, as a cost of `jprune.graph`.

    It takes the place of `jg.multiply_adds`: `jg.choose(graph, scores, 0.3, cost=...)`
    prunes until 30 % of it are saved, and `jg.penalty` penalises soft sizes for it.

    Args:
      machine: the accelerator.
      metric: `Cost -> scalar`, such as `lambda found: found.energy`.
      temperature: None for the hard cost, else the smooth one, for gradients.
      **fields: as in `from_graph`: `bits`, `input_dram`, ...

    Returns:
      `(graph, sizes) -> scalar`.

    Raises:
      PruningError: when used, as `from_graph`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> from jprune.hardware import machines
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((64, 512)), "out": jnp.ones((512, 8))}
      >>> graph = jg.trace(mlp, params, jnp.ones((32, 64)))
      >>> energy = as_graph_cost(machines.eyeriss(), lambda found: found.energy)
      >>> scores = {"in[1]": jnp.arange(512.0)}
      >>> keep = jg.choose(graph, scores, 0.3, cost=energy)
      >>> left = energy(graph, jg.sizes(graph, keep)) / energy(graph, {})
      >>> bool(0.68 < left <= 0.7)
      True
    """

    # A search evaluates many sizes of one graph. The products of sizes stay outside of
    # jit, where they are exact: rounded to float32, they might need one more tile.
    @jax.jit
    def charged(net: Workload) -> Any:
        return metric(cost(net, machine, temperature=temperature))

    def charge(graph: Graph, sizes: graph_lib.Sizes) -> Any:
        return charged(from_graph(graph, sizes, **fields))

    return charge
