"""Where a plan cuts arrays that belong to a param without being like it.

Some optimizers hold other arrays than moments: L-BFGS a stack of updates, SM3 a list
with a vector for each axis. Where neither the shape nor the place in a list tells which
axes follow those of the param, as in Adafactor's means of rows and of columns, the
state is refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jprune._core import base
from jprune.graph._plan import Plan

Cut = Mapping[int, np.ndarray]
"""Axis -> the entries that are kept."""


def owner_of(plan: Plan, path: str) -> tuple[str | None, int | None]:
    """Returns the param that a leaf belongs to, by its path.

    In an optimizer's state, `mu/dense/kernel` means the leaf `dense/kernel`; if the
    state was made for a part of the params only, it may mean `params/dense/kernel`.
    `mu/dense/kernel/1` is the second of several arrays for that leaf.

    Args:
      plan: the plan, whose paths are those of the params.
      path: path of the leaf.

    Returns:
      The path of the param, None if there is none; and the number of the array.
    """
    found = _like(plan, path)
    head, _, last = path.rpartition("/")
    if found is None and head and last.isdigit():
        return _like(plan, head), int(last)
    return found, None


def _like(plan: Plan, path: str) -> str | None:
    if path in plan:
        return path
    parts = path.split("/")
    ends = ["/".join(parts[i:]) for i in range(1, len(parts))]
    for rest in ends:
        if rest in plan:
            return rest
    for rest in (path, *ends):
        if "/" not in rest:
            break
        found = [name for name in plan if name.endswith(f"/{rest}")]
        if len(found) == 1:
            return found[0]
    return None


def check_alike(leaves: Iterable[tuple[str, Any]], plan: Plan) -> None:
    """Checks that leaves of one param have one shape, as the params are not known.

    Args:
      leaves: paths with their arrays.
      plan: the plan.

    Raises:
      PruningError: if a param that is cut has leaves of several shapes, beside scalars
        and axes of size 1; names the leaves.
    """
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path, x in leaves:
        name, number = owner_of(plan, path)
        shape = np.shape(x)
        if name is None or not plan[name] or np.size(x) == 1:
            continue
        other, first = seen.setdefault(name, (path, shape))
        if number is not None or not _broadcasts(shape, first):
            raise base.PruningError(
                f"{path} has shape {shape}"
                + ("" if number is not None else f" and {other} {first}")
                + f", so it is not like the param {name!r} that the plan shrinks: pass "
                "the full params, or their shapes, as slice_tree(plan, state, params)."
            )


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in pairs)


def placed(
    path: str, shape: Sequence[int], full: Sequence[int], cut: Cut, number: int | None
) -> Cut:
    """Returns the axes of a leaf that follow axes of a param, with what is kept.

    Args:
      path: path of the leaf.
      shape: its shape.
      full: shape of the param.
      cut: axis of the param -> kept entries.
      number: which of several arrays for the param the leaf is, or None.

    Returns:
      Axis of the leaf -> kept entries.

    Raises:
      PruningError: if the sizes do not tell.
    """
    shape, full = tuple(shape), tuple(full)
    if number is not None and shape == full[number : number + 1]:
        return {0: cut[number]} if number in cut else {}  # one vector for each axis
    if _broadcasts(shape, full):
        return {i: kept for i, kept in cut.items() if shape[i] != 1}
    if len(shape) > len(full) and shape[len(shape) - len(full) :] == full:
        return {i + len(shape) - len(full): kept for i, kept in cut.items()}  # a stack
    if not {full[i] for i in cut}.intersection(shape):
        return {}  # it has no axis that could follow one that is cut
    # Means of rows and of columns, as Adafactor's: which is which depends on the order
    # of the sizes, and a cut may turn it around.
    raise base.PruningError(
        f"{path} has shape {shape}, and its param {full}: what an optimizer with such "
        "arrays makes of a smaller param is not known. Make its state anew for the "
        "small params."
    )
