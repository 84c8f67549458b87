"""Workloads as pytrees of numbers: the operations of a network.

Operations lie along the leading axis. Each is a product of matrices, A (m, k) times
W (k, n), `batch` times, with the work that accompanies it: element-wise operations,
exponentials, selections, gathers. A convolution is the product of its patches with its
kernel. Operations may have names, for tables and pictures; the cost does not read them.

`jprune.hardware.networks` has well-known networks; `jprune.hardware.from_graph` makes a
workload from any JAX function.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core import base
from jprune.hardware import _ranges


@jax.tree_util.register_static
class Names(tuple[str, ...]):
    """Names of operations: a tuple of strings without leaves in a pytree.

    Names are part of a workload's tree, not of its arrays: `vmap`, `grad` and
    `jax.tree.map` leave them alone, and trees with different names differ.
    """

    __slots__ = ()


DENSE, UNSTRUCTURED, N_OF_M = 0.0, 1.0, 2.0
"""Sparsity patterns of weights: none that a machine can use; unstructured; N:M."""


class Workload(NamedTuple):
    """Operations as a pytree of arrays, `(operations,)` unless a shape is given.

    Attributes:
      batch: number of products of these sizes, each with its own weights, such as
        attention heads or the groups of a convolution.
      m: rows of the inputs: examples, tokens, output pixels.
      n: columns of the weights: output channels.
      k: inner size, over which the products are summed.
      keep: (operations, 4), fractions in (0, 1] of batch, m, n and k that pruning
        leaves: heads, queries, keys and values, channels. Hard costs round sizes down.
      input_bits: bits of an entry of A.
      weight_bits: bits of an entry of W that are fetched for all products: the whole
        entry, or its MSBs.
      output_bits: bits of an entry of the result.
      lsb_bits: bits of an entry of W that are fetched later, for the fraction
        `refetch`.
      refetch: fraction in [0, 1] of products that are recomputed with the LSBs.
      input_dram: fraction in [0, 1] of A that comes from DRAM, not from the chip.
      weight_dram: the same of W.
      output_dram: fraction in [0, 1] of the result that is written to DRAM.
      input_unique: fraction in (0, 1] of A's entries that are not copies: 1 / 9 for the
        patches of a 3 x 3 convolution.
      density: fraction in [0, 1] of W that is not zero.
      pattern: sparsity pattern of W: `DENSE`, `UNSTRUCTURED` or `N_OF_M`.
      input_density: fraction in [0, 1] of A that is not zero.
      elementwise: number of element-wise operations that accompany the product.
      exponentials: number of exponentials, of a softmax.
      selections: number of rows from which the largest entries are selected.
      select_from: entries of such a row.
      select_keep: entries of such a row that are kept.
      gathered: bytes of DRAM read by index in addition to A and W.
      joined: in [0, 1], 1 if a pipelined machine runs the operation together with the
        one before it, which itself is not joined.
      share: fraction in (0, 1] of the multipliers that such a machine gives the
        operation.
      repeats: number of times that the operation runs, such as once in each layer.
      names: static, a name for each operation, "" for one without; empty if none has.
    """

    batch: Any
    m: Any
    n: Any
    k: Any
    keep: Any
    input_bits: Any
    weight_bits: Any
    output_bits: Any
    lsb_bits: Any
    refetch: Any
    input_dram: Any
    weight_dram: Any
    output_dram: Any
    input_unique: Any
    density: Any
    pattern: Any
    input_density: Any
    elementwise: Any
    exponentials: Any
    selections: Any
    select_from: Any
    select_keep: Any
    gathered: Any
    joined: Any
    share: Any
    repeats: Any
    names: Names = Names()


DEFAULTS = {
    "batch": 1.0,
    "keep": (1.0, 1.0, 1.0, 1.0),
    "input_bits": 8.0,
    "weight_bits": 8.0,
    "output_bits": 8.0,
    "lsb_bits": 0.0,
    "refetch": 0.0,
    "input_dram": 1.0,
    "weight_dram": 1.0,
    "output_dram": 1.0,
    "input_unique": 1.0,
    "density": 1.0,
    "pattern": DENSE,
    "input_density": 1.0,
    "elementwise": 0.0,
    "exponentials": 0.0,
    "selections": 0.0,
    "select_from": 1.0,
    "select_keep": 0.0,
    "gathered": 0.0,
    "joined": 0.0,
    "share": 1.0,
    "repeats": 1.0,
}
_POSITIVE = "input_bits", "weight_bits", "output_bits"
_SHARES = (
    *("refetch", "input_dram", "weight_dram", "output_dram", "input_unique"),
    *("density", "input_density", "joined"),
)
RANGES = (
    dict.fromkeys(Workload._fields[:-1], _ranges.ANY)
    | dict.fromkeys(_POSITIVE, _ranges.POSITIVE)
    | dict.fromkeys(_SHARES, _ranges.SHARE)
    | {"keep": _ranges.SOME, "share": _ranges.SOME}
)
"""Ranges of an operation's fields."""


def check(workload: Workload) -> Workload:
    """Returns the workload; raises if a field is out of range.

    Reads the values, so it blocks on the device: call it on the host, once. Traced
    fields are not checked.

    Args:
      workload: one or, along leading axes, many.

    Returns:
      The argument.

    Raises:
      PruningError: if a size is negative, a fraction is above 1, a width is 0, more is
        selected than there is, only some of m, n and k are 0, or the number of names is
        not that of operations; names the field.
    """
    check_names(workload)
    if np.ndim(workload.keep) < 2 or np.shape(workload.keep)[-1] != 4:
        raise base.PruningError(
            "keep of an operation has to be one fraction each of batch, m, n and k; "
            f"got shape {np.shape(workload.keep)[1:]}."
        )
    fields = arrays(workload)
    known = {k: v for k, v in fields.items() if not isinstance(v, jax.core.Tracer)}
    _ranges.check_fields(known, RANGES, "an operation")
    pattern = known.get("pattern", DENSE)
    if not np.all(np.isin(pattern, (DENSE, UNSTRUCTURED, N_OF_M))):
        raise base.PruningError(
            "pattern of an operation has to be DENSE, UNSTRUCTURED or N_OF_M; got "
            f"{np.asarray(pattern).tolist()}."
        )
    if len(known) < len(fields):
        return workload
    product_sizes = [np.asarray(x) > 0 for x in (workload.m, workload.n, workload.k)]
    if np.any(np.any(product_sizes, axis=0) != np.all(product_sizes, axis=0)):
        raise base.PruningError(
            "m, n and k of an operation have to be all positive, or all 0 if it has no "
            f"product; got {workload.m}, {workload.n}, {workload.k}."
        )
    if np.any(np.asarray(workload.select_keep) > np.asarray(workload.select_from)):
        raise base.PruningError(
            f"select_keep has to be at most select_from; got {workload.select_keep} of "
            f"{workload.select_from}."
        )
    return workload


def arrays(workload: Workload) -> dict[str, Any]:
    """Returns the fields that are arrays, by their names.

    Args:
      workload: the operations.

    Returns:
      Field -> array, without `names`.
    """
    found = workload._asdict()
    del found["names"]
    return found


def check_fields(names: Iterable[str]) -> None:
    """Raises if operations have no fields of these names.

    Args:
      names: fields that were given for an operation.

    Raises:
      PruningError: if one is unknown; names it.
    """
    unknown = sorted(set(names) - (set(Workload._fields) - {"names"}))
    if unknown:
        raise base.PruningError(
            f"An operation has no fields {unknown}: see `Workload`."
        )


def check_names(workload: Workload) -> None:
    """Raises if a workload has names, but not one for each operation.

    Args:
      workload: one or, along leading axes, many.

    Raises:
      PruningError: with the names and the number of operations.
    """
    count = np.shape(workload.m)[-1]
    if workload.names and len(workload.names) != count:
        raise base.PruningError(
            f"A workload of {count} operations has {len(workload.names)} names: "
            f"{list(workload.names)}. Give it one for each operation, or none: "
            "hw.workload.rename(workload, names)."
        )
