"""Importance of tokens and heads, from what attention computes anyway (SpAtten).

    s_token[j] = sum_layers sum_heads sum_queries P[h, i, j]
    s_head[h]  = sum_layers sum_queries sum_dims |E[h, i, d]|

A token is important if it receives much attention; a head, if its outputs are large.
The functions return the terms of one layer. Sums over layers, and over generated
tokens, are the caller's: `scores + token_importance(probs)`. Scores are gathered along
with the tokens, so that surviving tokens keep what they have accumulated.
"""

import jax
import jax.numpy as jnp
from jax import lax


def token_importance(
    probs: jax.Array,
    queries: jax.Array | None = None,
    keys: jax.Array | None = None,
    *,
    visible: jax.Array | None = None,
) -> jax.Array:
    """Returns the attention that each key receives, summed over heads and queries.

    s[j] = sum_h sum_i P[h, i, j]

    The sum is in float32, whatever the type of the model: bfloat16 sums of ones stop at
    256.

    Args:
      probs: (..., heads, queries, keys) attention probabilities.
      queries: (..., queries) booleans, False for padding, whose attention does not
        count. All count by default.
      keys: (..., keys) booleans, False for padding, which scores 0. All are real by
        default.
      visible: (..., queries, keys) booleans, True where a query may see a key. If
        given, each score is divided by the number of real queries that may see the
        key. Under a causal mask early tokens are seen by more queries and get higher
        sums; the paper does not correct for that, so this is off by default.

    Returns:
      (..., keys) float32 scores.

    Example:
      >>> import jax.numpy as jnp
      >>> probs = jnp.array([[[1.0, 0.0], [0.75, 0.25]]])  # one head, causal
      >>> token_importance(probs).tolist()
      [1.75, 0.25]
      >>> token_importance(probs, visible=jnp.tri(2, dtype=bool)).tolist()
      [0.875, 0.25]

    References:
      Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade
      Token and Head Pruning, 2021, arXiv:2012.09852, algorithm 1. The division by
      the number of queries that see a token is that of H2O's followers (Zhang et al.,
      2023, arXiv:2306.14048).
    """
    p = probs.astype(jnp.float32)
    if queries is None:
        scores = jnp.sum(p, axis=(-3, -2))
    else:
        scores = lax.platform_dependent(
            p, queries[..., None], cpu=_sum_by_heads, default=_sum_at_once
        )
    if visible is not None:
        real = True if queries is None else queries[..., :, None]
        seen = jnp.sum(visible & real, axis=-2, dtype=jnp.float32)
        scores = scores / jnp.maximum(seen, 1)
    return scores if keys is None else jnp.where(keys, scores, 0)


def head_importance(outputs: jax.Array, queries: jax.Array | None = None) -> jax.Array:
    """Returns the L1 norm of each head's outputs, over queries and dims.

    s[h] = sum_i sum_d |E[h, i, d]|,   E = P V

    Args:
      outputs: (..., heads, queries, dim), outputs of the heads before the output
        projection.
      queries: (..., queries) booleans, False for padding, which does not count. All
        count by default.

    Returns:
      (..., heads) float32 scores.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = jnp.array([[[1.0, -2.0], [9.0, 9.0]], [[0.5, 0.0], [9.0, 9.0]]])
      >>> head_importance(outputs, jnp.array([True, False])).tolist()
      [3.0, 0.5]

    References:
      Wang et al., 2021, arXiv:2012.09852, algorithm 1.
    """
    magnitude = jnp.sum(jnp.abs(outputs).astype(jnp.float32), axis=-1)
    if queries is not None:
        magnitude = jnp.where(queries[..., None, :], magnitude, 0)
    return jnp.sum(magnitude, axis=-1)


def _sum_at_once(probs: jax.Array, real: jax.Array) -> jax.Array:
    """Sums over heads and over the real queries."""
    return jnp.sum(jnp.where(real[..., None, :, :], probs, 0), axis=(-3, -2))


def _sum_by_heads(probs: jax.Array, real: jax.Array) -> jax.Array:
    """Sums the same; faster on a CPU, which writes a masked array before it sums it."""
    looks = sum(jnp.unstack(probs, axis=-3))
    return jnp.sum(jnp.where(real, looks, 0), axis=-2)
