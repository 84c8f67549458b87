"""Errors of choices: which groups stand in the way of a target."""

from collections.abc import Callable, Mapping
from typing import Any

from jprune._core import base
from jprune.graph._cost import Cost
from jprune.graph._explain import explain
from jprune.graph._groups import Group
from jprune.graph._trace import Graph

_MOST = 6


def shrinkable(graph: Graph, where: Callable[[Group], bool]) -> dict[str, Group]:
    """Returns the groups that a predicate lets shrink.

    Args:
      graph: the recorded function.
      where: predicate of the groups that may shrink.

    Raises:
      PruningError: if there are none; says what stands in the way.
    """
    found = {n: g for n, g in graph.groups.items() if where(g)}
    if found:
        return found
    if not graph.groups:
        raise base.PruningError(f"No group may shrink. {explain(graph, 3)}")
    each = [f"{n} ({g.kind}, {g.size} entries)" for n, g in graph.groups.items()]
    raise base.PruningError(
        f"No group may shrink: where= or exclude= leaves out {_listed(each)}. By "
        "default, stacked layers and tables stay whole: see is_width. What else cannot "
        "shrink is in jprune.graph.explain(graph)."
    )


def too_costly(
    graph: Graph, cost: Cost, least: Mapping[str, int], budget: float
) -> base.PruningError:
    """Returns the error of a budget below the cost of the minimum sizes.

    Args:
      graph: the recorded function.
      cost: the cost.
      least: minimum sizes of the groups that may shrink.
      budget: most that the function may cost.
    """
    now = cost(graph, least)
    saved = {
        n: now - cost(graph, {**least, n: g.least})
        for n, g in graph.groups.items()
        if least.get(n, g.size) > g.least
    }
    ordered = sorted((n for n in saved if saved[n] > 0), key=lambda n: -saved[n])
    each = [_kept(graph.groups[n], least, saved[n]) for n in ordered]
    floor = cost(graph, {n: g.least for n, g in graph.groups.items()})
    text = (
        f"Even the minimum sizes cost {_number(now)}, more than the budget of "
        f"{_number(budget)}."
    )
    if each:
        text += (
            " These groups stand in the way, with what one entry of each would save: "
            f"{_listed(each)}."
        )
    if floor > budget:
        text += (
            f" With one entry in every group it would still cost {_number(floor)}: "
            "jprune.graph.explain(graph) says what cannot shrink."
        )
    return base.PruningError(
        f"{text} Remove less, or allow smaller sizes or more groups (multiple_of, "
        "min_kept, most, where, exclude)."
    )


def _kept(group: Group, least: Mapping[str, int], saved: Any) -> str:
    size = least.get(group.name, group.size)
    left_out = "" if group.name in least else " by where= or exclude="
    entries = f"keeps {size} of {group.size} entries{left_out}"
    return f"{group.name} {entries} ({_number(saved)})"


def _listed(each: list[str]) -> str:
    more = f" and {len(each) - _MOST} more" if len(each) > _MOST else ""
    return ", ".join(each[:_MOST]) + more


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{float(value):.6g}"
