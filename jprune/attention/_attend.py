"""Dense attention, the reference for every pruned version.

All of `jprune.attention` uses one layout: arrays end in (heads, tokens, dim) and
probabilities in (heads, queries, keys); leading axes are batches. Flax and `jax.nn` use
(tokens, heads, dim): `swapaxes(-3, -2)` converts between them.
"""

import math

import jax
import jax.numpy as jnp

from jprune._core import base


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the attention output and the attention probabilities.

    P = softmax(scale Q K^T),   E = P V

    With fewer KV heads than query heads, each KV head serves neighbouring query heads
    (grouped-query attention). The softmax is computed in float32. The output equals
    that of `jax.nn.dot_product_attention` to rounding, in another layout, except for a
    query that may see no key: its probabilities and its output are 0 here, so that
    padding adds to no importance score.

    Args:
      q: (..., heads, queries, dim).
      k: (..., kv heads, keys, dim); heads is a multiple of kv heads.
      v: (..., kv heads, keys, dim of values).
      mask: booleans that broadcast to (..., heads, queries, keys); True = may be seen.
      causal: static; query i sees keys 0 to i. This stays right for pruned sequences
        whose tokens keep their order.
      scale: factor of the logits, 1 / sqrt(dim) by default.

    Returns:
      `(outputs, probs)`: (..., heads, queries, dim of values) in the type of `v`,
      and (..., heads, queries, keys) in float32.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.eye(2)[None]
      >>> out, probs = attend(x, x, x, causal=True)
      >>> probs.shape, probs[0, 0].tolist()
      ((1, 2, 2), [1.0, 0.0])

    References:
      Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, equation 1.
      Grouped queries: Ainslie et al., GQA, 2023, arXiv:2305.13245.
    """
    probs = softmax(scores(q, k, scale), _all_of(mask, causal, q, k))
    return weigh(probs, v), probs


def scores(q: jax.Array, k: jax.Array, scale: float | None = None) -> jax.Array:
    """Returns the attention logits, scale Q K^T, in float32.

    Args:
      q: (..., heads, queries, dim).
      k: (..., kv heads, keys, dim).
      scale: factor of the logits, 1 / sqrt(dim) by default.

    Returns:
      (..., heads, queries, keys) float32.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> q = jnp.array([[[1.0, 2.0]]])  # one head, one query
      >>> k = jnp.array([[[3.0, 0.0], [0.0, 4.0]]])  # two keys
      >>> scores(q, k, scale=1.0).tolist()
      [[[3.0, 8.0]]]
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    dots = dot_heads("...gqd,...gkd->...gqk", q, k)
    return dots * jnp.asarray(scale, jnp.float32)


def softmax(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the softmax over the last axis, with all zeros for fully masked rows.

    Args:
      logits: (..., keys) floating.
      mask: booleans that broadcast to the logits; True = takes part.

    Returns:
      Probabilities in the shape and type of the logits.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[True, True], [False, False]])
      >>> softmax(jnp.zeros((2, 2)), mask).tolist()
      [[0.5, 0.5], [0.0, 0.0]]
    """
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    mask = jnp.broadcast_to(mask, logits.shape)
    least = jnp.finfo(logits.dtype).min
    shifted = jnp.where(mask, logits, least)
    top = jax.lax.stop_gradient(jnp.max(shifted, axis=-1, keepdims=True))
    # Masked again: in a fully masked row all exponentials are exp(0) = 1.
    e = jnp.where(mask, jnp.exp(shifted - top), 0)
    total = jnp.sum(e, axis=-1, keepdims=True)
    return e / jnp.where(total > 0, total, 1)


def weigh(probs: jax.Array, v: jax.Array) -> jax.Array:
    """Returns P V in the type of V.

    Args:
      probs: (..., heads, queries, keys).
      v: (..., kv heads, keys, dim).

    Returns:
      (..., heads, queries, dim).

    Raises:
      PruningError: if heads is not a multiple of kv heads.
    """
    dots = dot_heads("...gqk,...gkd->...gqd", probs.astype(v.dtype), v)
    return dots.astype(v.dtype)


def dot_heads(
    subscripts: str,
    x: jax.Array,
    y: jax.Array,
    dtype: jax.typing.DTypeLike = jnp.float32,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Multiplies each query head with the KV head that serves it.

    Args:
      subscripts: `jnp.einsum` subscripts whose first axis after the batch is the KV
        head of both operands, and whose second axis of x holds the rows of all query
        heads that share it.
      x: (..., heads, m, n).
      y: (..., kv heads, m, n).
      dtype: type of the result.
      precision: as in `jnp.einsum`.

    Returns:
      (..., heads, ., .) in `dtype`.

    Raises:
      PruningError: if heads is not a multiple of kv heads.
    """
    heads, kv_heads = x.shape[-3], y.shape[-3]
    each = heads_per_kv(heads, kv_heads)
    # The rows of all query heads of a KV head are one axis: with two, jaxlib 0.7 cannot
    # multiply bfloat16 into float32 on CPUs that have bfloat16. Reshaped in two steps
    # for meshes of explicit axes.
    split = x.reshape(*x.shape[:-3], kv_heads, each, *x.shape[-2:])
    rows = split.reshape(*split.shape[:-3], each * x.shape[-2], x.shape[-1])
    dots = jnp.einsum(
        subscripts, rows, y, precision=precision, preferred_element_type=dtype
    )
    dots = dots.reshape(*dots.shape[:-2], each, x.shape[-2], dots.shape[-1])
    return dots.reshape(*dots.shape[:-4], heads, *dots.shape[-2:])


def heads_per_kv(heads: int, kv_heads: int) -> int:
    """Returns the number of query heads that share a KV head.

    Args:
      heads: number of query heads.
      kv_heads: number of KV heads.

    Returns:
      heads / kv_heads.

    Raises:
      PruningError: if heads is not a multiple of kv_heads.
    """
    if kv_heads < 1 or heads % kv_heads:
        raise base.PruningError(
            f"{heads} query heads are not a multiple of {kv_heads} KV heads."
        )
    return heads // kv_heads


def causal_mask(queries: int, keys: int) -> jax.Array:
    """Returns the causal mask: query i sees keys 0 to i.

    Args:
      queries: static, number of queries.
      keys: static, number of keys.

    Returns:
      (queries, keys) booleans.

    Example:
      >>> causal_mask(2, 3).astype(int).tolist()
      [[1, 0, 0], [1, 1, 0]]
    """
    return jnp.tri(queries, keys, dtype=bool)


def _all_of(
    mask: jax.Array | None, causal: bool, q: jax.Array, k: jax.Array
) -> jax.Array | None:
    if not causal:
        return mask
    tri = causal_mask(q.shape[-2], k.shape[-2])
    if mask is None:
        return tri.reshape((1,) * (q.ndim - 2) + tri.shape)
    return mask & tri.reshape((1,) * (mask.ndim - 2) + tri.shape)
