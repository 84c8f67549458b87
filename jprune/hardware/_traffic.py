"""Traffic in bytes: between DRAM and the chip, and between SRAM and the arrays."""

from typing import Any

import jax.numpy as jnp

from jprune.hardware import _zeros
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._arithmetic import Arithmetic
from jprune.hardware._workload import Workload
from jprune.hardware.systolic import Tiles


def dram_bytes(
    sizes: list[Any], o: Workload, machine: Accelerator, r: Arithmetic
) -> Any:
    """Returns the least DRAM traffic of three loop orders.

    Weights stay on chip in chunks while all inputs pass for each; or inputs stay while
    all weights pass; or a square tile of outputs stays while stripes of both operands
    pass:

        W + A tiles(W / S),   A + W tiles(A / S),   A tiles(n / t) + W tiles(m / t)

    with S the on-chip room, half of it if the other half is being filled, and t^2
    results in it. Results are written once.

    Args:
      sizes: batch, m, n, k.
      o: the operation.
      machine: the accelerator.
      r: hard or smooth arithmetic.

    Returns:
      Bytes.
    """
    batch, m, n, k = sizes
    room = 1024 * machine.sram / (1 + machine.overlap)
    a = m * k * o.input_unique * o.input_bits / 8
    w = k * n * _zeros.stored_bits(o, machine) / 8
    side = jnp.sqrt(8 * room / o.output_bits)
    from_a, from_w = o.input_dram * a, o.weight_dram * w
    orders = [
        from_w + from_a * r.tiles(w / room),
        from_a + from_w * r.tiles(a / room),
        from_a * r.tiles(n / side) + from_w * r.tiles(m / side),
    ]
    result = o.output_dram * m * n * o.output_bits / 8
    return batch * (r.best(orders, orders) + result) + o.gathered


def sram_bytes(sizes: list[Any], flows: tuple[Tiles, ...], o: Workload) -> list[Any]:
    """Returns the traffic between SRAM and arrays in the three dataflows.

    The stationary operand is read once, a streaming one once for each tile across it,
    and partial sums are read back where a result needs several tiles of k.

    Args:
      sizes: batch, m, n, k.
      flows: result of `systolic.tiling`.
      o: the operation.

    Returns:
      Bytes for stationary weights, outputs and inputs.
    """
    batch, m, n, k = sizes
    a = batch * m * k * o.input_bits / 8
    w = batch * k * n * (o.weight_bits + o.refetch * o.lsb_bits) / 8
    c = batch * m * n * o.output_bits / 8
    by_w, by_o, by_i = flows
    return [
        a * by_w.across + w + c * (2 * by_w.down - 1),
        a * by_o.across + w * by_o.down + c,
        a + w * by_i.across + c * (2 * by_i.down - 1),
    ]
