"""The numbers that `keep_*` links compare with: of a schedule, of budget, threshold."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base, checks, counting, ordering, precision


def value_at(value: base.Sparsity, step: base.Scalar) -> Any:
    """The value at a step; NumPy scalars, whose range is narrow, as Python numbers."""
    value = value(step) if callable(value) else value
    is_numpy = isinstance(value, np.generic | np.ndarray)
    return value.item() if is_numpy and value.ndim == 0 else value


def check_budget(budget: Any) -> None:
    """Checks a budget: a number >= 0, an array or a schedule.

    Args:
      budget: the budget; arrays and schedules are not evaluated.

    Raises:
      PruningError: if it is none of these.
    """
    if callable(budget) or isinstance(budget, jax.Array):
        return
    if not checks.is_number(budget) or not 0 <= budget < float("inf"):
        raise base.PruningError(f"A budget is a number >= 0; got {budget!r:.80}.")


def whole(budget: Any) -> Any:
    """Returns the nearest integer, exact for Python numbers and floats of arrays.

    Args:
      budget: number or array, >= 0. A traced one that is negative or NaN becomes a
        budget for everything, and `checkify` reports it.

    Returns:
      A Python integer, or a `Total` for an array.

    Raises:
      PruningError: if the budget is negative or NaN and not traced, or no number.
    """
    check_budget(budget)
    if not isinstance(budget, jax.Array):
        return round(budget)
    checks.check_value(lambda b: b >= 0, budget, "A budget is >= 0; got {value}.")
    floating = jnp.issubdtype(budget.dtype, jnp.floating)
    rounded = counting.nearest(budget) if floating else counting.total(budget)
    pick = functools.partial(jnp.where, budget >= 0)
    return jax.tree.map(pick, rounded, counting.total(2**47 - 1))


def check_threshold(threshold: Any) -> None:
    """Checks a threshold: a number that a float64 holds, an array or a schedule.

    Args:
      threshold: the threshold; arrays and schedules are not evaluated.

    Raises:
      PruningError: if it is none of these.
    """
    if callable(threshold) or isinstance(threshold, jax.Array):
        return
    try:
        valid = checks.is_number(threshold) and not math.isnan(float(threshold))
    except OverflowError:  # of an integer such as 10**400
        valid = False
    if not valid:
        raise base.PruningError(
            f"A threshold is a number in the range of float64; got {threshold!r:.80}."
        )


def above(x: jax.Array, threshold: Any) -> jax.Array:
    """Returns x > t, compared as integers, so that nothing is flushed to zero.

    Args:
      x: real array.
      threshold: number t, or array of no axes. A traced NaN lies below everything, and
        `checkify` reports it.

    Returns:
      Booleans of the shape of `x`.

    Raises:
      PruningError: if the threshold is NaN and not traced, or no number.
    """
    check_threshold(threshold)
    t = threshold
    if isinstance(t, jax.Array) and jnp.issubdtype(t.dtype, jnp.floating):
        is_number = lambda t: t == t  # noqa: E731
        checks.check_value(is_number, t, "A threshold is a number; got {value}.")
        t = jnp.where(is_number(t), t, -jnp.inf)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return _integers_above(x, t)
    x = precision.wide(x)
    # A known number is converted on the host, which keeps subnormal numbers.
    t = t.astype(x.dtype) if isinstance(t, jax.Array) else jnp.asarray(t, x.dtype)
    return ordering.ordered_bits(x) > ordering.ordered_bits(t)


def _integers_above(x: jax.Array, t: Any) -> jax.Array:
    """Whether integers are above a threshold that may be outside of their type."""
    least, most = int(jnp.iinfo(x.dtype).min), int(jnp.iinfo(x.dtype).max)
    if not isinstance(t, jax.Array):
        whole = math.floor(min(max(t, least - 1), most))
        if whole < least:
            return jnp.ones_like(x, bool)
        return x > np.array(whole, x.dtype)
    if jnp.issubdtype(t.dtype, jnp.integer):
        own = jnp.iinfo(t.dtype)
        ends = max(least, int(own.min)), min(most, int(own.max))
        low, high = (np.array(end, t.dtype) for end in ends)
        return (t < low) | (x > jnp.clip(t, low, high).astype(x.dtype))
    t = precision.wide(t)
    within = (t >= least) & (t < float(most + 1))
    whole = jnp.where(within, jnp.floor(t), 0).astype(x.dtype)
    return (t < least) | (within & (x > whole))
