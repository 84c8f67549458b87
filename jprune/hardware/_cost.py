"""What a workload costs on an accelerator: one pure function, hard or smooth.

A roofline that knows tiles. Each operation has a time on the multipliers (tiles of the
array, precision, zeros), on the vector unit, the softmax, the selection and the SRAM,
and a time for its DRAM traffic (which operand stays on chip, how often the others are
read again); the largest is the time, as far as the machine overlaps them. The smooth
cost is the same code with smooth rounding, maxima and choices.

    cost(workload, machine)                      hard: whole tiles
    cost(workload, machine, temperature=0.05)    smooth, for gradients

Both are vmapped over machines and workloads and differentiated by both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune.hardware import _arithmetic, _traffic, _zeros, accelerators, systolic, topk
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._arithmetic import Arithmetic
from jprune.hardware._workload import Workload
from jprune.hardware.systolic import Tiles

RESOURCES = "multipliers", "vector", "softmax", "top-k", "sram", "dram", "launch"
"""What bounds an operation: `Cost.bound` counts in this order."""


class Energy(NamedTuple):
    """Where energy goes, in J.

    Attributes:
      multipliers: of multiply-adds.
      vector: of element-wise operations, exponentials and selections.
      sram: of bytes on the chip.
      dram: of bytes beyond it.
      leakage: of time.
    """

    multipliers: Any
    vector: Any
    sram: Any
    dram: Any
    leakage: Any


class Cost(NamedTuple):
    """What a workload costs.

    Attributes:
      cycles: of the machine's clock.
      seconds: for the same.
      energy: J, the sum of the parts.
      dram_bytes: read and written.
      area: mm^2 of the machine.
      bound: int32, `(operations,)`, what takes each operation longest, in `RESOURCES`.
      parts: `Energy`.
    """

    cycles: Any
    seconds: Any
    energy: Any
    dram_bytes: Any
    area: Any
    bound: Any
    parts: Energy


class Use(NamedTuple):
    """What an operation asks of a machine.

    Attributes:
      compute: cycles on the chip: multipliers, vector, softmax, selection, SRAM.
      transfer: cycles of DRAM.
      start: cycles in which it starts.
      dram_bytes: moved.
      bound: in `RESOURCES`.
      energy: pJ, without leakage.
    """

    compute: Any
    transfer: Any
    start: Any
    dram_bytes: Any
    bound: Any
    energy: Energy


def cost(workload: Workload, machine: Accelerator, *, temperature: Any = None) -> Cost:
    """Returns what a workload costs on a machine.

    The sum over operations of

        time = max(compute, transfer) + (1 - overlap) min(compute, transfer) + launch
        compute = max(multipliers, vector, softmax, selection, SRAM), or their sum on
            machines that are not pipelined

    where joined operations count with the one before as one, if the machine has a
    pipeline: their compute times overlap, their transfers add up.

    Args:
      workload: operations; see `workload.check`.
      machine: the accelerator; see `accelerators.check`.
      temperature: None for the hard cost. A positive number, which may be traced, for
        the smooth one; 0.05 rounds corners of 5 %.

    Returns:
      A `Cost` of scalars, but for `bound`.

    Example:
      >>> from jprune.hardware import machines, workload
      >>> gemm = workload.product(512, 768, 768, input_bits=16, weight_bits=16)
      >>> found = cost(gemm, machines.tpu_v1())
      >>> RESOURCES[int(found.bound[0])], round(1e6 * float(found.seconds), 1)
      ('dram', 69.4)
    """
    return _cost(workload, machine, temperature)


# Jitted, as hundreds of small steps would be compiled one by one.
@jax.jit
def _cost(workload: Workload, machine: Accelerator, temperature: Any) -> Cost:
    r = _arithmetic.hard() if temperature is None else _arithmetic.smooth(temperature)
    use = jax.vmap(lambda o: operation(o, machine, r))(workload)
    cycles = _in_turn(use, workload, machine, r)
    seconds = jnp.sum(cycles * workload.repeats) / machine.clock * 1e-9
    parts = [jnp.sum(e * workload.repeats) * 1e-12 for e in use.energy[:-1]]
    parts = Energy(*parts, leakage=machine.leakage * seconds)
    return Cost(
        cycles=jnp.sum(cycles * workload.repeats),
        seconds=seconds,
        energy=sum(parts),
        dram_bytes=jnp.sum(use.dram_bytes * workload.repeats),
        area=accelerators.area(machine),
        bound=use.bound,
        parts=parts,
    )


def operation(o: Workload, machine: Accelerator, r: Arithmetic) -> Use:
    """Returns what one operation asks of a machine.

    Args:
      o: the operation: scalars, but for `keep`.
      machine: the accelerator.
      r: hard or smooth.

    Returns:
      A `Use` of scalars.
    """
    sizes = [r.whole(s * o.keep[i]) for i, s in enumerate((o.batch, o.m, o.n, o.k))]
    flows = systolic.tiling(tuple(sizes[1:]), machine.rows, machine.columns, r)
    cycles = [_multiplier_cycles(f, sizes, o, machine, r) for f in flows]
    sram = _traffic.sram_bytes(sizes, flows, o)
    others = (
        o.elementwise / machine.vector,
        o.exponentials / machine.softmax,
        o.selections * topk.topk_cycles(o.select_from, o.select_keep, machine.topk),
    )
    times = [
        _on_chip((c, *others, s / machine.sram_bandwidth), machine, r)
        for c, s in zip(cycles, sram, strict=True)
    ]
    # A dataflow that the machine lacks is never the best.
    barred = [t * (1 + 1e9 * (1 - machine.dataflows[i])) for i, t in enumerate(times)]
    weights = r.weights(barred)
    compute, multipliers, sram_bytes = (
        sum(w * v for w, v in zip(weights, values, strict=True))
        for values in (times, cycles, sram)
    )
    dram_bytes = _traffic.dram_bytes(sizes, o, machine, r)
    transfer = dram_bytes * machine.clock / machine.dram_bandwidth
    start = 1e3 * machine.launch * machine.clock
    resources = (multipliers, *others, sram_bytes / machine.sram_bandwidth)
    bound = jnp.argmax(jnp.stack([*resources, transfer, start]), axis=0)
    return Use(
        compute=compute,
        transfer=transfer,
        start=start,
        dram_bytes=dram_bytes,
        bound=bound.astype(jnp.int32),
        energy=_energy(sizes, sram_bytes, dram_bytes, o, machine),
    )


def _energy(
    sizes: list[Any], sram_bytes: Any, dram_bytes: Any, o: Workload, machine: Any
) -> Energy:
    compared = o.selections * topk.compared(o.select_from, o.select_keep)
    vector = (o.elementwise + o.exponentials) * machine.vector_energy
    return Energy(
        multipliers=_zeros.multiplier_energy(sizes, o, machine),
        vector=vector + compared * machine.topk_energy,
        sram=sram_bytes * machine.sram_energy,
        dram=8 * dram_bytes * machine.dram_energy,
        leakage=0.0 * dram_bytes,
    )


def _on_chip(stages: tuple[Any, ...], machine: Accelerator, r: Arithmetic) -> Any:
    """The longest stage in a pipeline, else one after another; SRAM runs along."""
    together = r.larger(*stages)
    in_turn = r.larger(sum(stages[:-1]), stages[-1])
    busy = machine.pipelined * together + (1 - machine.pipelined) * in_turn
    return busy + machine.latency


def _multiplier_cycles(
    flow: Tiles, sizes: list[Any], o: Workload, machine: Accelerator, r: Arithmetic
) -> Any:
    """Waves of tiles over the arrays, each as long as what streams through it."""
    share = 1 - machine.pipelined * (1 - o.share)
    # One array takes tiles one by one, so they are whole already.
    waves = r.tiles(sizes[0] * flow.down * flow.across / (machine.arrays * share))
    wide = jnp.maximum(o.input_bits, o.weight_bits + o.lsb_bits)
    speed = accelerators.rate(machine, wide) * machine.efficiency
    lines = (
        flow.lines * (1 + o.refetch) * _zeros.time_share(o, sizes[3], machine) / speed
    )
    exists = jnp.where(sizes[0] * lines > 0, 1.0, 0.0)
    return exists * (waves * (lines + machine.fill * flow.fill) - machine.fill)


def _in_turn(use: Use, workload: Workload, machine: Accelerator, r: Arithmetic) -> Any:
    """Cycles by which each operation lengthens the whole."""

    def time(compute: Any, transfer: Any) -> Any:
        longer = r.larger(compute, transfer)
        shorter = compute + transfer - longer
        return longer + (1 - machine.overlap) * shorter

    alone = time(use.compute, use.transfer)
    compute, transfer, first = (
        jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
        for x in (use.compute, use.transfer, alone)
    )
    pair = time(r.larger(compute, use.compute), transfer + use.transfer)
    together = workload.joined * machine.pipelined
    return together * (pair - first) + (1 - together) * (alone + use.start)
