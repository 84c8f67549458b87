"""Evaluates dimension terms: values of products and concatenations from leaves."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.sizes import is_symbolic


def evaluate(
    d: Dim,
    of_leaf: Callable[[Dim], Any],
    times: Callable[[Any, Any], Any],
    plus: Callable[[Any, Any], Any],
) -> Any:
    """Returns the value of a term, computed from the values of its leaves.

    Args:
      d: the term.
      of_leaf: `leaf -> value`.
      times: value of a product from those of its outer and its inner factor.
      plus: value of a concatenation from those of its first and its second piece.
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


def size_of(d: Dim, sizes: Mapping[Dim, Any]) -> Any:
    """Returns the size of a term when some of its leaves have other sizes.

    Args:
      d: the term.
      sizes: leaf -> its size, perhaps fractional or traced; other leaves are whole.
    """
    return evaluate(
        d, lambda x: sizes.get(x, x.size), lambda a, b: a * b, lambda a, b: a + b
    )


def entries(d: Dim, kept: Mapping[Dim, np.ndarray]) -> Any:
    """Returns the indices of a term's kept entries, or None if all are kept.

    Args:
      d: the term.
      kept: leaf -> bools `(size,)`; all entries of other leaves are kept.
    """
    if not any(x in kept for x in dims_lib.leaves_of(d)):
        return None
    module: Any = jnp if is_symbolic(d.size) else np

    def of_leaf(x: Dim) -> tuple[Any, Any]:
        left = np.flatnonzero(kept[x]) if x in kept else module.arange(x.size)
        return left, x.size

    found, _ = evaluate(
        d,
        of_leaf,
        lambda a, b: ((a[0][:, None] * b[1] + b[0]).reshape(-1), a[1] * b[1]),
        lambda a, b: (module.concatenate([a[0], b[0] + a[1]]), a[1] + b[1]),
    )
    return found


def positions(d: Dim, one: Dim) -> list[np.ndarray]:
    """Returns which entry of a leaf each position of a term belongs to.

    Args:
      d: the term.
      one: the leaf.

    Returns:
      One int array `(d.size,)` for each occurrence of the leaf in the term: the index
      of the leaf's entry, or -1 where a position does not belong to the leaf.
    """
    one = dims_lib.resolve(one)
    if dims_lib.resolve(d) is one:  # the common case: the leaf is the whole axis
        return [np.arange(one.size)]
    count = sum(x is one for x in dims_lib.leaves_of(d))
    return [_occurrence(d, one, which) for which in range(count)]


def _occurrence(d: Dim, one: Dim, which: int) -> np.ndarray:
    seen = itertools.count()

    def of_leaf(x: Dim) -> np.ndarray:
        if x is one and next(seen) == which:
            return np.arange(x.size)
        return np.full(x.size, -1)

    return evaluate(
        d,
        of_leaf,
        # At most one of the two factors contains this occurrence.
        lambda a, b: np.maximum(a[:, None], b[None, :]).reshape(-1),
        lambda a, b: np.concatenate([a, b]),
    )
