"""How much tokens and heads matter, from what attention computes anyway.

A token matters as much as others look at it, a head as much as it says:

    s_token[j] = sum_layers sum_heads sum_queries P[h, i, j]
    s_head[h]  = sum_layers sum_queries sum_dims |E[h, i, d]|

The functions here are one layer's terms. Over layers, and over generated tokens,
they are added: `scores + token_importance(probs)`; whoever selects tokens gathers
their scores along, so that survivors keep what they have earned.
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
    """Returns how much attention each key gets, summed over heads and queries.

    s[j] = sum_h sum_i P[h, i, j]

    Always in float32, whatever the type that the model computes in: bfloat16
    stops counting at 256.

    Args:
      probs: (..., heads, queries, keys) attention probabilities.
      queries: (..., queries) booleans, False for padding, whose attention does
        not count. All by default.
      keys: (..., keys) booleans, False for padding, whose score is 0. All by
        default.
      visible: (..., queries, keys) booleans, True where a query could see a key.
        If given, the score is divided by the number of real queries that could
        see the key. Under a causal mask early tokens are seen by more queries and
        get higher sums; the paper does not correct for that, so this is off by
        default.

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
      how often a token was seen is that of H2O's followers (Zhang et al., 2023,
      arXiv:2306.14048).
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
    """Returns the magnitude of what each head says, summed over queries and dims.

    s[h] = sum_i sum_d |E[h, i, d]|,   E = P V

    Args:
      outputs: (..., heads, queries, dim) the heads' outputs, before the output
        projection mixes them.
      queries: (..., queries) booleans, False for padding, which does not count.
        All by default.

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
    """The sum over heads and over the queries that are real."""
    return jnp.sum(jnp.where(real[..., None, :, :], probs, 0), axis=(-3, -2))


def _sum_by_heads(probs: jax.Array, real: jax.Array) -> jax.Array:
    """The same, for a CPU, which writes what it masks before it sums that."""
    looks = sum(jnp.unstack(probs, axis=-3))
    return jnp.sum(jnp.where(real, looks, 0), axis=-2)
