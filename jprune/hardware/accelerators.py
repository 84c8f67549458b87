"""Arithmetic on accelerators: stacks, peaks, ridges, areas and scaled nodes."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.deprecation import renamed
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._accelerator import check as check

__getattr__ = renamed(__name__, {"accelerator": "jprune.hardware.accelerator"})


def stack(machines: Any) -> Accelerator:
    """Returns machines as one `Accelerator` with a leading axis, to vmap over.

    Args:
      machines: a sequence of `Accelerator`.

    Returns:
      An `Accelerator` whose leaves have one axis more.

    Example:
      >>> from jprune.hardware import machines
      >>> stack([machines.tpu_v1(), machines.a100()]).clock.shape
      (2,)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *machines)


def peak_tops(machine: Accelerator, bits: float = 8) -> jax.Array:
    """Returns the peak, 2 multipliers * rate * clock, in 10^12 operations a second.

    A multiply-add is two operations.

    Args:
      machine: the accelerator.
      bits: of the wider operand: 4, 8, 16 or 32, or between.

    Returns:
      A scalar.
    """
    macs = machine.rows * machine.columns * machine.arrays * rate(machine, bits)
    return 2e-3 * macs * machine.clock


def rate(machine: Accelerator, bits: Any) -> jax.Array:
    """Returns multiply-adds of a multiplier in a cycle, for operands of some width.

    That of the next of 4, 8, 16 and 32 bits.

    Args:
      machine: the accelerator.
      bits: of the wider operand, above 0.

    Returns:
      A scalar.
    """
    r = machine.rates
    wide = jnp.where(bits > 16, r[..., 3], r[..., 2])
    return jnp.where(bits > 8, wide, jnp.where(bits > 4, r[..., 1], r[..., 0]))


def ridge(machine: Accelerator, bits: float = 8) -> jax.Array:
    """Returns the operations per byte of DRAM above which multipliers are the bound.

    Args:
      machine: the accelerator.
      bits: of the wider operand.

    Returns:
      A scalar, operations per byte.

    Example:
      >>> from jprune.hardware import machines
      >>> float(ridge(machines.spatten(), 12))
      4.0
    """
    return 1e3 * peak_tops(machine, bits) / machine.dram_bandwidth


def scaled(machine: Accelerator, node: Any) -> Accelerator:
    """Returns the machine in another technology, to first order.

    With s = node / old node: areas of logic and SRAM times s^2, energies of logic and
    SRAM times s (the capacitance of a gate, at the same voltage). Clock, leakage and
    DRAM stay as they are.

    Args:
      machine: the accelerator.
      node: nm, positive.

    Returns:
      An `Accelerator`.

    References:
      What s^2 and s leave out, voltage and wires: Stillmaker and Baas, Scaling
      Equations for the Accurate Prediction of CMOS Device Performance, 2017.
    """
    s = jnp.asarray(node, jnp.result_type(machine.node)) / machine.node
    energies = ("mac_energy", "vector_energy", "topk_energy", "sram_energy")
    areas = ("area_base", "area_multiplier", "area_sram", "area_lane")
    changed = {name: getattr(machine, name) * s for name in energies}
    changed |= {name: getattr(machine, name) * s * s for name in areas}
    return machine._replace(**changed, node=machine.node * s)


def area(machine: Accelerator) -> jax.Array:
    """Returns mm^2: base, multipliers, SRAM, and lanes of softmax and selection.

    Args:
      machine: the accelerator.

    Returns:
      A scalar.
    """
    multipliers = machine.rows * machine.columns * machine.arrays
    lanes = machine.softmax + machine.topk
    return (
        machine.area_base
        + multipliers * machine.area_multiplier
        + machine.sram * machine.area_sram
        + lanes * machine.area_lane
    )
