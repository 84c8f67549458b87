"""Local value pruning: each row fetches values for its largest probabilities only.

Each query of each head selects after its own softmax, for one layer. In hardware the
other rows of V are never read. XLA gains nothing from that, as gathering rows costs
more than multiplying them (5 to 20 times on a CPU), so here the selection is a mask,
and `jprune.attention.fetched` counts what a machine with a top-k engine would read.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.attention import _choose
from jprune.attention._attend import weigh


def keep_values(probs: jax.Array, count: Any) -> jax.Array:
    """Returns the mask of the values that each row of probabilities fetches.

    The `count` largest probabilities of a row, ties to the earlier key. A probability
    of 0 is never kept: a masked key has no value to fetch.

    Args:
      probs: (..., heads, queries, keys), not negative.
      count: values kept in each row, an integer or integers that broadcast to (...,
        heads, queries); may be traced. `count_values` computes it from a fraction.

    Returns:
      Booleans in the shape of `probs`, True = fetch.

    Raises:
      PruningError: if the probabilities are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> probs = jnp.array([[[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]])
      >>> keep_values(probs, 2).astype(int).tolist()
      [[[1, 1, 0, 0], [1, 0, 0, 0]]]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section III.C.
    """
    return _choose.top_mask(_choose.sort_keys(probs), count) & (probs > 0)


def count_values(fraction: Any, visible: jax.Array) -> jax.Array:
    """Returns the number of values that a fraction of the visible keys amounts to.

    max(1, floor(fraction n)) for a row that may see n keys.

    Args:
      fraction: fraction of the visible keys, in (0, 1]; may be traced.
      visible: (..., keys) booleans, True where a row may see a key.

    Returns:
      (...) int32 counts.

    Example:
      >>> import jax.numpy as jnp
      >>> count_values(0.5, jnp.tri(4, dtype=bool)).tolist()
      [1, 1, 1, 2]
    """
    seen = jnp.sum(visible, axis=-1, dtype=jnp.float32)
    share = jnp.asarray(fraction, jnp.float32) * seen
    # As in `from_ratios`, rounding must not lose a whole value; float32 is coarser.
    return jnp.maximum(1, jnp.floor(share + 1e-4)).astype(jnp.int32)


def weigh_values(
    probs: jax.Array, v: jax.Array, kept: jax.Array, *, renormalize: bool = False
) -> jax.Array:
    """Returns P V with the kept probabilities only.

    Args:
      probs: (..., heads, queries, keys).
      v: (..., kv heads, keys, dim).
      kept: booleans in the shape of `probs`, from `keep_values`.
      renormalize: static; whether to divide the kept probabilities by their sum. The
        paper's hardware does not.

    Returns:
      (..., heads, queries, dim) in the type of `v`.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> probs, v = jnp.array([[[0.75, 0.25]]]), jnp.array([[[4.0], [8.0]]])
      >>> kept = keep_values(probs, 1)
      >>> float(weigh_values(probs, v, kept)[0, 0, 0])
      3.0
      >>> float(weigh_values(probs, v, kept, renormalize=True)[0, 0, 0])
      4.0
    """
    left = jnp.where(kept, probs, 0)
    if renormalize:
        total = jnp.sum(left, axis=-1, keepdims=True)
        left = left / jnp.where(total > 0, total, 1)
    return weigh(left, v)
