"""Hard and smooth rounding, maxima and choices: one cost code computes with either.

The smooth versions are homogeneous of degree one where the hard ones are, so results do
not depend on units: a temperature of 0.05 is about five percent of a tile or of a time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_TINY = 1e-30  # below every time and byte; keeps derivatives at 0 finite


class Arithmetic(NamedTuple):
    """The operations in which the hard and the smooth cost differ.

    Attributes:
      whole: rounds a positive size down to a whole number.
      tiles: rounds a positive number of tiles, the last of which may be partial, up.
      larger: maximum of two or more times.
      weights: converts costs of choices to weights that sum to 1: how much of each is
        taken.
    """

    whole: Callable[[Any], Any]
    tiles: Callable[[Any], Any]
    larger: Callable[..., Any]
    weights: Callable[[Sequence[Any]], list[Any]]

    def smaller(self, a: Any, b: Any) -> Any:
        """Returns the smaller of two: a + b less the larger."""
        return a + b - self.larger(a, b)

    def best(self, costs: Sequence[Any], values: Sequence[Any]) -> Any:
        """Returns the value of the choice with the lowest cost."""
        weights = self.weights(costs)
        return sum(w * v for w, v in zip(weights, values, strict=True))


def hard() -> Arithmetic:
    """Returns whole tiles, exact maxima and the single best choice."""
    return Arithmetic(_floor, jnp.ceil, _largest, _first_least)


def smooth(temperature: Any) -> Arithmetic:
    """Returns differentiable versions.

        whole(x)     = x
        tiles(x)     = (x + 1 + sqrt((x - 1)^2 + T^2)) / 2
        larger(a, b) = (a + b + sqrt((a - b)^2 + T^2 a b)) / 2
        weights(c)   = softmax(-log(c) / T)

    So there is at least one tile, and the number is exact where sizes divide; elsewhere
    the smooth version lies below the hard one by part of the last tile.

    Args:
      temperature: T, positive, may be traced; the hard maximum is its limit at 0.

    Returns:
      An `Arithmetic`.
    """

    def tiles(x: Any) -> Any:
        return (x + 1 + jnp.sqrt((x - 1) ** 2 + temperature**2)) / 2

    def larger(*times: Any) -> Any:
        most = times[0]
        for t in times[1:]:
            root = jnp.sqrt((most - t) ** 2 + temperature**2 * most * t + _TINY)
            most = (most + t + root) / 2
        return most

    def weights(costs: Sequence[Any]) -> list[Any]:
        logs = [-jnp.log(c + _TINY) / temperature for c in costs]
        top = jax.lax.stop_gradient(_largest(*logs))
        powers = [jnp.exp(x - top) for x in logs]
        total = sum(powers)
        return [p / total for p in powers]

    return Arithmetic(lambda x: x, tiles, larger, weights)


def _largest(*times: Any) -> Any:
    most = times[0]
    for t in times[1:]:
        most = jnp.maximum(most, t)
    return most


def _floor(x: Any) -> Any:
    return jnp.floor(x + 1e-3)  # 0.3 * 10 is slightly below 3


def _first_least(costs: Sequence[Any]) -> list[Any]:
    least = -_largest(*(-c for c in costs))
    found, free = [], 1.0
    for c in costs:
        taken = jnp.where(c <= least, free, 0.0)
        found.append(taken)
        free = free - taken
    return found
