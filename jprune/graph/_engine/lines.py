"""The user's line that is being recorded, for reasons why axes are frozen."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

_line: ContextVar[Callable[[], str] | None] = ContextVar("line", default=None)


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
