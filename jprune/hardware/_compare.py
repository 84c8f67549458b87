"""A table of designs: what a workload costs on several machines, or pruned or not."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jprune._core import base
from jprune._core.quantities import quantity
from jprune._core.tables import Column, print_table
from jprune.hardware._cost import Cost

_NOTE = (
    "Ratios are to the first row, and numbers are rounded. Power is energy over time. "
    "Areas are as good as the machine's constants: see `machines.sources`. A - stands "
    "for what is not known."
)


def print_comparison(costs: Mapping[str, Cost], *, title: str = "") -> None:
    """Prints the costs of several designs as a table, with ratios to the first.

    A row for each design: time, energy, DRAM traffic, mean power and area. A design is
    whatever has a cost, such as one workload on several machines, or several pruned
    forms of it on one machine.

    Args:
      costs: name of each design -> its cost, of scalars; the first is what the others
        are compared with.
      title: text above the table, such as the name of the workload.

    Raises:
      ImportError: if rich is not installed.
      PruningError: if there is no cost, or one is of several designs or operations.

    Example:
      >>> from jprune import hardware as hw
      >>> net = hw.networks.bert_base(128)
      >>> chips = {"A100": hw.machines.a100(), "H100": hw.machines.h100()}
      >>> costs = {name: hw.cost(net, chip) for name, chip in chips.items()}
      >>> print_comparison(costs)  # doctest: +NORMALIZE_WHITESPACE, +ELLIPSIS
       design    time  ratio   energy  ratio ...
       ───...
       A100    358 µs   1.00  40.5 mJ   1.00 ...
       H100    323 µs   0.90  46.2 mJ   1.14 ...
    """
    if not costs:
        raise base.PruningError("A comparison needs at least one cost; got none.")
    for name, each in costs.items():
        _check(name, each)
    rows = jax.device_get([*costs.values()])

    def measured(title: str, value: Callable[[Cost], Any], unit: str) -> list[Column]:
        found = [float(value(row)) for row in rows]
        ratios = [f"{x / found[0]:.2f}" if found[0] else "-" for x in found]
        cells = [quantity(x, unit) for x in found]
        return [Column(title, cells), Column("ratio", ratios)]

    columns = [
        Column("design", list(costs), justify="left"),
        *measured("time", lambda c: c.seconds, "s"),
        *measured("energy", lambda c: c.energy, "J"),
        *measured("DRAM", lambda c: c.dram_bytes, "B"),
        Column("power", [_power(row) for row in rows], dispensable=True),
        Column("area", [_area(row) for row in rows], dispensable=True),
    ]
    print_table(columns, _NOTE, "print_comparison", title=title)


def _power(found: Cost) -> str:
    seconds = float(found.seconds)
    return quantity(float(found.energy) / seconds, "W") if seconds else "-"


def _area(found: Cost) -> str:
    area = float(found.area)
    text = f"{area:,.0f}" if area >= 100 else f"{area:#.3g}"
    return f"{text} mm²" if area else "-"


def _check(name: str, found: Any) -> None:
    if not isinstance(found, Cost):
        raise base.PruningError(
            f"{name!r} needs a Cost, as `hw.cost(workload, machine)` returns it; got "
            f"{type(found).__name__}."
        )
    shape = np.shape(found.seconds)
    if shape:
        raise base.PruningError(
            f"{name!r} has costs of shape {shape}: give each design its own name, as "
            "in `jax.tree.map(lambda x: x[i], costs)`."
        )
