"""Accelerators as pytrees of numbers: what the cost model knows of a machine.

All fields are arrays (scalars except two), so machines can be vmapped over,
interpolated and differentiated. `jprune.hardware.machines` has published ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base
from jprune.hardware import _ranges


class Accelerator(NamedTuple):
    """A machine as a pytree of arrays; scalars unless a shape is given.

    Multipliers form `arrays` arrays of `rows` times `columns`. A tile of one operand
    stays in an array while another operand streams through it, one line per cycle.

    Attributes:
      clock: clock rate, GHz.
      rows: multipliers along one side of an array.
      columns: multipliers along the other side.
      arrays: number of arrays.
      dataflows: (3,), 1 where the machine supports keeping weights, outputs or inputs
        in place, else 0. The fastest supported one is taken for each operation.
      fill: fraction in [0, 1] of a systolic array's fill and drain that is not hidden:
        1 counts it for every tile, as SCALE-Sim does, 0 hides it.
      rates: (4,), multiply-adds per cycle of each multiplier for operands of up to 4,
        8, 16 and 32 bits.
      efficiency: fraction in (0, 1] of the peak that a product sustains.
      vector: element-wise operations per cycle.
      softmax: exponentials per cycle.
      topk: scores that the top-k selection compares per cycle.
      latency: cycles from the first operand to the last result of an operation.
      pipelined: fraction in [0, 1] of the work of joined operations that overlaps.
      launch: microseconds to start an operation.
      sram: on-chip memory for operands, KiB.
      sram_bandwidth: bytes per cycle.
      overlap: fraction in [0, 1] of transfers hidden behind compute, or the reverse: 1
        is double buffering, which halves the room for operands.
      dram_bandwidth: GB/s.
      skip: fraction in [0, 1] of unstructured zero weights that take no time.
      lanes: lanes with weights of their own, which wait for the slowest lane.
      n_of_m: largest speed-up of products by N:M sparsity, 1 if none.
      compressed: in [0, 1], 1 if DRAM stores only non-zero weights and their indices.
      gating: fraction in [0, 1] of a product's energy that a zero operand saves.
      mac_energy: pJ per multiply-add of operands of `mac_bits`.
      mac_bits: bit width that `mac_energy` refers to; energy scales with the product of
        the operands' widths.
      vector_energy: pJ per element-wise operation or exponential.
      topk_energy: pJ per comparison of the selection.
      sram_energy: pJ per byte.
      dram_energy: pJ per bit.
      leakage: static power, W.
      area_base: mm^2 that do not depend on the fields below.
      area_multiplier: mm^2 per multiplier, including its share of control.
      area_sram: mm^2 per KiB.
      area_lane: mm^2 per lane of softmax or selection.
      node: technology node, nm.
    """

    clock: Any
    rows: Any
    columns: Any
    arrays: Any
    dataflows: Any
    fill: Any
    rates: Any
    efficiency: Any
    vector: Any
    softmax: Any
    topk: Any
    latency: Any
    pipelined: Any
    launch: Any
    sram: Any
    sram_bandwidth: Any
    overlap: Any
    dram_bandwidth: Any
    skip: Any
    lanes: Any
    n_of_m: Any
    compressed: Any
    gating: Any
    mac_energy: Any
    mac_bits: Any
    vector_energy: Any
    topk_energy: Any
    sram_energy: Any
    dram_energy: Any
    leakage: Any
    area_base: Any
    area_multiplier: Any
    area_sram: Any
    area_lane: Any
    node: Any


# Dataflows: weight, output and input stationary.
WEIGHTS, OUTPUTS, INPUTS = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)

_VECTORS = {"dataflows": 3, "rates": 4}
_POSITIVE = (
    *("clock", "rows", "columns", "arrays", "efficiency", "vector", "softmax", "topk"),
    *("sram", "sram_bandwidth", "dram_bandwidth", "lanes", "mac_bits", "node", "rates"),
)
_FRACTIONS = "dataflows", "fill", "pipelined", "overlap", "skip", "compressed", "gating"
RANGES = (
    dict.fromkeys(Accelerator._fields, _ranges.ANY)
    | dict.fromkeys(_POSITIVE, _ranges.POSITIVE)
    | dict.fromkeys(_FRACTIONS, _ranges.SHARE)
    | {"efficiency": _ranges.SOME, "n_of_m": _ranges.FACTOR}
)
"""Ranges of an accelerator's fields."""

# Defaults for fields that a machine's description does not give: plain digital logic in
# which little but the multipliers limits. Energies: Horowitz, Computing's Energy
# Problem, ISSCC 2014 (45 nm): 0.2 + 0.03 pJ for an 8-bit multiply-add,
# 20 pJ for 8 bytes of a 32 KiB SRAM, 1.3 to 2.6 nJ for 8 bytes of DRAM.
DEFAULTS = {
    "arrays": 1.0,
    "dataflows": (1.0, 1.0, 1.0),
    "fill": 0.0,
    "rates": (1.0, 1.0, 1.0, 1.0),
    "efficiency": 1.0,
    "vector": 1e3,
    "softmax": 1e2,
    "topk": 16.0,
    "latency": 0.0,
    "pipelined": 0.0,
    "launch": 0.0,
    "sram_bandwidth": 1e6,
    "overlap": 1.0,
    "skip": 0.0,
    "lanes": 1.0,
    "n_of_m": 1.0,
    "compressed": 0.0,
    "gating": 0.0,
    "mac_energy": 0.23,
    "mac_bits": 8.0,
    "vector_energy": 1.0,
    "topk_energy": 0.1,
    "sram_energy": 2.5,
    "dram_energy": 20.0,
    "leakage": 0.0,
    "area_base": 0.0,
    "area_multiplier": 1e-3,
    "area_sram": 5e-3,
    "area_lane": 1e-2,
    "node": 45.0,
}


def accelerator(**fields: Any) -> Accelerator:
    """Returns a machine from its fields; fields left out get generic values.

    Args:
      **fields: fields of `Accelerator`. `clock`, `rows`, `columns`, `sram` and
        `dram_bandwidth` have no default. The other defaults are ample: transfers are
        double-buffered, softmax and SRAM rarely limit, nothing is skipped, and energies
        are those of 45 nm (Horowitz, 2014).

    Returns:
      An `Accelerator` of float32 arrays: NumPy's, unless a field is JAX's.

    Raises:
      PruningError: if a field is missing, unknown or out of range; names it.

    Example:
      >>> chip = accelerator(
      ...     clock=1.0, rows=16, columns=16, sram=256, dram_bandwidth=32)
      >>> from jprune.hardware import accelerators
      >>> round(float(accelerators.peak_tops(chip)), 3)  # 2 * 256 operations at 1 GHz
      0.512
    """
    unknown = sorted(set(fields) - set(Accelerator._fields))
    given = {**DEFAULTS, **fields}
    missing = [name for name in Accelerator._fields if name not in given]
    if unknown or missing:
        raise base.PruningError(
            f"An accelerator lacks the fields {missing} and has no fields {unknown}."
        )
    return check(Accelerator(**{k: as_float32(v) for k, v in given.items()}))


def as_float32(value: Any) -> Any:
    """Converts to a float32 array: NumPy's, unless it is JAX's, which may be traced.

    Args:
      value: a number, an array or a tracer.

    Returns:
      An array. Constants stay NumPy's, so that their values are known inside `jit`.
    """
    if isinstance(value, jax.Array):
        return value.astype(jnp.float32)
    return np.asarray(value, np.float32)


def check(machine: Accelerator) -> Accelerator:
    """Returns the machine; raises if a field is out of range.

    Reads the values, so it blocks on the device: call it on the host, once. Traced
    fields are not checked.

    Args:
      machine: one or, along leading axes, many.

    Returns:
      The argument.

    Raises:
      PruningError: if a field is NaN, infinite or negative, 0 where it must be
        positive, above 1 where it is a fraction, or of another shape; names it.

    Example:
      >>> chip = accelerator(clock=1.0, rows=8, columns=8, sram=256, dram_bandwidth=32)
      >>> check(chip._replace(clock=0.0))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
          ...
      jprune._core.base.PruningError: clock of an accelerator has to be positive; ...
    """
    fields = machine._asdict()
    known = {k: v for k, v in fields.items() if not isinstance(v, jax.core.Tracer)}
    for name, count in _VECTORS.items():
        shape = np.shape(fields[name])
        if not shape or shape[-1] != count:
            raise base.PruningError(f"{name} has {count} entries; got shape {shape}.")
    _ranges.check_fields(known, RANGES, "an accelerator")
    for name in _VECTORS.keys() & known.keys():
        found = np.asarray(known[name])
        if np.any(found.max(-1) == 0):
            raise base.PruningError(
                f"{name} of an accelerator has to be positive in at least one entry; "
                f"got {found.tolist()}."
            )
    return machine
