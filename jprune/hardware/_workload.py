"""A workload as numbers: the operations of a network, along the leading axis.

Each operation is a product of matrices, A (m, k) times W (k, n), `batch` times, with
the work that goes along with it: element-wise, exponentials, selections, gathers. A
convolution is the product of its patches with its kernel.

`jprune.hardware.networks` has well-known networks, `jprune.hardware.tracing` makes a
workload from any JAX function.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core import base

DENSE, UNSTRUCTURED, N_OF_M = 0.0, 1.0, 2.0
"""Patterns of zeros in weights: none that a machine may use; anywhere; N of M."""


class Workload(NamedTuple):
    """Operations as a pytree of arrays, `(operations,)` where no shape is given.

    Attributes:
      batch: products of these sizes, each with weights of its own: heads, groups.
      m: rows of the inputs: examples, tokens, places of an image.
      n: columns of the weights: outputs.
      k: over which the products are summed.
      keep: (operations, 4), the shares in (0, 1] of batch, m, n and k that pruning
        leaves: heads, queries, keys and values, channels. Hard costs round down.
      input_bits: of an entry of A.
      weight_bits: of an entry of W that is fetched for all: both parts, or the MSBs.
      output_bits: of an entry of the result.
      lsb_bits: of what is fetched later, by a share `refetch`.
      refetch: in [0, 1], the share of products that are computed again with the LSBs.
      input_dram: in [0, 1], the share of A that comes from DRAM, not from the chip.
      weight_dram: the same of W.
      output_dram: the share of the result that goes to DRAM.
      input_unique: in (0, 1], the share of A's entries that are not copies: 1 / 9 for
        the patches of a 3 x 3 convolution.
      density: in [0, 1], the share of W that is not zero.
      pattern: `DENSE`, `UNSTRUCTURED` or `N_OF_M`.
      input_density: in [0, 1], the share of A that is not zero.
      elementwise: operations on single entries along with the product.
      exponentials: of a softmax.
      selections: rows of which the largest are selected.
      select_from: entries of such a row.
      select_keep: how many of them are kept.
      gathered: bytes of DRAM read by index beside A and W.
      joined: in [0, 1], 1 if a machine with a pipeline runs the operation together
        with the one before it, which is not itself joined.
      share: in (0, 1], of the multipliers that such a machine gives the operation.
      repeats: how often the operation runs, as in layers alike.
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
_POSITIVE = ("input_bits", "weight_bits", "output_bits", "keep", "share")
_SHARES = (
    *("keep", "refetch", "input_dram", "weight_dram", "output_dram", "input_unique"),
    *("density", "input_density", "joined", "share"),
)


def check(workload: Workload) -> Workload:
    """Returns the workload; raises if a field cannot be meant.

    Looks at the numbers, so it waits for the device: call it on the host, once. Fields
    that are traced pass unchecked.

    Args:
      workload: perhaps many, along leading axes.

    Returns:
      The argument.

    Raises:
      PruningError: if a size is negative, a share is above 1, a width is 0, more is
        kept than there is, or an operation is joined to nothing; names the field.
    """
    traced = any(isinstance(x, jax.core.Tracer) for x in workload)
    for name, value in workload._asdict().items():
        if isinstance(value, jax.core.Tracer):
            continue
        found = np.asarray(value, np.float64)
        complaint = None
        if name == "keep" and (found.ndim < 2 or found.shape[-1] != 4):
            complaint = "a share each of batch, m, n and k"
        elif not np.all(np.isfinite(found)) or np.any(found < 0):
            complaint = "finite and not negative"
        elif name in _POSITIVE and np.any(found == 0):
            complaint = "positive"
        elif name in _SHARES and np.any(found > 1):
            complaint = "at most 1"
        elif name == "pattern" and not np.all(np.isin(found, (0, 1, 2))):
            complaint = "DENSE, UNSTRUCTURED or N_OF_M"
        if complaint:
            raise base.PruningError(
                f"{name} of an operation is {complaint}; got {found.tolist()}."
            )
    if traced:
        return workload
    product_sizes = [np.asarray(x) > 0 for x in (workload.m, workload.n, workload.k)]
    if np.any(np.any(product_sizes, axis=0) != np.all(product_sizes, axis=0)):
        raise base.PruningError(
            "m, n and k of an operation are all positive, or all 0 where it has no "
            f"product; got {workload.m}, {workload.n}, {workload.k}."
        )
    if np.any(np.asarray(workload.select_keep) > np.asarray(workload.select_from)):
        raise base.PruningError(
            f"select_keep is at most select_from; got {workload.select_keep} of "
            f"{workload.select_from}."
        )
    return workload
