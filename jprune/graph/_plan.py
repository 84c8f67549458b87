"""A plan: which entries of which axes of which leaves are kept, as plain data."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.hosting import on_host, put_like
from jprune.graph._groups import check_known
from jprune.graph._trace import Graph

Plan = dict[str, dict[int, np.ndarray]]
"""Path of a leaf -> axis -> ascending numbers of the entries that are kept.

All leaves are named, those that stay whole with no axes: of two leaves `w` and
`block/w` the one is not taken for the other in an optimizer's state.
"""

Keep = Mapping[str, Any]
"""Name of a group -> the entries that are kept: numbers, or a bool for each."""


def make_plan(graph: Graph, keep: Keep) -> Plan:
    """Returns the plan that keeps some entries of some groups.

    Args:
      graph: the recorded function.
      keep: group name -> the kept entries, as numbers or as a bool for each. Groups
        that are left out are kept whole.

    Returns:
      A `Plan`: for each leaf the axes that change.

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
    kept = {id(graph.groups[n].dim): m for n, m in masks_of(graph, keep).items()}
    plan: Plan = {path: {} for path in graph.axes}
    for path, axes in graph.axes.items():
        for axis, d in enumerate(axes):
            mask = mask_of(d, kept)
            if mask is not None:
                plan[path][axis] = np.flatnonzero(mask)
    return plan


def masks_of(graph: Graph, keep: Keep) -> dict[str, np.ndarray]:
    """Returns the kept entries of groups as a bool for each, checked.

    Args:
      graph: the recorded function.
      keep: as in `make_plan`.

    Returns:
      Group name -> bools.

    Raises:
      PruningError: as in `make_plan`.
    """
    check_known(graph.groups, keep)
    found = {}
    for name, entries in keep.items():
        size, given = graph.groups[name].size, np.asarray(entries)
        if given.dtype == bool and given.shape != (size,):
            raise base.PruningError(
                f"The group {name} has {size} entries; got {given.shape} bools."
            )
        mask = given
        if given.dtype != bool:
            if given.size and not (given.min() >= 0 and given.max() < size):
                raise base.PruningError(
                    f"The group {name} has {size} entries; got {given.tolist()}."
                )
            mask = np.zeros(size, bool)
            mask[given.astype(int)] = True
        if not mask.any():
            raise base.PruningError(
                f"The group {name} would lose all its {size} entries."
            )
        found[name] = mask
    return found


def mask_of(d: Dim, kept: Mapping[int, Any]) -> Any:
    """Returns the kept entries of a dim as bools, or None if none is removed."""
    if not any(id(x) in kept for x in dims_lib.leaves_of(d)):
        return None
    return layout.evaluate(
        d,
        lambda x: kept[id(x)] if id(x) in kept else np.ones(x.size, bool),
        lambda a, b: (a[:, None] & b[None, :]).reshape(-1),
        lambda a, b: _concatenate(a, b),
    )


def _concatenate(a: Any, b: Any) -> Any:
    both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return (np if both else jnp).concatenate([a, b])


def keep_of(graph: Graph, plan: Plan) -> dict[str, np.ndarray]:
    """Returns the kept entries of each group that a plan shrinks.

    Args:
      graph: of the same params, perhaps for other inputs.
      plan: from `make_plan`, or from a file.

    Returns:
      Group name -> bools.

    Raises:
      PruningError: if the plan does not fit the graph: a path or an axis that does
        not exist, entries out of range, or axes that must shrink together and do not.
    """
    for path, axes in plan.items():
        if path not in graph.axes:
            raise base.PruningError(f"The plan names {path!r}, which params lack.")
        for axis, entries in axes.items():
            if not 0 <= axis < len(graph.axes[path]):
                raise base.PruningError(f"{path} has no axis {axis}.")
            size, given = graph.axes[path][axis].size, np.asarray(entries)
            if given.size == 0 or given.min() < 0 or given.max() >= size:
                raise base.PruningError(
                    f"{path}[{axis}] has {size} entries; the plan keeps {entries}."
                )
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
    again = make_plan(graph, found)
    _check_same(plan, again, graph)
    return found


def _check_same(plan: Plan, again: Plan, graph: Graph) -> None:
    for path, axes in graph.axes.items():
        for axis, d in enumerate(axes):
            given, needed = (p.get(path, {}).get(axis) for p in (plan, again))
            if given is None and needed is None:
                continue
            full = np.arange(d.size)
            given = full if given is None else given
            needed = full if needed is None else needed
            if not np.array_equal(np.asarray(given), needed):
                why = {x.frozen for x in dims_lib.leaves_of(d) if x.frozen}
                raise base.PruningError(
                    f"The plan keeps {len(given)} entries of {path}[{axis}] that do "
                    f"not go together with the rest: {len(needed)} others of {d.size} "
                    f"would. {'Frozen: ' + '; '.join(why) if why else ''}"
                )


def slice_tree(plan: Plan, full: Any) -> Any:
    """Returns a tree with the entries that a plan keeps.

    Args:
      plan: which.
      full: params, or another tree whose paths are those of params or end in them:
        optimizer states, masks, gradients. Leaves of other names stay.

    Returns:
      The same tree with smaller arrays.

    Raises:
      PruningError: if a leaf at a path of the plan is too small for it.
    """

    def leaf(path: str, x: Any) -> Any:
        cut = {}
        for axis, kept in _axes_for(plan, path).items():
            if np.ndim(x) <= axis or np.shape(x)[axis] <= kept[-1]:
                if np.size(x) == 1 or (np.ndim(x) > axis and np.shape(x)[axis] == 1):
                    continue  # a mask that broadcasts, a placeholder
                raise base.PruningError(
                    f"{path} has shape {np.shape(x)}; the plan keeps entry "
                    f"{kept[-1]} of axis {axis}."
                )
            elif np.shape(x)[axis] != 1:
                cut[axis] = kept
        return _taken(x, cut) if cut else x

    taken, structure = jax.tree.flatten(tree.map_with_path(leaf, full))
    return structure.unflatten(put_like(taken, jax.tree.leaves(full)))


def _taken(x: Any, cut: Mapping[int, np.ndarray]) -> Any:
    """Entries of some axes; on the host where that is possible: shapes are many."""
    host = on_host(x)
    found: Any = x if host is None else host
    # Outer axes first: NumPy copies whole rows along them, single entries along the
    # last one, of which fewer are left then.
    for axis, kept in sorted(cut.items()):
        found = (np if host is not None else jnp).take(found, kept, axis=axis)
    return found


def expand(plan: Plan, small: Any, full: Any) -> Any:
    """Puts small arrays back where they were cut from.

    Args:
      plan: which entries they are.
      small: from `slice_tree`.
      full: the tree to put them into, such as zeros or the params before.

    Returns:
      The full tree with the small one's entries.
    """

    def leaf(path: str, x: Any, y: Any) -> Any:
        axes = _axes_for(plan, path)
        if not axes or np.shape(x) == np.shape(y):
            return x
        places = [axes.get(i, np.arange(n)) for i, n in enumerate(np.shape(y))]
        return jnp.asarray(y).at[np.ix_(*places)].set(x)

    return tree.map_with_path(leaf, small, full)


def _axes_for(plan: Plan, path: str) -> dict[int, np.ndarray]:
    """What a plan says of a path, or of the longest of its paths that ends it.

    An optimizer's state has paths like `mu/dense/kernel`; made for a part of the
    params, it lacks the part's name: `params/dense/kernel` is meant by it then.
    """
    if path in plan:
        return plan[path]
    parts = path.split("/")
    ends = ["/".join(parts[i:]) for i in range(1, len(parts))]
    for rest in ends:
        if rest in plan:
            return plan[rest]
    for rest in (path, *ends):
        if "/" not in rest:
            break
        found = [axes for name, axes in plan.items() if name.endswith(f"/{rest}")]
        if len(found) == 1:
            return found[0]
    return {}


def compose(first: Plan, then: Plan) -> Plan:
    """Returns one plan for two, the second made for what the first leaves.

    Args:
      first: of the full params.
      then: of the small ones.

    Returns:
      A plan of the full params.
    """
    found: Plan = {path: dict(axes) for path, axes in first.items()}
    for path, axes in then.items():
        for axis, kept in axes.items():
            before = first.get(path, {}).get(axis)
            new = kept if before is None else np.asarray(before)[kept]
            found.setdefault(path, {})[axis] = new
    return found


def dumps(plan: Plan) -> str:
    """Returns a plan as JSON."""
    return json.dumps(
        {
            path: {str(axis): np.asarray(kept).tolist() for axis, kept in axes.items()}
            for path, axes in plan.items()
        }
    )


def loads(text: str) -> Plan:
    """Returns the plan of a JSON text from `dumps`.

    Args:
      text: the JSON text.

    Returns:
      The plan.

    Raises:
      PruningError: if the text is no plan.
    """
    try:
        return {
            path: {int(a): _ascending(kept) for a, kept in axes.items()}
            for path, axes in json.loads(text).items()
        }
    except (AttributeError, TypeError, ValueError) as e:
        raise base.PruningError(f"This is no plan: {e}") from e


def _ascending(kept: Sequence[int]) -> np.ndarray:
    found = np.asarray(kept)
    integers = found.dtype.kind == "i" and found.ndim == 1
    if not integers or found[0] < 0 or np.any(np.diff(found) <= 0):
        raise ValueError(f"entries have to be integers that ascend; got {kept}")
    return found.astype(np.int64)


def shapes(plan: Plan, params: Any) -> Any:
    """Returns the shapes of params after a plan, as `jax.ShapeDtypeStruct`s."""

    def leaf(path: str, x: Any) -> jax.ShapeDtypeStruct:
        axes = plan.get(path, {})
        shape = [len(axes.get(i, range(n))) for i, n in enumerate(np.shape(x))]
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

    return tree.map_with_path(leaf, params)


def widths(plan: Plan, params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the new shapes of the leaves that a plan changes, by path.

    For modules that are written anew, with other numbers of features or heads: their
    params then take the small arrays.

    Args:
      plan: which entries are kept.
      params: full arrays, or their shapes.

    Returns:
      Path -> shape.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> widths({"in": {1: np.array([0, 2])}, "out": {0: np.array([0, 2])}}, params)
      {'in': (3, 2), 'out': (2, 2)}
    """
    found = tree.by_path(shapes(plan, params))
    return {path: x.shape for path, x in found.items() if plan.get(path)}
