"""Designs as dicts of arrays, along the leading axis: grids, draws and fronts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base


def grid(axes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns all combinations of values, along one leading axis.

    Args:
      axes: name -> values that it takes, at least one.

    Returns:
      Name -> `(combinations,)` in float32; the last name varies fastest.

    Raises:
      PruningError: if there is no name, or a name has no sequence of values.

    Example:
      >>> grid({"rows": [8, 16], "sram": [32, 64, 128]})["rows"].tolist()
      [8.0, 8.0, 8.0, 16.0, 16.0, 16.0]
    """
    if not axes:
        raise base.PruningError("A grid needs at least one name; got none.")
    for name, values in axes.items():
        if np.ndim(values) != 1 or not np.size(values):
            raise base.PruningError(
                f"A grid needs a sequence of values for each name; {name!r} has "
                f"{values!r}."
            )
    found = np.meshgrid(*axes.values(), indexing="ij")
    each = zip(axes, found, strict=True)
    return {name: values.reshape(-1).astype(np.float32) for name, values in each}


def random_designs(
    key: jax.Array, count: int, bounds: Mapping[str, tuple[float, float]]
) -> dict[str, jax.Array]:
    """Draws designs, each number log-uniform between its bounds.

    Args:
      key: a `jax.random.key`.
      count: number of designs.
      bounds: name -> smallest and largest value, positive.

    Returns:
      Name -> `(count,)` in float32.

    Raises:
      PruningError: if a bound is not positive, or bounds are out of order.

    Example:
      >>> drawn = random_designs(jax.random.key(0), 4, {"sram": (16, 256)})
      >>> bool(drawn["sram"].min() >= 16), bool(drawn["sram"].max() <= 256)
      (True, True)
    """
    check_bounds(bounds)
    keys = jax.random.split(key, len(bounds))
    found = {}
    for each, (name, (low, high)) in zip(keys, bounds.items(), strict=True):
        drawn = jax.random.uniform(each, (count,), jnp.float32)
        log = np.float32(np.log(low)) + drawn * np.float32(np.log(high / low))
        found[name] = jnp.clip(jnp.exp(log), low, high)
    return found


def check_bounds(bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raises for bounds that are not positive or out of order.

    Args:
      bounds: name -> smallest and largest value.

    Raises:
      PruningError: if a bound is not positive, or bounds are out of order; names it.

    Example:
      >>> check_bounds({"rows": (8, 128)})
      >>> check_bounds({"rows": (128, 8)})  # doctest: +ELLIPSIS
      Traceback (most recent call last):
          ...
      jprune._core.base.PruningError: Bounds of rows have to be positive and ascend; ...
    """
    for name, (low, high) in bounds.items():
        if not 0 < low <= high:
            raise base.PruningError(
                f"Bounds of {name} have to be positive and ascend; got {low}, {high}."
            )


def pareto(costs: Any) -> jax.Array:
    """Returns the mask of the Pareto front: points that no other point beats.

    A point beats another if it is less in one cost and more in none. Equal points all
    stay. Memory and time grow with the square of the number of points.

    Args:
      costs: `(points, costs)`, less is better; points with NaN or infinite costs never
        stay.

    Returns:
      Booleans, `(points,)`.

    Example:
      >>> pareto(jnp.array([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0], [3.0, 1.0]])).tolist()
      [True, True, False, True]
    """
    costs = jnp.asarray(costs)
    usable = jnp.all(jnp.isfinite(costs), axis=1)
    costs = jnp.where(usable[:, None], costs, jnp.inf)

    def beaten(point: jax.Array) -> jax.Array:
        no_worse = jnp.all(costs <= point[None], axis=1)
        better = jnp.any(costs < point[None], axis=1)
        return jnp.any(no_worse & better)

    return usable & ~lax.map(beaten, costs, batch_size=256)
