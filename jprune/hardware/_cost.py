"""The cost of a workload on an accelerator: one pure function, hard or smooth.

A tile-aware roofline. Each operation has a time on the multipliers (tiles of the array,
precision, zeros), on the vector unit, the softmax, the selection and the SRAM, and a
time for its DRAM traffic (which operand stays on chip, how often the others are
re-read). The largest is the operation's time, as far as the machine overlaps them. The
smooth cost runs the same code with smooth rounding, maxima and choices.

    cost(workload, machine)                      hard: whole tiles
    cost(workload, machine, temperature=0.05)    smooth, for gradients
    cost_per_operation(workload, machine)        the terms of the sum

Both can be vmapped over and differentiated by machines and workloads.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base
from jprune.hardware import (
    _accelerator,
    _arithmetic,
    _ranges,
    _traffic,
    _workload,
    _zeros,
    accelerators,
    systolic,
    topk,
)
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._arithmetic import Arithmetic
from jprune.hardware._workload import Names, Workload
from jprune.hardware.systolic import Tiles

RESOURCES = "multipliers", "vector", "softmax", "top-k", "sram", "dram", "launch"
"""What can limit an operation, in the order of `Cost.bound`."""


class Energy(NamedTuple):
    """Energy by component, J.

    Attributes:
      multipliers: multiply-adds.
      vector: element-wise operations, exponentials and selections.
      sram: on-chip traffic.
      dram: DRAM traffic.
      leakage: static power times time.
    """

    multipliers: Any
    vector: Any
    sram: Any
    dram: Any
    leakage: Any


class Cost(NamedTuple):
    """The cost of a workload on a machine.

    Attributes:
      cycles: cycles of the machine's clock.
      seconds: the same time in seconds.
      energy: J, the sum of `parts`.
      dram_bytes: bytes read from and written to DRAM.
      area: of the machine, mm^2.
      bound: int32, `(operations,)`, index into `RESOURCES` of what limits each
        operation.
      parts: `Energy` by component.
    """

    cycles: Any
    seconds: Any
    energy: Any
    dram_bytes: Any
    area: Any
    bound: Any
    parts: Energy


class Use(NamedTuple):
    """Resources that one operation uses.

    Attributes:
      compute: on-chip cycles: multipliers, vector, softmax, selection, SRAM.
      transfer: cycles of DRAM transfers.
      start: cycles of the launch.
      dram_bytes: bytes moved to and from DRAM.
      bound: index into `RESOURCES` of what limits the operation.
      energy: pJ, without leakage.
    """

    compute: Any
    transfer: Any
    start: Any
    dram_bytes: Any
    bound: Any
    energy: Energy


def cost(workload: Workload, machine: Accelerator, *, temperature: Any = None) -> Cost:
    """Returns cycles, seconds, energy, DRAM bytes and area of a workload on a machine.

    The sum over operations of

        time = max(compute, transfer) + (1 - overlap) min(compute, transfer) + launch
        compute = max(multipliers, vector, softmax, selection, SRAM), or their sum on
            machines that are not pipelined

    where a joined operation and the one before it count as one, if the machine has a
    pipeline: their compute times overlap, their transfers add up.

    Args:
      workload: the operations; `product` and `networks` make them.
      machine: the accelerator; `machines` has presets.
      temperature: None for the hard cost; a positive number, which may be traced, for
        the smooth one. 0.05 rounds corners over about 5 %.

    Returns:
      A `Cost` of scalars, except for `bound`.

    Raises:
      PruningError: if the arguments are not a workload and an accelerator, in this
        order, or a number is out of its range: a size, width or keep ratio of the
        workload, a field of the machine, the temperature. A keep ratio may be 0 here.
        Inside `jit` and `vmap` that is a `checkify` debug check, without which the cost
        of such a number has no meaning.

    Example:
      >>> from jprune.hardware import machines, workload
      >>> gemm = workload.product(512, 768, 768, input_bits=16, weight_bits=16)
      >>> found = cost(gemm, machines.tpu_v1())
      >>> RESOURCES[int(found.bound[0])], round(1e6 * float(found.seconds), 1)
      ('dram', 69.4)
    """
    check(workload, machine, temperature)
    return _cost(workload._replace(names=Names()), machine, temperature, jnp.sum)


def cost_per_operation(
    workload: Workload, machine: Accelerator, *, temperature: Any = None
) -> Cost:
    """Returns the cost of each operation, with its repeats; `cost` is their sum.

    An operation that a pipelined machine joins with the one before it has the cycles
    that it adds to those of the other.

    Args:
      workload: the operations.
      machine: the accelerator.
      temperature: as in `cost`.

    Returns:
      A `Cost` of `(operations,)` arrays, except for `area`, which is the machine's.

    Raises:
      PruningError: as in `cost`.

    Example:
      >>> from jprune.hardware import machines, networks
      >>> found = cost_per_operation(networks.vit_base(), machines.tpu_v5e())
      >>> [RESOURCES[i] for i in found.bound[:4].tolist()]
      ['dram', 'dram', 'multipliers', 'multipliers']
    """
    check(workload, machine, temperature)
    plain = workload._replace(names=Names())
    return _cost(plain, machine, temperature, _each)


_RANGES = _workload.RANGES | {"keep": _ranges.SHARE}  # 0: pruned away


def check(workload: Any, machine: Any, temperature: Any) -> None:
    """Raises unless arguments are a workload and a machine with fields in range.

    Args:
      workload: the operations.
      machine: the accelerator.
      temperature: None, or a positive number.

    Raises:
      PruningError: names the order, the field or the temperature.
    """
    check_order(workload, machine)
    fields = _workload.arrays(workload)
    count = np.shape(workload.keep)[:1]
    for name, value in fields.items():
        if np.shape(value)[:1] != count or not hasattr(value, "shape"):
            raise base.PruningError(
                f"{name} of a workload is an array with an entry for each of "
                f"{', '.join(map(str, count))} operations; got {value!r}. For the same "
                f"everywhere: jnp.full({count}, value)."
            )
    _ranges.check_fields(fields, _RANGES, "an operation")
    machine_fields = machine._asdict()
    _ranges.check_fields(machine_fields, _accelerator.RANGES, "an accelerator")
    _ranges.check_numbers(_ranges.POSITIVE, temperature=temperature)


def check_order(workload: Any, machine: Any) -> None:
    """Raises unless a workload comes first and an accelerator second.

    Args:
      workload: what was given first.
      machine: what was given second.

    Raises:
      PruningError: says what was given, and the right order.
    """
    if isinstance(workload, Workload) and isinstance(machine, Accelerator):
        return
    given = [type(x).__name__ for x in (workload, machine)]
    hint = ""
    if isinstance(workload, Accelerator) and isinstance(machine, Workload):
        hint = " Swap the two."
    elif callable(workload) or callable(machine):
        hint = " Call functions such as `networks.bert_base` or `machines.a100` first."
    raise base.PruningError(
        "A cost is that of a Workload on an Accelerator, in this order: "
        f"hw.cost(workload, machine). Got {given[0]}, then {given[1]}.{hint}"
    )


# Jitted: otherwise hundreds of small operations would be compiled one by one.
@functools.partial(jax.jit, static_argnums=3)
def _cost(
    workload: Workload,
    machine: Accelerator,
    temperature: Any,
    total: Callable[[Any], Any],
) -> Cost:
    r = _arithmetic.hard() if temperature is None else _arithmetic.smooth(temperature)
    use = jax.vmap(lambda o: operation(o, machine, r))(workload)
    cycles = total(_in_turn(use, workload, machine, r) * workload.repeats)
    seconds = cycles / machine.clock * 1e-9
    parts = [total(e * workload.repeats) * 1e-12 for e in use.energy[:-1]]
    parts = Energy(*parts, leakage=machine.leakage * seconds)
    return Cost(
        cycles=cycles,
        seconds=seconds,
        energy=sum(parts),
        dram_bytes=total(use.dram_bytes * workload.repeats),
        area=accelerators.area(machine),
        bound=use.bound,
        parts=parts,
    )


def _each(x: Any) -> Any:
    return x


def operation(o: Workload, machine: Accelerator, r: Arithmetic) -> Use:
    """Returns the resources that one operation uses.

    Args:
      o: the operation: scalars, except for `keep`.
      machine: the accelerator.
      r: hard or smooth arithmetic.

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
    # Never choose a dataflow that the machine lacks.
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
    """Returns the longest pipeline stage, or the sum of stages; SRAM overlaps."""
    together = r.larger(*stages)
    in_turn = r.larger(sum(stages[:-1]), stages[-1])
    busy = machine.pipelined * together + (1 - machine.pipelined) * in_turn
    return busy + machine.latency


def _multiplier_cycles(
    flow: Tiles, sizes: list[Any], o: Workload, machine: Accelerator, r: Arithmetic
) -> Any:
    """Returns waves of tiles over the arrays, times lines streaming through each."""
    share = 1 - machine.pipelined * (1 - o.share)
    # A single array takes tiles one by one, so their number is already whole.
    waves = r.tiles(sizes[0] * flow.down * flow.across / (machine.arrays * share))
    wide = jnp.maximum(o.input_bits, o.weight_bits + o.lsb_bits)
    speed = accelerators.rate(machine, wide) * machine.efficiency
    lines = (
        flow.lines * (1 + o.refetch) * _zeros.time_share(o, sizes[3], machine) / speed
    )
    exists = jnp.where(sizes[0] * lines > 0, 1.0, 0.0)
    return exists * (waves * (lines + machine.fill * flow.fill) - machine.fill)


def _in_turn(use: Use, workload: Workload, machine: Accelerator, r: Arithmetic) -> Any:
    """Returns the cycles that each operation adds to the total."""

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
