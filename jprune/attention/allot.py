"""How sparse each block is to be, so that all together are as sparse as was asked for.

A genetic search over one sparsity for each block, under their mean: FTP's scheduler.
Its loss is whatever can be traced, such as that of a model whose static router skips
these shares of its tokens; nothing is trained.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base, roots

_HALVINGS = 24


class Allotted(NamedTuple):
    """What a search has found.

    Attributes:
      sparsities: `(blocks,)` float32, the best of all.
      loss: its loss.
      path: `(generations,)`, the least loss up to each generation.
    """

    sparsities: jax.Array
    loss: jax.Array
    path: jax.Array


def project(sparsities: jax.Array, mean: Any, least: Any, most: Any) -> jax.Array:
    """Returns the nearest sparsities between bounds with a given mean.

        clip(s + t, least, most),   with the t for which the mean is met,

    which is the Euclidean projection.

    Args:
      sparsities: `(blocks,)`.
      mean: the target, between the means of `least` and `most`.
      least: scalar or `(blocks,)`.
      most: scalar or `(blocks,)`.

    Returns:
      `(blocks,)` float32.

    Example:
      >>> import jax.numpy as jnp
      >>> found = project(jnp.array([0.1, 0.5, 0.9]), 0.6, 0.0, 0.9)
      >>> [round(float(x), 3) for x in found]
      [0.25, 0.65, 0.9]
    """
    given = jnp.asarray(sparsities, jnp.float32)
    low = jnp.broadcast_to(jnp.asarray(least, jnp.float32), given.shape)
    high = jnp.broadcast_to(jnp.asarray(most, jnp.float32), given.shape)

    def excess(shift: jax.Array) -> jax.Array:
        return jnp.mean(jnp.clip(given + shift, low, high)) - mean

    ends = jnp.min(low - given), jnp.max(high - given)
    below, above = roots.bisect(excess, *ends, _HALVINGS)
    return jnp.clip(given + (below + above) / 2, low, high)


def search(
    key: jax.Array,
    loss: Callable[[jax.Array], jax.Array],
    blocks: int,
    mean: float,
    *,
    least: Any = 0.0,
    most: Any = 0.9,
    population: int = 32,
    generations: int = 30,
    step: float = 0.1,
) -> Allotted:
    """Returns a sparsity for each block, by a genetic search under their mean.

    The first generation is the uniform allotment and random ones around it. Each next
    one keeps the best quarter; a child has each block's sparsity of one of two parents
    and a normal step, which shrinks to a tenth in the course of the search, and is
    projected onto what is allowed.

    Args:
      key: a `jax.random.key`.
      loss: `(blocks,) sparsities -> scalar`, traced; the less the better. It runs for
        one candidate at a time, `population` times a generation. NaN is the worst.
      blocks: how many.
      mean: of the sparsities, in (0, 1).
      least: the least sparsity, one known number in [0, 1] or `(blocks,)` of them.
      most: the largest, likewise. Where both are 0 a block stays whole.
      population: candidates of a generation, at least 8.
      generations: how many.
      step: the standard deviation of the first steps.

    Returns:
      An `Allotted`.

    Raises:
      PruningError: if the mean cannot be met between the bounds, or the population is
        too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = jnp.array([1.0, 3.0])  # the second block minds three times as much
      >>> found = search(jax.random.key(0), lambda s: (weights * s**2).sum(), 2, 0.4)
      >>> [round(float(x), 1) for x in found.sparsities]
      [0.6, 0.2]

    References:
      Li et al., FTP: A Fine-grained Token-wise Pruner for Large Language Models via
      Token Routing, 2024, arXiv:2412.11494: a genetic algorithm allots sparsity to
      blocks with static routers in place. Its operators are not copied here.
    """
    low, high = (
        np.broadcast_to(np.asarray(x, np.float32), (blocks,)) for x in (least, most)
    )
    between = float(low.mean()), float(high.mean())
    if not between[0] <= mean <= between[1]:
        raise base.PruningError(
            f"A mean sparsity of {mean} is not between {between[0]} and {between[1]}, "
            "what the bounds of the blocks allow."
        )
    if population < 8 or generations < 1:
        raise base.PruningError(
            f"A search takes at least 8 candidates and 1 generation; got {population} "
            f"and {generations}."
        )
    elite = population // 4
    allowed = jax.vmap(lambda s: project(s, mean, low, high))

    def judged(candidates: jax.Array) -> jax.Array:
        found = lax.map(loss, candidates).astype(jnp.float32)
        return jnp.where(jnp.isnan(found), jnp.inf, found)

    def born(key: jax.Array, parents: jax.Array, spread: jax.Array) -> jax.Array:
        one, two, three = jax.random.split(key, 3)
        count = population - elite
        pairs = jax.random.randint(one, (2, count), 0, elite)
        first = jax.random.bernoulli(two, shape=(count, blocks))
        child = jnp.where(first, parents[pairs[0]], parents[pairs[1]])
        return allowed(child + spread * jax.random.normal(three, child.shape))

    def generation(carry: Any, given: Any) -> Any:
        candidates, losses = carry
        key, spread = given
        order = jnp.argsort(losses, stable=True)[:elite]
        children = born(key, candidates[order], spread)
        candidates = jnp.concatenate([candidates[order], children])
        losses = jnp.concatenate([losses[order], judged(children)])
        return (candidates, losses), jnp.min(losses)

    begin, rest = jax.random.split(key)
    noise = 2 * step * jax.random.normal(begin, (population, blocks))
    uniform = jnp.full((population, blocks), mean, jnp.float32)
    candidates = allowed(uniform + noise.at[0].set(0))
    spreads = step * jnp.geomspace(1, 0.1, generations, dtype=jnp.float32)
    keys = jax.random.split(rest, generations)
    (candidates, losses), path = lax.scan(
        generation, (candidates, judged(candidates)), (keys, spreads)
    )
    best = jnp.argmin(losses)
    return Allotted(candidates[best], losses[best], path)
