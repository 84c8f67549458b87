"""An accelerator as numbers: what a cost model has to know of a machine.

All fields are arrays (scalars but for two), so that machines can be vmapped over,
interpolated and differentiated. `jprune.hardware.machines` has published ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base


class Accelerator(NamedTuple):
    """A machine, as a pytree of arrays; scalars where no shape is given.

    Multipliers stand in `arrays` arrays of `rows` times `columns`. A tile of an
    operand stays in an array while another streams through it, one line a cycle.

    Attributes:
      clock: GHz.
      rows: multipliers along one side of an array.
      columns: multipliers along the other side.
      arrays: how many arrays there are.
      dataflows: (3,), 1 where the machine can keep the weights, the outputs, the
        inputs in place, else 0. The fastest one is taken for each operation.
      fill: in [0, 1], the share of filling and draining a systolic array that is not
        hidden: 1 counts it for each tile, as SCALE-Sim does, 0 hides it.
      rates: (4,), multiply-adds in a cycle by each multiplier for operands of up to
        4, 8, 16 and 32 bits.
      efficiency: in (0, 1], the share of the peak that a product sustains.
      vector: element-wise operations in a cycle.
      softmax: exponentials in a cycle.
      topk: scores that the selection compares in a cycle.
      latency: cycles from the first operand to the last result of an operation.
      pipelined: in [0, 1], the share of joined operations' work that overlaps.
      launch: microseconds in which an operation starts.
      sram: KiB on the chip for operands.
      sram_bandwidth: bytes in a cycle.
      overlap: in [0, 1], the share of transfers that hide behind work or the other
        way round: 1 is double buffering, which halves the room for operands.
      dram_bandwidth: GB/s.
      skip: in [0, 1], the share of unstructured zeros of weights that take no time.
      lanes: which work on weights of their own and wait for the slowest.
      n_of_m: the most that an N:M pattern makes products faster, 1 if nothing.
      compressed: in [0, 1], 1 if DRAM holds only non-zero weights and their places.
      gating: in [0, 1], the share of a product's energy that a zero operand saves.
      mac_energy: pJ for a multiply-add of operands of `mac_bits`.
      mac_bits: to which `mac_energy` refers; it grows as the product of the widths.
      vector_energy: pJ for an element-wise operation or exponential.
      topk_energy: pJ for a comparison of the selection.
      sram_energy: pJ for a byte.
      dram_energy: pJ for a bit.
      leakage: W, whatever the machine does.
      area_base: mm^2 of what does not depend on the fields below.
      area_multiplier: mm^2 of a multiplier with its share of control.
      area_sram: mm^2 of a KiB.
      area_lane: mm^2 of a lane of softmax or selection.
      node: nm.
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


_VECTORS = {"dataflows": 3, "rates": 4}
_POSITIVE = (
    *("clock", "rows", "columns", "arrays", "efficiency", "vector", "softmax", "topk"),
    *("sram", "sram_bandwidth", "dram_bandwidth", "lanes", "mac_bits", "node", "rates"),
)
_FRACTIONS = (
    *("dataflows", "fill", "efficiency", "pipelined", "overlap", "skip"),
    *("compressed", "gating"),
)

# Plain digital logic with enough of everything beside its multipliers: what a field
# is where a machine's description says nothing. Energies: Horowitz, Computing's
# Energy Problem, ISSCC 2014 (45 nm): 0.2 + 0.03 pJ for an 8-bit multiply-add,
# 20 pJ for 8 bytes of a 32 KiB SRAM, 1.3 to 2.6 nJ for 8 bytes of DRAM.
_PLAIN = {
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
    """Returns a machine from its fields, the others plain; checked.

    Args:
      **fields: of `Accelerator`. `clock`, `rows`, `columns`, `sram` and
        `dram_bandwidth` have no default. The defaults of the others are ample:
        transfers are double-buffered, softmax and SRAM rarely bound, nothing is
        skipped, and energies are those of 45 nm (Horowitz, 2014).

    Returns:
      An `Accelerator` of float32 arrays: of NumPy, unless a field is JAX's.

    Raises:
      PruningError: if a field is missing, unknown, or cannot be meant; names it.

    Example:
      >>> chip = accelerator(
      ...     clock=1.0, rows=16, columns=16, sram=256, dram_bandwidth=32)
      >>> round(float(peak_tops(chip)), 3)  # 2 * 256 multipliers at 1 GHz
      0.512
    """
    unknown = sorted(set(fields) - set(Accelerator._fields))
    given = {**_PLAIN, **fields}
    missing = [name for name in Accelerator._fields if name not in given]
    if unknown or missing:
        raise base.PruningError(
            f"An accelerator lacks the fields {missing} and has no {unknown}."
        )
    return check(Accelerator(**{k: as_float32(v) for k, v in given.items()}))


def as_float32(value: Any) -> Any:
    """Returns an array in float32: NumPy's, unless it is JAX's, which may be traced.

    Args:
      value: a number, an array or a tracer.

    Returns:
      An array. Constants stay NumPy's, so that they are known inside `jit`, too.
    """
    if isinstance(value, jax.Array):
        return value.astype(jnp.float32)
    return np.asarray(value, np.float32)


def check(machine: Accelerator) -> Accelerator:
    """Returns the machine; raises if a field cannot be meant.

    Looks at the numbers, so it waits for the device: call it on the host, once. Fields
    that are traced pass unchecked.

    Args:
      machine: perhaps many, along leading axes.

    Returns:
      The argument.

    Raises:
      PruningError: if a field is NaN, infinite or negative, zero where that is
        nonsense, above 1 where it is a share, or of another shape; names it.
    """
    for name, value in machine._asdict().items():
        if isinstance(value, jax.core.Tracer):
            continue
        found = np.asarray(value, np.float64)
        if name in _VECTORS and (not found.ndim or found.shape[-1] != _VECTORS[name]):
            raise base.PruningError(
                f"{name} has {_VECTORS[name]} entries; got the shape {found.shape}."
            )
        complaint = None
        if not np.all(np.isfinite(found)) or np.any(found < 0):
            complaint = "finite and not negative"
        elif name in _POSITIVE and np.any(found == 0):
            complaint = "positive"
        elif name in _FRACTIONS and np.any(found > 1):
            complaint = "at most 1"
        elif name == "n_of_m" and np.any(found < 1):
            complaint = "at least 1"
        elif name in _VECTORS and np.any(found.max(-1) == 0):
            complaint = "positive somewhere"
        if complaint:
            raise base.PruningError(
                f"{name} of an accelerator is {complaint}; got {found.tolist()}."
            )
    return machine
