"""Genetic search over vectors, for losses that have no useful gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base, roots

_HALVINGS = 24


class Found(NamedTuple):
    """The result of a genetic search.

    Attributes:
      best: `(numbers,)` float32, the candidate of the least loss.
      loss: scalar, its loss.
      path: `(generations,)`, the least loss up to and including each generation.
    """

    best: jax.Array
    loss: jax.Array
    path: jax.Array


def genetic(
    key: jax.Array,
    loss: Callable[[jax.Array], jax.Array],
    start: Any,
    *,
    project: Callable[[jax.Array], jax.Array] = lambda x: x,
    population: int = 32,
    generations: int = 30,
    step: float = 0.1,
) -> Found:
    """Minimises a loss over vectors by a genetic search.

    The first generation is `start` and normal perturbations of it. Each later one keeps
    the best quarter; the others are children, each number of which comes from one of
    two parents in that quarter, plus a normal step. The step's standard deviation
    decays geometrically to a tenth over the search. Jits, and vmaps over keys.

    Args:
      key: a `jax.random.key`.
      loss: `(numbers,) -> scalar`, traced; less is better, NaN ranks last. It is
        evaluated for one candidate at a time: `population` times for the first
        generation, and `population - population // 4` times for each later one.
      start: `(numbers,)`, the first candidate.
      project: `(numbers,) -> (numbers,)`, maps a candidate to the nearest one allowed;
        it is vmapped. By default all vectors are allowed.
      population: candidates of a generation, at least 8.
      generations: number of generations after the first, at least 1.
      step: standard deviation of the first generation's children; perturbations of
        `start` have twice that.

    Returns:
      A `Found`.

    Raises:
      PruningError: if the population or the number of generations is too small.

    Example:
      >>> target = jnp.array([0.3, -0.2])
      >>> found = genetic(
      ...     jax.random.key(0), lambda x: jnp.abs(x - target).sum(), jnp.zeros(2))
      >>> [round(float(x), 1) for x in found.best]
      [0.3, -0.2]
    """
    if population < 8 or generations < 1:
        raise base.PruningError(
            "A genetic search needs a population of at least 8 and at least 1 "
            f"generation; got {population} and {generations}."
        )
    start = jnp.asarray(start, jnp.float32)[None]
    elite = population // 4
    allowed = jax.vmap(project)

    def losses_of(candidates: jax.Array) -> jax.Array:
        found = lax.map(loss, candidates).astype(jnp.float32)
        return jnp.where(jnp.isnan(found), jnp.inf, found)

    def generation(carry: Any, given: Any) -> Any:
        (candidates, losses), (key, spread) = carry, given
        best = jnp.argsort(losses, stable=True)[:elite]
        parents = candidates[best]
        children = allowed(_children(key, spread, parents, population - elite))
        candidates = jnp.concatenate([parents, children])
        losses = jnp.concatenate([losses[best], losses_of(children)])
        return (candidates, losses), jnp.min(losses)

    first, rest = jax.random.split(key)
    noise = 2 * step * jax.random.normal(first, (population, start.size), jnp.float32)
    candidates = allowed(start + noise.at[0].set(0))
    steps = step * jnp.geomspace(1, 0.1, generations, dtype=jnp.float32)
    given = jax.random.split(rest, generations), steps
    (candidates, losses), path = lax.scan(
        generation, (candidates, losses_of(candidates)), given
    )
    best = jnp.argmin(losses)
    return Found(candidates[best], losses[best], path)


def _children(
    key: jax.Array, step: jax.Array, parents: jax.Array, count: int
) -> jax.Array:
    """Returns uniform crossovers of random parents, plus normal mutations."""
    one, two, three = jax.random.split(key, 3)
    pairs = jax.random.randint(one, (2, count), 0, len(parents))
    first = jax.random.bernoulli(two, shape=(count, parents.shape[1]))
    child = jnp.where(first, parents[pairs[0]], parents[pairs[1]])
    return child + step * jax.random.normal(three, child.shape, child.dtype)


def project_to_mean(values: jax.Array, mean: Any, least: Any, most: Any) -> jax.Array:
    """Projects a vector onto those between bounds that have a given mean.

        clip(x + t, least, most),   with the t for which the mean is met,

    which is the Euclidean projection.

    Args:
      values: `(numbers,)`.
      mean: target mean, between the means of `least` and `most`, and clipped to that
        range; may be traced.
      least: lower bounds, scalar or `(numbers,)`.
      most: upper bounds, scalar or `(numbers,)`.

    Returns:
      `(numbers,)` float32.

    Example:
      >>> found = project_to_mean(jnp.array([0.1, 0.5, 0.9]), 0.6, 0.0, 0.9)
      >>> [round(float(x), 3) for x in found]
      [0.25, 0.65, 0.9]
    """
    given = jnp.asarray(values, jnp.float32)
    low = jnp.broadcast_to(jnp.asarray(least, jnp.float32), given.shape)
    high = jnp.broadcast_to(jnp.asarray(most, jnp.float32), given.shape)

    def excess(shift: jax.Array) -> jax.Array:
        return jnp.mean(jnp.clip(given + shift, low, high)) - mean

    ends = jnp.min(low - given), jnp.max(high - given)
    below, above = roots.bisect(excess, *ends, _HALVINGS)
    return jnp.clip(given + (below + above) / 2, low, high)
