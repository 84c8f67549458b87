"""Where the entries of a dimension lie: values of terms from those of their leaves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.dims import Dim


def evaluate(
    d: Dim,
    of_leaf: Callable[[Dim], Any],
    times: Callable[[Any, Any], Any],
    plus: Callable[[Any, Any], Any],
) -> Any:
    """Returns the value of a term from those of its leaves.

    Args:
      d: the term.
      of_leaf: the value of a leaf.
      times: of an outer and an inner factor's values, the product's.
      plus: of two values, one after the other.
    """
    d = dims_lib.resolve(d)
    if d.form == "leaf":
        return of_leaf(d)
    if d.form == "product":
        parts, join = dims_lib.factors_of(d), times
    else:
        parts, join = dims_lib.pieces_of(d), plus
    values = [evaluate(p, of_leaf, times, plus) for p in parts]
    found = values[0]
    for value in values[1:]:
        found = join(found, value)
    return found


def positions(d: Dim, one: Dim) -> list[np.ndarray]:
    """Returns where a leaf's entries lie in a term.

    Args:
      d: the term.
      one: the leaf.

    Returns:
      For each time that the leaf occurs an int array of the term's size: which
      entry of the leaf a place belongs to, or -1.
    """
    one = dims_lib.resolve(one)
    if dims_lib.resolve(d) is one:  # as nearly always: the whole axis
        return [np.arange(one.size)]
    count = sum(x is one for x in dims_lib.leaves_of(d))
    found = []
    for which in range(count):
        seen = iter(range(count))

        def of_leaf(x: Dim, seen: Any = seen, which: int = which) -> np.ndarray:
            if x is one and next(seen) == which:
                return np.arange(x.size)
            return np.full(x.size, -1)

        found.append(
            evaluate(
                d,
                of_leaf,
                # Of an outer and an inner factor at most one has the entries.
                lambda a, b: np.maximum(a[:, None], b[None, :]).reshape(-1),
                lambda a, b: np.concatenate([a, b]),
            )
        )
    return found
