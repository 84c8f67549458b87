"""Tables: what each operation of a workload costs on a machine, and what limits it."""

import functools
from typing import Any

import jax
import numpy as np

from jprune._core.quantities import quantity, rounded
from jprune._core.tables import Column, print_table
from jprune.hardware import workload as workload_lib
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._cost import RESOURCES, cost_per_operation
from jprune.hardware._workload import Workload, check_names

_NOTE = "All repeats of an operation count."
_JOINED = " A joined operation has the time that it adds to the operation before it."


def summary(workload: Workload, machine: Accelerator) -> dict[str, Any]:
    """Returns the hard cost of each operation and of all, as plain data.

    Reads values, so it blocks on the device: not for use inside `jit`.

    Args:
      workload: the operations.
      machine: the accelerator.

    Returns:
      `operations`: a list of {name, repeats, multiply_adds, cycles, seconds, energy,
      dram_bytes, limited_by, share_of_time, share_of_energy}. Energies are in J,
      `limited_by` is one of `RESOURCES`, and shares are in [0, 1]. Operations without a
      name are called by their number, from 0. `total`: {multiply_adds, cycles, seconds,
      energy, dram_bytes} of all operations.

    Raises:
      PruningError: if the arguments are not a workload and an accelerator, or the
        workload has names, but not one for each operation.

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
    rows = [
        {
            "name": name,
            "repeats": float(repeats[i]),
            **{k: float(v[i]) for k, v in measured.items()},
            "limited_by": RESOURCES[int(each.bound[i])],
            "share_of_time": _share(each.seconds[i], total["seconds"]),
            "share_of_energy": _share(each.energy[i], total["energy"]),
        }
        for i, name in enumerate(operation_names(workload))
    ]
    return {"operations": rows, "total": total}


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

    Numbers are rounded to three digits; `summary` has all.

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
    print_table(columns, _NOTE + (_JOINED if joined else ""), "print_summary")
