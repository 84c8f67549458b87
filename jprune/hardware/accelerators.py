"""Peak rates, ridge points, areas, technology scaling and stacking of accelerators."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.deprecation import renamed
from jprune.hardware import _ranges
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._accelerator import check as check

__getattr__ = renamed(__name__, {"accelerator": "jprune.hardware.accelerator"})


def stack(machines: Any) -> Accelerator:
    """Stacks machines into one `Accelerator` with a leading axis, to vmap over.

    Args:
      machines: a sequence of `Accelerator`.

    Returns:
      An `Accelerator` whose leaves have one more axis.

    Example:
      >>> from jprune.hardware import machines
      >>> stack([machines.tpu_v1(), machines.a100()]).clock.shape
      (2,)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *machines)


def peak_tops(machine: Accelerator, bits: float = 8) -> jax.Array:
    """Returns the peak, 2 multipliers * rate * clock, in 10^12 operations per second.

    A multiply-add is two operations.

    Args:
      machine: the accelerator.
      bits: width of the wider operand: 4, 8, 16 or 32, or in between.

    Returns:
      A scalar, TOPS.

    Raises:
      PruningError: if the width is not positive.

    Example:
      >>> from jprune.hardware import machines
      >>> chip = machines.spatten()  # 1024 multipliers at 1 GHz
      >>> round(float(peak_tops(chip, 12)), 3)
      2.048
    """
    _ranges.check_numbers(_ranges.POSITIVE, bits=bits)
    macs = machine.rows * machine.columns * machine.arrays * rate(machine, bits)
    return 2e-3 * macs * machine.clock


def rate(machine: Accelerator, bits: Any) -> jax.Array:
    """Returns the multiply-adds per cycle of one multiplier for an operand width.

    Widths in between take the rate of the next of 4, 8, 16 and 32 bits.

    Args:
      machine: the accelerator.
      bits: width of the wider operand, above 0.

    Returns:
      A scalar, multiply-adds per cycle.

    Example:
      >>> from jprune.hardware import machines
      >>> chip = machines.tpu_v1()  # a quarter of the speed for 16 bits
      >>> float(rate(chip, 8)), float(rate(chip, 12)), float(rate(chip, 16))
      (1.0, 0.25, 0.25)
    """
    r = machine.rates
    wide = jnp.where(bits > 16, r[..., 3], r[..., 2])
    return jnp.where(bits > 8, wide, jnp.where(bits > 4, r[..., 1], r[..., 0]))


def ridge(machine: Accelerator, bits: float = 8) -> jax.Array:
    """Returns the operations per DRAM byte above which multipliers are the limit.

    Args:
      machine: the accelerator.
      bits: width of the wider operand.

    Returns:
      A scalar, operations per byte.

    Example:
      >>> from jprune.hardware import machines
      >>> float(ridge(machines.spatten(), 12))
      4.0
    """
    return 1e3 * peak_tops(machine, bits) / machine.dram_bandwidth


def scaled(machine: Accelerator, node: Any) -> Accelerator:
    """Scales the machine to another technology node, to first order.

    With s = node / old node: areas of logic and SRAM scale with s^2, energies of logic
    and SRAM with s (the capacitance of a gate, at the same voltage). Clock, leakage and
    DRAM are unchanged.

    Args:
      machine: the accelerator.
      node: new technology node, nm, positive.

    Returns:
      An `Accelerator`.

    Raises:
      PruningError: if the node is not positive; a traced one is a `checkify` debug
        check.

    Example:
      >>> from jprune.hardware import machines
      >>> old = machines.spatten()
      >>> new = scaled(old, 20)  # from 40 nm
      >>> float(new.mac_energy / old.mac_energy), float(area(new) / area(old))
      (0.5, 0.25)

    References:
      What s^2 and s neglect, voltage and wires: Stillmaker and Baas, Scaling Equations
      for the Accurate Prediction of CMOS Device Performance, 2017.
    """
    _ranges.check_numbers(_ranges.POSITIVE, node=node)
    s = jnp.asarray(node, jnp.result_type(machine.node)) / machine.node
    energies = ("mac_energy", "vector_energy", "topk_energy", "sram_energy")
    areas = ("area_base", "area_multiplier", "area_sram", "area_lane")
    changed = {name: getattr(machine, name) * s for name in energies}
    changed |= {name: getattr(machine, name) * s * s for name in areas}
    return machine._replace(**changed, node=machine.node * s)


def area(machine: Accelerator) -> jax.Array:
    """Returns the area: base, multipliers, SRAM, and lanes of softmax and selection.

    Args:
      machine: the accelerator.

    Returns:
      A scalar, mm^2.

    Example:
      >>> from jprune.hardware import machines
      >>> round(float(area(machines.spatten())), 1)  # 18.71 mm^2 in the paper
      18.6
    """
    multipliers = machine.rows * machine.columns * machine.arrays
    lanes = machine.softmax + machine.topk
    return (
        machine.area_base
        + multipliers * machine.area_multiplier
        + machine.sram * machine.area_sram
        + lanes * machine.area_lane
    )
