"""What zero weights save on a machine: time, bytes and energy."""

from typing import Any

import jax.numpy as jnp

from jprune.hardware._accelerator import Accelerator
from jprune.hardware._workload import N_OF_M, UNSTRUCTURED, Workload


def time_share(o: Workload, k: Any, machine: Accelerator) -> Any:
    """Returns the fraction of a product's time that is left with zero weights.

    1 - skip (1 - imbalance) for unstructured zeros, max(density, 1 / gain) for N:M.

    Args:
      o: the operation.
      k: inner size, after pruning.
      machine: the accelerator.

    Returns:
      A fraction in [0, 1].
    """
    skipped = jnp.where(o.pattern == UNSTRUCTURED, machine.skip, 0.0)
    loose = 1 - skipped * (1 - imbalance(o.density, k, machine.lanes))
    structured = jnp.maximum(o.density, 1 / machine.n_of_m)
    return jnp.where(o.pattern == N_OF_M, structured, loose)


def imbalance(density: Any, k: Any, lanes: Any) -> Any:
    """Returns the work of the slowest sparse lane, as a fraction of a dense lane's.

    Of L lanes with k weights each, the largest number of non-zeros is about

        d k + sqrt(2 ln L * d (1 - d) k),

    the mean plus the expected maximum of L normal variables; at most k.

    Args:
      density: d, in [0, 1].
      k: weights of a lane.
      lanes: L, at least 1, lanes that wait for each other.

    Returns:
      A fraction of k, in [0, 1].

    Example:
      >>> round(float(imbalance(0.25, 256.0, 64.0)), 3)
      0.328
    """
    spread = jnp.log(jnp.maximum(lanes, 1.0)) * density * (1 - density)
    slowest = density + jnp.sqrt(2 * spread / jnp.maximum(k, 1.0) + 1e-30)
    return jnp.minimum(slowest, 1.0)


def stored_bits(o: Workload, machine: Accelerator) -> Any:
    """Returns the DRAM bits of a weight; compressed, of non-zeros and their indices.

    The index takes one bit of every weight for unstructured zeros, and two bits of
    every kept weight for N:M. MSBs are stored for all, LSBs for those that are
    refetched.

    Args:
      o: the operation.
      machine: the accelerator.

    Returns:
      Bits per weight, at most those of a dense weight.
    """
    bits = o.weight_bits + o.refetch * o.lsb_bits
    places = jnp.where(o.pattern == N_OF_M, 2 * o.density, 1.0)
    packed = jnp.minimum(o.density * bits + places, bits)
    usable = jnp.where(o.pattern > 0, machine.compressed, 0.0)
    return usable * packed + (1 - usable) * bits


def multiplier_energy(sizes: list[Any], o: Workload, machine: Accelerator) -> Any:
    """Returns the energy of an operation's multiply-adds.

    Energy scales with the product of the operands' widths, as a multiplier's area does.
    Skipped products cost nothing; gated ones, with a zero operand, cost less.

    Args:
      sizes: batch, m, n, k.
      o: the operation.
      machine: the accelerator.

    Returns:
      pJ.
    """
    batch, m, n, k = sizes
    supported = (o.pattern == N_OF_M) & (machine.n_of_m > 1)
    skips = jnp.where(o.pattern == UNSTRUCTURED, machine.skip, 0.0)
    skips = jnp.where(supported, 1.0, skips)
    left = 1 - skips * (1 - o.density)
    zero = 1 - o.input_density * (o.density / jnp.maximum(left, 1e-6))
    done = batch * m * n * k * left * (1 - machine.gating * jnp.clip(zero, 0.0, 1.0))
    msb, lsb = o.weight_bits, o.refetch * (o.weight_bits + o.lsb_bits)
    width = o.input_bits * (msb + lsb) / machine.mac_bits**2
    return done * width * machine.mac_energy
