"""Ranges of numbers: known ones raise, traced ones are `checkify` debug checks.

A debug check acts only under `jax.experimental.checkify` and costs nothing elsewhere:
without it, a number that is out of range when the program runs is computed with.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base, checks

_LARGEST = float(np.finfo(np.float32).max)


class Range(NamedTuple):
    """The range of a number; infinity and NaN are in none.

    Attributes:
      low: smallest number.
      high: largest number.
      above: whether `low` itself is out of range.
    """

    low: float = 0.0
    high: float = _LARGEST
    above: bool = False

    def holds(self, x: Any) -> Any:
        """Returns which numbers of an array, known or traced, are in the range."""
        return ((x > self.low) if self.above else (x >= self.low)) & (x <= self.high)

    def complaint(self, found: np.ndarray) -> str | None:
        """Returns what known numbers have to be and are not; None if they are."""
        if not np.all(np.isfinite(found)) or np.any(found < 0):
            return "finite and not negative"
        if self.above and np.any(found <= self.low):
            return "positive"
        if np.any(found > self.high):
            return f"at most {self.high:g}"
        if np.any(found < self.low):
            return f"at least {self.low:g}"
        return None

    def text(self) -> str:
        """Returns what traced numbers have to be."""
        if self.high < _LARGEST:
            return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
        if self.above:
            return "positive"
        return f"finite and at least {self.low:g}"


ANY, POSITIVE = Range(), Range(above=True)
SHARE, SOME = Range(high=1.0), Range(high=1.0, above=True)
FACTOR = Range(low=1.0)


def check_fields(
    fields: Mapping[str, Any], ranges: Mapping[str, Range], what: str
) -> None:
    """Raises if a known field is out of range; reports a traced one by `checkify`.

    Known values are read, which blocks on the device.

    Args:
      fields: name -> number or array.
      ranges: name -> its range, of all fields.
      what: what has the fields, such as "an operation".

    Raises:
      PruningError: names the field, its range and its value.
    """
    known = {}
    for name, value in fields.items():
        if isinstance(value, jax.core.Tracer):
            _report(f"{name} of {what}", value, ranges[name])
        else:
            known[name] = value
    # All at once, as this runs before each cost; then one by one, for the name.
    found = {k: np.asarray(v, np.float64) for k, v in jax.device_get(known).items()}
    if not found or _all_valid(found, ranges):
        return
    for name, value in found.items():
        complaint = ranges[name].complaint(value)
        if complaint:
            raise base.PruningError(
                f"{name} of {what} has to be {complaint}; got "
                f"{_shown(value, ranges[name])}."
            )


def check_numbers(range_: Range, **numbers: Any) -> None:
    """Raises if a known number is out of range; reports a traced one by `checkify`.

    Args:
      range_: range of all of them.
      **numbers: name -> number or array; None is skipped.

    Raises:
      PruningError: names the number, its range and its value.
    """
    for name, value in numbers.items():
        if isinstance(value, jax.core.Tracer):
            _report(name, value, range_)
        elif value is not None:
            found = np.asarray(value, np.float64)
            if range_.complaint(found):
                raise base.PruningError(
                    f"{name} has to be {range_.text()}; got {_shown(found, range_)}."
                )


def check_multiple(of: int, **numbers: int) -> None:
    """Raises unless numbers are positive multiples of another.

    Args:
      of: the other number.
      **numbers: name -> number.

    Raises:
      PruningError: names the number.
    """
    for name, value in numbers.items():
        if value < 1 or value % of:
            raise base.PruningError(
                f"{name} has to be a positive multiple of {of}; got {value}."
            )


def _report(name: str, value: jax.Array, range_: Range) -> None:
    value = jnp.asarray(value, jnp.float32)
    text = f"{name} has to be {range_.text()}; got {{value}}."
    checks.check_value(range_.holds, value, text)


def _shown(found: np.ndarray, range_: Range) -> str:
    """Returns a few numbers, or of many the first that is out of range."""
    if not found.ndim:
        return f"{found.item():g}"
    if found.size <= 8:
        return str(found.tolist())
    at = tuple(np.argwhere(~range_.holds(found))[0].tolist())
    return f"{found[at].item():g} at index {', '.join(map(str, at))}"


def _all_valid(found: Mapping[str, np.ndarray], ranges: Mapping[str, Range]) -> bool:
    values = np.concatenate([x.reshape(-1) for x in found.values()])
    counts = [x.size for x in found.values()]
    low, high, above = (
        np.repeat([ranges[name][i] for name in found], counts) for i in range(3)
    )
    above = above.astype(bool)
    return bool(np.all((values >= low) & (values <= high) & ~(above & (values == low))))
