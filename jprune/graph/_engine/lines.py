"""The user's line that is being recorded, for reasons why axes are frozen."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from jax.extend import source_info_util

_FRAMES = 16  # of which some belong to the framework of the model

_line: ContextVar[Callable[[], str] | None] = ContextVar("line", default=None)


def of(source_info: Any) -> str:
    """Returns the file, line and function of an equation, or "" if it has none.

    The innermost line outside of installed packages, such as the one that calls a layer
    of Flax; where there is none, the innermost line of a package other than JAX.

    Args:
      source_info: the equation's.
    """
    found = source_info_util.summarize(source_info)
    if not _installed(found):
        return found
    lines = source_info_util.summarize(source_info, num_frames=_FRAMES).splitlines()
    return next((x for x in reversed(lines) if not _installed(x)), found)


def _installed(line: str) -> bool:
    return "site-packages" in line or "dist-packages" in line


def within(where: Callable[[], str], act: Callable[..., Any], *args: Any) -> Any:
    """Returns `act(*args)`, during which `at` names a line.

    Args:
      where: returns the file, line and function; called only if they are needed.
      act: function to call.
      *args: its arguments.
    """
    token = _line.set(where)
    try:
        return act(*args)
    finally:
        _line.reset(token)


def at(what: str) -> str:
    """Returns a reason, inside of a recording with the user's line in parentheses."""
    where = _line.get()
    return what if where is None else f"{what} ({where()})"
