"""Plans: which entries of which axes of which leaves are kept, as plain data."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout
from jprune.graph._engine.dims import Dim
from jprune.graph._groups import Group, check_known
from jprune.graph._trace import Graph

Plan = dict[str, dict[int, np.ndarray]]
"""Path of a leaf -> axis -> ascending indices of the kept entries.

Leaves that stay whole are included, without axes, so that in an optimizer's state a
leaf `w` is not mistaken for a leaf `block/w`.
"""

Keep = Mapping[str, Any]
"""Name of a group -> its kept entries, as indices or as one bool for each."""


def make_plan(graph: Graph, keep: Keep) -> Plan:
    """Returns the plan that keeps the given entries of groups.

    Args:
      graph: the recorded function.
      keep: group name -> kept entries, as indices or as bools `(size,)`, such as the
        result of `choose`. Groups that are missing are kept whole.

    Returns:
      A `Plan`: for each leaf, the axes that shrink.

    Raises:
      PruningError: if there is no such group, an entry is out of range, or a group
        would lose all its entries.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> shapes = {"in": jnp.zeros((3, 4)), "out": jnp.zeros((4, 2))}
      >>> make_plan(jg.trace(mlp, shapes, jnp.zeros((5, 3))), {"in[1]": [0, 2]})
      {'in': {1: array([0, 2])}, 'out': {0: array([0, 2])}}
    """
    return plan_of(graph, entry_masks(graph, keep))


def plan_of(graph: Graph, masks: Mapping[str, np.ndarray]) -> Plan:
    """Returns the plan that belongs to checked masks of groups, as of `entry_masks`."""
    kept = {graph.groups[name].dim: mask for name, mask in masks.items()}
    plan: Plan = {path: {} for path in graph.axes}
    for path, axes in graph.axes.items():
        for axis, d in enumerate(axes):
            mask = mask_of(d, kept)
            if mask is not None:
                plan[path][axis] = np.flatnonzero(mask)
    return plan


def entry_masks(graph: Graph, keep: Keep) -> dict[str, np.ndarray]:
    """Returns name -> bools `(size,)` of kept entries, checked as by `make_plan`."""
    check_known(graph.groups, keep)
    return {n: _entry_mask(graph.groups[n], each) for n, each in keep.items()}


def _entry_mask(group: Group, entries: Any) -> np.ndarray:
    name, size, given = group.name, group.size, np.asarray(entries)
    if given.dtype == bool:
        if given.shape != (size,):
            raise base.PruningError(
                f"The group {name} has {size} entries; got bools of shape "
                f"{given.shape}."
            )
        mask = given
    else:
        if given.size and not (given.min() >= 0 and given.max() < size):
            raise base.PruningError(
                f"The group {name} has {size} entries; got the indices "
                f"{given.tolist()}."
            )
        mask = np.zeros(size, bool)
        mask[given.astype(int)] = True
    if not mask.any():
        raise base.PruningError(f"The group {name} would lose all its {size} entries.")
    if mask.sum() < group.least:
        raise base.PruningError(
            f"The group {name} would keep {mask.sum()} of {size} entries, but a router "
            f"chooses {group.least} of them at once: keep as many."
        )
    return mask


def mask_of(d: Dim, kept: Mapping[Dim, Any]) -> Any:
    """Returns the kept entries of a dim as bools, or None if all are kept.

    Args:
      d: the dim.
      kept: leaf -> bools `(size,)`, NumPy's or traced. Other leaves are kept whole.
    """
    if not any(x in kept for x in dims_lib.leaves_of(d)):
        return None
    return layout.evaluate(
        d,
        lambda x: kept[x] if x in kept else np.ones(x.size, bool),
        lambda a, b: (a[:, None] & b[None, :]).reshape(-1),
        lambda a, b: _concatenate(a, b),
    )


def _concatenate(a: Any, b: Any) -> Any:
    both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return (np if both else jnp).concatenate([a, b])


def keep_of(graph: Graph, plan: Plan) -> dict[str, np.ndarray]:
    """Returns the kept entries of each group that a plan shrinks.

    Args:
      graph: graph of the same params, perhaps for other inputs.
      plan: a plan from `make_plan` or `loads`.

    Returns:
      Group name -> bools `(size,)`.

    Raises:
      PruningError: if the plan does not fit the graph: a path or an axis that does
        not exist, entries out of range, axes that must shrink together but do not, or
        fewer experts than a router chooses.
    """
    _check_range(graph, plan)
    found: dict[str, np.ndarray] = {}
    for name, group in graph.groups.items():
        for member in group.members:
            kept = plan.get(member.path, {}).get(member.axis)
            if kept is None:
                continue
            mask = np.zeros(group.size, bool)
            for place in layout.positions(member.dim, group.dim):
                entries = place[np.asarray(kept)]
                mask[entries[entries >= 0]] = True
            if not mask.all():
                found[name] = mask & found.get(name, True)
    _check_coupled(graph, plan, found)
    return entry_masks(graph, found)


def _check_range(graph: Graph, plan: Plan) -> None:
    for path, axes in plan.items():
        if path not in graph.axes:
            raise base.PruningError(
                f"The plan has a leaf {path!r} that the traced params lack."
            )
        for axis, entries in axes.items():
            if not 0 <= axis < len(graph.axes[path]):
                raise base.PruningError(
                    f"The plan shrinks axis {axis} of {path}, which has "
                    f"{len(graph.axes[path])} axes."
                )
            size, given = graph.axes[path][axis].size, np.asarray(entries)
            if given.size == 0 or given.min() < 0 or given.max() >= size:
                raise base.PruningError(
                    f"{path}[{axis}] has {size} entries; the plan keeps {entries}."
                )


def _check_coupled(graph: Graph, plan: Plan, found: Mapping[str, np.ndarray]) -> None:
    """Checks that a plan keeps what the masks of its groups keep, on every axis."""
    kept = {graph.groups[name].dim: mask for name, mask in found.items()}
    for path, axes in graph.axes.items():
        for axis, d in enumerate(axes):
            given, mask = plan.get(path, {}).get(axis), mask_of(d, kept)
            if given is None and mask is None:
                continue
            given = np.arange(d.size) if given is None else np.asarray(given)
            needed = np.arange(d.size) if mask is None else np.flatnonzero(mask)
            if not np.array_equal(given, needed):
                why = {x.frozen for x in dims_lib.leaves_of(d) if x.frozen}
                raise base.PruningError(
                    f"The plan keeps {len(given)} of {d.size} entries of "
                    f"{path}[{axis}], but the axes that must shrink with it require "
                    f"{len(needed)} entries: {needed.tolist()}."
                    + (f" Frozen: {'; '.join(sorted(why))}." if why else "")
                )


def compose(first: Plan, then: Plan) -> Plan:
    """Returns the plan that equals two plans, applied one after the other.

    Args:
      first: plan for the full params.
      then: plan for the params that the first one leaves.

    Returns:
      A plan for the full params.

    Example:
      >>> import numpy as np
      >>> compose({"w": {0: np.array([1, 3, 5])}}, {"w": {0: np.array([0, 2])}})
      {'w': {0: array([1, 5])}}
    """
    found: Plan = {path: dict(axes) for path, axes in first.items()}
    for path, axes in then.items():
        mine = found.setdefault(path, {})  # also of a leaf that stays whole
        for axis, kept in axes.items():
            before = mine.get(axis)
            mine[axis] = kept if before is None else np.asarray(before)[kept]
    return found


def dumps(plan: Plan) -> str:
    """Returns a plan as JSON.

    Args:
      plan: the plan.

    Returns:
      JSON text: path -> axis -> kept entries, from which `loads` makes the plan again.

    Example:
      >>> import numpy as np
      >>> dumps({"w": {1: np.array([0, 2])}, "b": {}})
      '{"w": {"1": [0, 2]}, "b": {}}'
    """
    return json.dumps(
        {
            path: {str(axis): np.asarray(kept).tolist() for axis, kept in axes.items()}
            for path, axes in plan.items()
        }
    )


def loads(text: str) -> Plan:
    """Returns the plan that a JSON text describes.

    Args:
      text: JSON text from `dumps`.

    Returns:
      The plan.

    Raises:
      PruningError: if the text does not describe a plan.

    Example:
      >>> loads('{"w": {"1": [0, 2]}}')
      {'w': {1: array([0, 2])}}
    """
    try:
        return {
            path: {int(a): _ascending(kept) for a, kept in axes.items()}
            for path, axes in json.loads(text).items()
        }
    except (AttributeError, TypeError, ValueError) as e:
        raise base.PruningError(f"The text does not describe a plan: {e}") from e


def _ascending(kept: Sequence[int]) -> np.ndarray:
    found = np.asarray(kept)
    integers = found.dtype.kind == "i" and found.ndim == 1
    if not integers or found[0] < 0 or np.any(np.diff(found) <= 0):
        raise ValueError(f"entries must be ascending integers >= 0; got {kept}")
    return found.astype(np.int64)
