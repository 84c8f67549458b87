"""Head pruning: projections of pruned heads are removed, or their outputs are masked.

One set of heads for the whole batch is removed physically: its columns leave the
projections to queries, keys and values, its rows leave the output projection, and the
products shrink. A set for each sample would need weights for each sample, which no
matrix product has; there the outputs are masked, and nothing gets faster.

The unit of pruning is a KV head with the query heads that it serves. A single query
head that shares its KV head is not pruned: the keys and values would still be fetched
for the others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jprune.attention import _choose
from jprune.attention._attend import heads_per_kv


class HeadWeights(NamedTuple):
    """Projections of an attention layer, by heads; biases may be None.

    Attributes:
      query: (hidden, heads, dim).
      key: (hidden, kv heads, dim).
      value: (hidden, kv heads, dim).
      output: (heads, dim, hidden).
      query_bias: (heads, dim).
      key_bias: (kv heads, dim).
      value_bias: (kv heads, dim).
      output_bias: (hidden,).
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    output: jax.Array
    query_bias: jax.Array | None = None
    key_bias: jax.Array | None = None
    value_bias: jax.Array | None = None
    output_bias: jax.Array | None = None


def take_heads(weights: HeadWeights, ids: jax.Array) -> HeadWeights:
    """Returns the projections of chosen KV heads and of the query heads they serve.

    Args:
      weights: projections of a layer.
      ids: (count,) int32, indices of the KV heads that stay, ascending.

    Returns:
      `HeadWeights` with `count` KV heads. The output bias is unchanged.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> w = HeadWeights(*(jnp.ones((8, 4, 2)),) * 3, output=jnp.ones((4, 2, 8)))
      >>> less = take_heads(w, jnp.array([0, 3]))
      >>> less.key.shape, less.output.shape
      ((8, 2, 2), (2, 2, 8))
    """
    kv_heads = weights.key.shape[1]

    def own(x: jax.Array | None, axis: int) -> jax.Array | None:
        return None if x is None else _take_kv_heads(x, ids, axis, kv_heads)

    return HeadWeights(
        query=_take_kv_heads(weights.query, ids, 1, kv_heads),
        key=_take_kv_heads(weights.key, ids, 1, kv_heads),
        value=_take_kv_heads(weights.value, ids, 1, kv_heads),
        output=_take_kv_heads(weights.output, ids, 0, kv_heads),
        query_bias=own(weights.query_bias, 0),
        key_bias=own(weights.key_bias, 0),
        value_bias=own(weights.value_bias, 0),
        output_bias=weights.output_bias,
    )


def project(
    weights: HeadWeights, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the queries, keys and values of tokens.

    Args:
      weights: projections of a layer.
      x: (..., tokens, hidden).

    Returns:
      `(q, k, v)`: (..., heads, tokens, dim) and twice (..., kv heads, tokens, dim).

    Example:
      Four query heads share two KV heads:

      >>> import jax.numpy as jnp
      >>> shared = jnp.ones((8, 2, 3))
      >>> w = HeadWeights(jnp.ones((8, 4, 3)), shared, shared, jnp.ones((4, 3, 8)))
      >>> [y.shape for y in project(w, jnp.ones((5, 8)))]  # five tokens
      [(4, 5, 3), (2, 5, 3), (2, 5, 3)]
    """

    def heads(w: jax.Array, bias: jax.Array | None) -> jax.Array:
        # One matrix product for all heads, whose axis is then moved to the front: for
        # few tokens CPUs run that several times faster than a product with that axis.
        hidden, count, dim = w.shape
        y = jnp.matmul(x, w.reshape(hidden, count * dim))
        y = y.reshape(*y.shape[:-1], count, dim)
        y = y if bias is None else y + bias.reshape((1,) * (y.ndim - 2) + bias.shape)
        return jnp.swapaxes(y, -3, -2)

    w = weights
    pairs = ((w.query, w.query_bias), (w.key, w.key_bias), (w.value, w.value_bias))
    q, k, v = (heads(*pair) for pair in pairs)
    return q, k, v


def combine(weights: HeadWeights, outputs: jax.Array) -> jax.Array:
    """Applies the output projection to the outputs of the heads.

    Args:
      weights: projections of a layer.
      outputs: (..., heads, tokens, dim).

    Returns:
      (..., tokens, hidden).

    Example:
      Each output is a sum over four heads of three dimensions:

      >>> import jax.numpy as jnp
      >>> w = HeadWeights(*(jnp.ones((8, 4, 3)),) * 3, output=jnp.ones((4, 3, 8)))
      >>> y = combine(w, jnp.ones((4, 5, 3)))
      >>> y.shape, float(y[0, 0])
      ((5, 8), 12.0)
    """
    count, dim, hidden = weights.output.shape
    rows = jnp.swapaxes(outputs, -3, -2)
    rows = rows.reshape(*rows.shape[:-2], count * dim)
    y = jnp.matmul(rows, weights.output.reshape(count * dim, hidden))
    if weights.output_bias is None:
        return y
    return y + weights.output_bias.reshape((1,) * (y.ndim - 1) + (-1,))


def sum_per_kv_head(scores: jax.Array, kv_heads: int) -> jax.Array:
    """Sums scores of query heads over those that share a KV head.

    Args:
      scores: (..., heads).
      kv_heads: static, number of KV heads, a divisor of heads.

    Returns:
      (..., kv heads).

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> sum_per_kv_head(jnp.array([1.0, 2.0, 3.0, 4.0]), 2).tolist()
      [3.0, 7.0]
    """
    size = heads_per_kv(scores.shape[-1], kv_heads)
    return jnp.sum(scores.reshape(*scores.shape[:-1], kv_heads, size), axis=-1)


def keep_heads(
    scores: jax.Array, count: jax.typing.ArrayLike, alive: jax.Array | None = None
) -> jax.Array:
    """Returns the mask of the top-scoring heads of each sample.

    Args:
      scores: (..., kv heads) floating.
      count: number of heads that stay; may be traced.
      alive: (..., kv heads) booleans, False for heads pruned before. All are alive by
        default.

    Returns:
      (..., kv heads) booleans, True = keep.

    Raises:
      PruningError: if scores are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> keep_heads(jnp.array([[3.0, 1.0, 2.0]]), 2).tolist()
      [[True, False, True]]
    """
    keys = _choose.sort_keys(scores, valid=alive)
    kept = _choose.top_mask(keys, count)
    return kept if alive is None else kept & alive


def mask_heads(x: jax.Array, alive: jax.Array) -> jax.Array:
    """Sets outputs, or probabilities, of pruned heads to zero.

    Args:
      x: (..., heads, m, n).
      alive: (..., kv heads) booleans, False for pruned heads.

    Returns:
      An array in the shape and type of `x`.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      Of four query heads, the first two share a KV head, and so do the others:

      >>> import jax.numpy as jnp
      >>> x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1)
      >>> mask_heads(x, jnp.array([False, True])).ravel().tolist()
      [0.0, 0.0, 3.0, 4.0]
    """
    each = repeat_per_kv_head(alive, x.shape[-3])[..., None, None]
    return jnp.where(each, x, jnp.zeros((), x.dtype))


def repeat_per_kv_head(x: jax.Array, heads: int) -> jax.Array:
    """Repeats values of KV heads for the query heads that they serve.

    Args:
      x: (..., kv heads).
      heads: static, number of query heads.

    Returns:
      (..., heads).

    Raises:
      PruningError: if heads is not a multiple of kv heads.
    """
    return jnp.repeat(x, heads_per_kv(heads, x.shape[-1]), axis=-1)


def _take_kv_heads(x: jax.Array, ids: jax.Array, axis: int, kv_heads: int) -> jax.Array:
    size = heads_per_kv(x.shape[axis], kv_heads)
    shape = x.shape
    x = x.reshape(*shape[:axis], kv_heads, size, *shape[axis + 1 :])
    x = _choose.take(x, ids, axis)
    return x.reshape(*shape[:axis], ids.shape[0] * size, *shape[axis + 1 :])
