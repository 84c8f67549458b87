"""Events during training: their schedule, and branches on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base


@jax.tree_util.register_static
class Interval(NamedTuple):
    """The steps in which a schedule changes; in a state, static and without leaves.

    Attributes:
      begin: first step at which the schedule may leave its initial value.
      end: first step with its final value.
    """

    begin: int
    end: int


def interval_of(schedule: Any) -> Interval | None:
    """Returns the interval of a schedule with `begin` and `end`, else None."""
    if callable(schedule) and hasattr(schedule, "begin") and hasattr(schedule, "end"):
        return Interval(schedule.begin, schedule.end)
    return None


def interval_in(state: Any) -> Interval | None:
    """Returns the interval that contains all those in a state, or None.

    Args:
      state: any pytree, such as the state of a pruner.

    Returns:
      The smallest such interval; None if the state has none.

    Example:
      >>> interval_in({"a": Interval(5, 10), "b": (jnp.zeros(3), Interval(0, 7))})
      Interval(begin=0, end=10)
    """

    def is_interval(x: Any) -> bool:
        return isinstance(x, Interval)

    leaves = jax.tree.leaves(state, is_leaf=is_interval)
    if not (found := [x for x in leaves if is_interval(x)]):
        return None
    return Interval(min(x.begin for x in found), max(x.end for x in found))


def check(every: int | None, begin: int, end: int | None) -> None:
    """Checks the arguments that schedule events.

    Args:
      every: number of updates between events; None for no events.
      begin: first update with an event, counted from 0.
      end: last update with an event; None for no end.

    Raises:
      PruningError: if the numbers are out of range.
    """
    if every is not None and every < 1:
        raise base.PruningError(f"every is a number of updates >= 1; got {every}.")
    if begin < 0 or (end is not None and end < begin):
        raise base.PruningError(
            f"begin and end need 0 <= begin <= end; got {begin} and {end}."
        )


def is_due(
    count: base.Scalar, every: int | None, begin: int, end: int | None
) -> base.Scalar:
    """Returns whether an update has an event: begin, begin + every, ... and end.

    Args:
      count: number of the update, counted from 0.
      every: number of updates between events; None for no events, where the result
        is a Python False, so that no branch is compiled.
      begin: first update with an event.
      end: last update with an event; None for no end.

    Returns:
      A boolean scalar.

    Example:
      >>> [t for t in range(30) if is_due(t, 10, 5, 22)]
      [5, 15, 22]
    """
    if every is None:
        return False
    count = jnp.asarray(count)
    due = (count >= begin) & ((count - begin) % every == 0)
    return due if end is None else (due & (count <= end)) | (count == end)


def when(due: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Returns `yes()` if `due`, else `no()`: `lax.cond` inside a trace.

    Outside of a trace this is a Python `if`, because `lax.cond` would compile both
    branches at every call: its cache does not recognise equal closures.

    Args:
      due: boolean scalar.
      yes: function that is called if `due` is True.
      no: function that is called otherwise; returns the same structure, shapes and
        types.

    Returns:
      The result of the function that was called.
    """
    if isinstance(due, jax.core.Tracer):
        return lax.cond(due, yes, no)
    return yes() if due else no()
