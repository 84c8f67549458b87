"""Latency of SpAtten's top-k engine: quick-select in hardware, P scores at a time.

The engine takes a random pivot, keeps the scores on the side of the k-th largest, and
repeats; a final pass over all scores drops those below the threshold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base
from jprune.hardware import _ranges


def topk_cycles(n: Any, k: Any, parallelism: Any) -> Any:
    """Returns the cycles to select the k largest of n scores.

        2 n (1 + H(k / n)) / P + 3.5 rounds,   rounds = 1.9 ln n - 0.7

    H is the binary entropy in nats: quick-select reads 2 n (1 + H) scores on average.
    Each round waits 3.5 cycles for its pivot.

    Args:
      n: number of scores, at least 1; may be traced.
      k: number of scores kept, in [0, n].
      parallelism: P, scores compared per cycle.

    Returns:
      Cycles, a mean over pivots; 0 where k = n or k = 0, as nothing is selected.

    Raises:
      PruningError: if n is below 1, k negative or above n, or the parallelism not
        positive. Traced ones are not checked: where k is above n, the cycles are 0.

    Example:
      >>> [round(float(topk_cycles(1024.0, k, 16)), 1) for k in (128.0, 512.0)]
      [219.9, 260.4]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section IV.B. The mean of
      quick-select: Knuth, Mathematical Analysis of Algorithms, 1971.
    """
    _check(n, k, parallelism)
    rounds = jnp.maximum(1.9 * jnp.log(jnp.maximum(n, 1.0)) - 0.7, 0.0)
    busy = compared(n, k) / parallelism + 3.5 * rounds
    return jnp.where((k > 0) & (k < n), busy, 0.0 * busy)


def _check(n: Any, k: Any, parallelism: Any) -> None:
    if any(isinstance(x, jax.core.Tracer) for x in (n, k, parallelism)):
        return  # the cost model's, which has checked them
    _ranges.check_numbers(_ranges.FACTOR, n=n)
    _ranges.check_numbers(_ranges.ANY, k=k)
    _ranges.check_numbers(_ranges.POSITIVE, parallelism=parallelism)
    if np.any(np.asarray(k) > np.asarray(n)):
        raise base.PruningError(f"Of {n} scores at most {n} are kept; got {k}.")


def compared(n: Any, k: Any) -> Any:
    """Returns the number of scores that quick-select compares, 2 n (1 + H(k / n)).

    Args:
      n: number of scores, at least 1.
      k: number of scores kept.

    Returns:
      Number of comparisons.

    Example:
      >>> float(compared(1024.0, 512.0).round())  # 2 * 1024 * (1 + log 2)
      3468.0
    """
    p = jnp.clip(k / jnp.maximum(n, 1.0), 1e-6, 1 - 1e-6)
    entropy = -p * jnp.log(p) - (1 - p) * jnp.log1p(-p)
    return 2 * n * (1 + entropy)
