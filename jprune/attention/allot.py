"""Sparsity allocation over blocks: a genetic search under a mean sparsity, as in FTP.

The loss is any traced function of the blocks' sparsities, such as that of a model whose
static routers skip these shares of its tokens; nothing is trained.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import search as search_lib
from jprune._core import base
from jprune._core.deprecation import renamed

__getattr__ = renamed(__name__, {"project": "jprune.search.project_to_mean"})


class Allotted(NamedTuple):
    """The result of a search.

    Attributes:
      sparsities: `(blocks,)` float32, the best allocation found.
      loss: scalar, its loss.
      path: `(generations,)`, the least loss up to and including each generation.
    """

    sparsities: jax.Array
    loss: jax.Array
    path: jax.Array


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
    """Allocates a sparsity to each block by a genetic search under their mean.

    `jprune.search.genetic` from the uniform allocation, each candidate projected onto
    the sparsities between `least` and `most` that have the mean.

    Args:
      key: a `jax.random.key`.
      loss: `(blocks,) sparsities -> scalar`, traced; less is better, NaN ranks last. It
        is evaluated for one candidate at a time, fewer than `population` times a
        generation.
      blocks: number of blocks.
      mean: mean sparsity of the blocks, in (0, 1).
      least: smallest sparsity, in [0, 1], concrete; scalar or `(blocks,)`.
      most: largest sparsity, likewise. A block with both 0 is not pruned.
      population: candidates of a generation, at least 8.
      generations: number of generations, at least 1.
      step: standard deviation of the first generation's steps.

    Returns:
      An `Allotted`.

    Raises:
      PruningError: if the bounds do not admit the mean, or the population or the number
        of generations is too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = jnp.array([1.0, 3.0])  # of the loss to each block
      >>> found = search(jax.random.key(0), lambda s: (weights * s**2).sum(), 2, 0.4)
      >>> [round(float(x), 1) for x in found.sparsities]
      [0.6, 0.2]

    References:
      Li et al., FTP: A Fine-grained Token-wise Pruner for Large Language Models via
      Token Routing, 2024, arXiv:2412.11494: a genetic algorithm allocates sparsity to
      blocks with static routers in place. Its operators are not copied here.
    """
    low = np.broadcast_to(np.asarray(least, np.float32), blocks)
    high = np.broadcast_to(np.asarray(most, np.float32), blocks)
    if not low.mean() <= mean <= high.mean():
        raise base.PruningError(
            f"A mean sparsity of {mean} is not between {low.mean()} and {high.mean()}, "
            "the means of the blocks' lower and upper bounds."
        )

    def allowed(sparsities: jax.Array) -> jax.Array:
        return search_lib.project_to_mean(sparsities, mean, low, high)

    start = jnp.full(blocks, mean, jnp.float32)
    size = {"population": population, "generations": generations, "step": step}
    return Allotted(*search_lib.genetic(key, loss, start, project=allowed, **size))
