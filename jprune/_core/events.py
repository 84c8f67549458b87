"""When something happens in training: checked, asked, and acted on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base


def check(every: int | None, begin: int, end: int | None) -> None:
    """Refuses events that cannot be meant.

    Args:
      every: updates from one event to the next; None for no event.
      begin: the first update with an event.
      end: the last; None for no end.

    Raises:
      PruningError: if the numbers are out of range.
    """
    if every is not None and every < 1:
        raise base.PruningError(f"every counts updates, from 1 on; got {every}.")
    if begin < 0 or (end is not None and end < begin):
        raise base.PruningError(f"0 <= begin <= end; got {begin} and {end}.")


def is_due(
    count: base.Scalar, every: int | None, begin: int, end: int | None
) -> base.Scalar:
    """Returns whether an update has an event: begin, begin + every, ... and end.

    Args:
      count: the update's number, from 0 on.
      every: updates from one event to the next; None for no event, which is a
        plain False, so that nothing is compiled for it.
      begin: the first update with an event.
      end: the last; None for no end.

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
    """Returns `yes()` where `due`, else `no()`: `lax.cond` inside a trace.

    Outside of one it is a plain `if`: there `lax.cond` would compile both branches
    anew at every call, because its cache does not know that two closures are the
    same.

    Args:
      due: a boolean scalar.
      yes: what to return if it is True.
      no: what to return if it is False; of the same structure, shapes and types.

    Returns:
      The one or the other.
    """
    if isinstance(due, jax.core.Tracer):
        return lax.cond(due, yes, no)
    return yes() if due else no()
