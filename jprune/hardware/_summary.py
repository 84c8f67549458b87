"""Tables: what each operation of a workload costs on a machine, and what limits it."""

import functools
from typing import Any

import jax
import numpy as np

from jprune._core.quantities import quantity, rounded
from jprune._core.tables import Column, print_table
from jprune.hardware import machines
from jprune.hardware import workload as workload_lib
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._cost import RESOURCES, cost_per_operation
from jprune.hardware._sources import PRESETS
from jprune.hardware._workload import Workload, check_names

_NOTE = (
    "All repeats of an operation count. Numbers are rounded, so columns may not add up "
    "to the last row. Prefixes k, M, G are powers of 1000. Bits are those of inputs, "
    "weights and outputs, one number where they are equal."
)
_JOINED = " A joined operation has the time that it adds to the operation before it."


def summary(workload: Workload, machine: Accelerator) -> dict[str, Any]:
    """Returns the hard cost of each operation and of all, as plain data.

    Reads values, so it blocks on the device: not for use inside `jit`.

    Args:
      workload: the operations.
      machine: the accelerator.

    Returns:
      `machine`: a text that describes it. `operations`: a list of {name, repeats, bits,
      multiply_adds, cycles, seconds, energy, dram_bytes, limited_by, share_of_time,
      share_of_energy}. Energies are in J, `limited_by` is one of `RESOURCES`, shares
      are in [0, 1], and bits are {input, weight, lsb, output}, of one entry each.
      Operations without a name are called by their number, from 0. `total`:
      {multiply_adds, cycles, seconds, energy, dram_bytes} of all operations.

    Raises:
      PruningError: if the arguments are not a workload and an accelerator, a number is
        out of range, or the workload has names, but not one for each operation.

    Example:
      >>> from jprune.hardware import machines, networks
      >>> found = summary(networks.vit_base(), machines.tpu_v5e())
      >>> row = found["operations"][2]
      >>> row["name"], row["limited_by"], row["multiply_adds"]
      ('attention_scores', 'multipliers', 357663744.0)
    """
    each = jax.device_get(cost_per_operation(workload, machine))
    measured = {
        "multiply_adds": np.asarray(workload_lib.multiply_adds_per_operation(workload)),
        **{k: getattr(each, k) for k in ("cycles", "seconds", "energy", "dram_bytes")},
    }
    total = {k: float(np.sum(v, dtype=np.float64)) for k, v in measured.items()}
    repeats = np.asarray(workload.repeats)
    kinds = "input", "weight", "lsb", "output"
    widths = {k: np.asarray(getattr(workload, f"{k}_bits")) for k in kinds}
    rows = [
        {
            "name": name,
            "repeats": float(repeats[i]),
            "bits": {k: float(v[i]) for k, v in widths.items()},
            **{k: float(v[i]) for k, v in measured.items()},
            "limited_by": RESOURCES[int(each.bound[i])],
            "share_of_time": _share(each.seconds[i], total["seconds"]),
            "share_of_energy": _share(each.energy[i], total["energy"]),
        }
        for i, name in enumerate(operation_names(workload))
    ]
    return {"machine": describe(machine), "operations": rows, "total": total}


def describe(machine: Accelerator) -> str:
    """Returns a line on a machine: its preset, if it is one, and what limits it most.

    Args:
      machine: the accelerator, its values known.

    Returns:
      Text such as `tpu_v5e: 4 arrays of 128 x 128 multipliers at 1.503 GHz, ...`.

    Example:
      >>> from jprune.hardware import machines
      >>> describe(machines.spatten()._replace(sram=196))
      '2 arrays of 64 x 8 multipliers at 1 GHz, 196 KiB of SRAM, 512 GB/s of DRAM'
    """
    found = {k: np.asarray(v, np.float32) for k, v in machine._asdict().items()}
    same = (name for name in PRESETS if _equal(found, getattr(machines, name)()))
    name = next(same, "")
    big = found["sram"] >= 1024
    sram = f"{found['sram'] / 1024:.4g} MiB" if big else f"{found['sram']:.4g} KiB"
    arrays, rows, columns, clock, dram = (
        f"{found[k]:.4g}"
        for k in ("arrays", "rows", "columns", "clock", "dram_bandwidth")
    )
    several = "an array" if arrays == "1" else f"{arrays} arrays"
    return (
        f"{name + ': ' if name else ''}{several} of {rows} x {columns} multipliers at "
        f"{clock} GHz, {sram} of SRAM, {dram} GB/s of DRAM"
    )


def _equal(found: dict[str, np.ndarray], preset: Accelerator) -> bool:
    return all(np.array_equal(found[k], v) for k, v in preset._asdict().items())


def operation_names(workload: Workload) -> list[str]:
    """Returns what to call each operation: its name, or else its number.

    Args:
      workload: the operations.

    Returns:
      One text for each operation.

    Raises:
      PruningError: if there are names, but not one for each operation.
    """
    check_names(workload)
    names = workload.names or [""] * len(workload.m)
    return [name or f"operation {i}" for i, name in enumerate(names)]


def _share(part: Any, whole: float) -> float:
    return float(part) / whole if whole else 0.0


def print_summary(workload: Workload, machine: Accelerator) -> None:
    """Prints `summary` as a table with a row for each operation, and the total.

    The title says which machine it is, the cells have their units. Numbers are rounded
    to three digits, so columns may not add up to the total; `summary` has all. At less
    than 100 characters, some columns are left out.

    Args:
      workload: the operations.
      machine: the accelerator.

    Raises:
      ImportError: if rich is not installed.
      PruningError: as in `summary`.

    Example:
      >>> from jprune.hardware import machines, networks
      >>> net, chip = networks.attention(128, 128, 12), machines.tpu_v5e()
      >>> print_summary(net, chip)  # doctest: +NORMALIZE_WHITESPACE, +ELLIPSIS
      2 operations on tpu_v5e: 4 arrays of 128 x 128 multipliers at 1.503 GHz, ...
                         multiply-
       operation              adds    time  time %  ...
       ───...
       attention_scores      12.6M  255 ns   51.6%  ...
       attention_values      12.6M  240 ns   48.4%  ...
       ───...
       all                   25.2M  496 ns  ...
    """
    found = summary(workload, machine)
    rows, total = found["operations"], found["total"]

    def column(title: str, key: str, text: Any, **more: Any) -> Column:
        return Column(title, [text(row[key]) for row in rows], **more)

    def measured(title: str, key: str, unit: str) -> Column:
        text = functools.partial(quantity, unit=unit)
        return column(title, key, text, footer=text(total[key]))

    macs, cycles = (rounded(total[key]) for key in ("multiply_adds", "cycles"))
    columns = [
        column("operation", "name", str, footer="all", justify="left"),
        column("times", "repeats", rounded, dispensable=True),
        column("bits", "bits", _bits, dispensable=True),
        column("multiply-\nadds", "multiply_adds", rounded, footer=macs),
        measured("time", "seconds", "s"),
        column("time %", "share_of_time", "{:.1%}".format),
        measured("energy", "energy", "J"),
        column("energy %", "share_of_energy", "{:.1%}".format, dispensable=True),
        measured("DRAM", "dram_bytes", "B"),
        column("limited by", "limited_by", str, justify="left"),
        column("cycles", "cycles", rounded, footer=cycles, dispensable=True),
    ]
    joined = np.any(np.asarray(workload.joined) * np.asarray(machine.pipelined) > 0)
    note = _NOTE + (_JOINED if joined else "")
    title = f"{_count(len(rows), 'operation')} on {found['machine']}"
    print_table(columns, note, "print_summary", title=title)


def _bits(widths: dict[str, float]) -> str:
    low = f"+{widths['lsb']:g}" if widths["lsb"] else ""
    each = [f"{widths[k]:g}" for k in ("input", "weight", "output")]
    each[1] += low
    return each[0] if len(set(each)) == 1 else "/".join(each)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n != 1 else "")
