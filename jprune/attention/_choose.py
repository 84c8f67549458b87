"""Top-k selection of tokens and heads: exact, deterministic, in the original order.

The count is static, so XLA knows the shapes of everything that follows. As in SpAtten's
top-k engine, a threshold is found by counting, nothing is sorted, and the kept entries
are compacted in their original order. On a GPU, where each iteration of such a loop
costs more in latency than in work, ranks are counted from all pairs instead.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base, compat, ordering

# Up to this many pairs in all, comparing them is several times faster on a GPU than
# forty passes over the keys, each with its latency (`bench attention_gpu`).
_PAIRS = 2**26


def top_indices(
    scores: jax.Array,
    count: int,
    *,
    valid: jax.Array | None = None,
    protected: jax.Array | None = None,
) -> jax.Array:
    """Returns the indices of the top-scoring tokens or heads, in their original order.

    Protected tokens rank first, then the others by score, padding last. Ties go to the
    earlier token, also among protected tokens and among padding. A NaN ranks above
    infinity: it is kept, so that it shows.

    Args:
      scores: (..., n) floating; higher is kept.
      count: static, number of entries kept, in [1, n].
      valid: (..., n) booleans, False for padding, which is kept only where fewer than
        `count` tokens are real. All are real by default.
      protected: (..., n) booleans, True for tokens kept whatever their score: the class
        token, separators, attention sinks, a recent window. None by default. Padding
        is never protected.

    Returns:
      (..., count) int32 indices, ascending.

    Raises:
      PruningError: if the count is not in [1, n], or scores are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = jnp.array([0.1, 0.7, 0.2, 0.7, 0.9])
      >>> top_indices(scores, 2).tolist()
      [1, 4]
      >>> top_indices(scores, 2, protected=jnp.arange(5) == 0).tolist()
      [0, 4]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, algorithm 3 and section IV.B, where
      equal scores keep their order of arrival, too.
    """
    n = scores.shape[-1]
    if not 1 <= count <= n:
        raise base.PruningError(
            f"Cannot keep {count} of {n} entries: give a count in [1, {n}]."
        )
    keys = sort_keys(scores, valid=valid, protected=protected)
    kept = top_mask(keys, count)
    by_pairs = functools.partial(_places_by_pairs, count=count)
    by_search = functools.partial(_places_by_search, count=count)
    return _on_gpu(by_pairs, by_search, kept)


def sort_keys(
    scores: jax.Array,
    *,
    valid: jax.Array | None = None,
    protected: jax.Array | None = None,
) -> jax.Array:
    """Returns unsigned integers that rank tokens in the order in which they are kept.

    Args:
      scores: (..., n) floating.
      valid: (..., n) booleans; entries that are False get 0, below every score.
      protected: (..., n) booleans; entries that are True get the greatest integer,
        above every score.

    Returns:
      (..., n) unsigned integers of the scores' bit width.

    Raises:
      PruningError: if scores are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = jnp.array([0.5, -1.0, 2.0, 9.0])
      >>> keys = sort_keys(scores, valid=jnp.array([True, True, True, False]))
      >>> keys.dtype, jnp.argsort(keys).tolist()  # padding, then by score
      (dtype('uint32'), [3, 1, 0, 2])
    """
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise base.PruningError(f"Scores have to be floating; got {scores.dtype}.")
    signed = ordering.ordered_bits(lax.stop_gradient(scores))
    unsigned = np.dtype(f"uint{8 * scores.dtype.itemsize}")
    half = np.array(1 << (8 * unsigned.itemsize - 1), unsigned)
    keys = lax.bitcast_convert_type(signed, unsigned) ^ half
    if protected is not None:
        keys = jnp.where(protected, np.array(np.iinfo(unsigned).max, unsigned), keys)
    return keys if valid is None else jnp.where(valid, keys, np.zeros((), unsigned))


def top_mask(keys: jax.Array, count: Any) -> jax.Array:
    """Returns the mask of the greatest integers of each row, ties to the earlier one.

    Bisects, bit by bit, for the greatest threshold that `count` keys reach, then for
    the index up to which keys equal to it are kept. On a GPU, where the pairs of keys
    are not too many, it counts for each key how many rank before it.

    Args:
      keys: (..., n) unsigned integers, from `sort_keys`.
      count: entries kept in each row, an integer or integers that broadcast to the
        leading axes; may be traced. Clipped to [0, n].

    Returns:
      (..., n) booleans, `count` True in each row.

    Example:
      >>> import jax.numpy as jnp
      >>> top_mask(jnp.array([3, 7, 3, 3], jnp.uint32), 2).astype(int).tolist()
      [1, 1, 0, 0]
    """
    n, rows = keys.shape[-1], keys.shape[:-1]
    need = jnp.broadcast_to(jnp.clip(jnp.asarray(count, jnp.int32), 0, n), rows)
    return _on_gpu(best_by_pairs, best_by_bits, keys, need)


def take(tree: Any, ids: jax.Array, axis: int = 0) -> Any:
    """Selects the chosen tokens of every array that has a token axis.

    Activations, scores, positions and padding masks are selected together:
    `x, positions, valid = take((x, positions, valid), ids)`.

    Args:
      tree: tree of arrays with a token axis. If `ids` has leading axes, the arrays
        start with the same ones.
      ids: (..., count) integers in [0, n), such as those of `top_indices`.
      axis: the token axis, not negative, counted after those leading axes.

    Returns:
      The tree, with `count` entries along the axis.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(12).reshape(2, 3, 2)  # two sentences of three tokens
      >>> take(x, jnp.array([[0, 2], [1, 2]])).tolist()
      [[[0, 1], [4, 5]], [[8, 9], [10, 11]]]
    """
    for_rows = lambda x, i: jnp.take(x, i, axis=axis, mode="clip")  # noqa: E731
    for _ in range(ids.ndim - 1):
        for_rows = jax.vmap(for_rows)
    return jax.tree.map(lambda x: for_rows(x, ids), tree)


def put(into: jax.Array, ids: jax.Array, x: jax.Array) -> jax.Array:
    """Writes tokens at their positions: the inverse of `take`.

    Args:
      into: (..., n, ...), the array that provides all other positions.
      ids: (..., count) integers in [0, n), all different.
      x: (..., count, ...), the tokens to write.

    Returns:
      An array in the shape of `into`.

    Example:
      >>> import jax.numpy as jnp
      >>> put(jnp.zeros(4), jnp.array([0, 2]), jnp.array([5.0, 6.0])).tolist()
      [5.0, 0.0, 6.0, 0.0]
    """
    for_rows = lambda a, i, y: a.at[i].set(y)  # noqa: E731
    for _ in range(ids.ndim - 1):
        for_rows = jax.vmap(for_rows)
    return for_rows(into, ids, x)


def _on_gpu(by_pairs: Any, otherwise: Any, x: jax.Array, *more: jax.Array) -> Any:
    """Runs `by_pairs` on a GPU, if the rows do not have too many pairs of keys."""
    if x.shape[-1] * x.size > _PAIRS:
        return otherwise(x, *more)
    return lax.platform_dependent(
        x, *more, cuda=by_pairs, rocm=by_pairs, default=otherwise
    )


def best_by_bits(keys: jax.Array, need: jax.Array) -> jax.Array:
    """Returns `top_mask` by bisecting the threshold bit by bit.

    Args:
      keys: (..., n) unsigned integers.
      need: (...) int32 in [0, n].

    Returns:
      (..., n) booleans.
    """
    n, rows = keys.shape[-1], keys.shape[:-1]
    threshold = _greatest(
        8 * keys.dtype.itemsize,
        lambda t: _counted(keys >= t[..., None]) >= need,
        jnp.zeros(rows, keys.dtype),
    )[..., None]
    above, equal = keys > threshold, keys == threshold
    index = lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)
    rest = need - _counted(above)
    end = _greatest(
        n.bit_length(),
        lambda e: _counted(equal & (index < e[..., None])) <= rest,
        jnp.zeros(rows, jnp.int32),
    )
    return above | (equal & (index < end[..., None]))


def best_by_pairs(keys: jax.Array, need: jax.Array) -> jax.Array:
    """Returns `top_mask` from the number of keys that rank before each.

    One pass over all pairs of a row, where `best_by_bits` takes some forty passes over
    the row.

    Args:
      keys: (..., n) unsigned integers.
      need: (...) int32 in [0, n].

    Returns:
      (..., n) booleans.
    """
    mine, other = keys[..., :, None], keys[..., None, :]
    pairs = jnp.broadcast_shapes(mine.shape, other.shape)
    i, j = (lax.broadcasted_iota(jnp.int32, pairs, keys.ndim - d) for d in (1, 0))
    before = _counted((other > mine) | ((other == mine) & (j < i)))
    return before < need[..., None]


def _places_by_search(kept: jax.Array, count: int) -> jax.Array:
    """Returns the ascending indices of a mask with `count` True in each row."""
    found = jnp.cumsum(kept, axis=-1, dtype=jnp.int32)
    place = jnp.arange(1, count + 1, dtype=jnp.int32)
    # The index of the j-th kept entry is the first whose running count reaches j.
    search = functools.partial(jnp.searchsorted, v=place)
    for _ in range(kept.ndim - 1):
        search = jax.vmap(search)
    return compat.auto_partition(search, found, like=found).astype(jnp.int32)


def _places_by_pairs(kept: jax.Array, count: int) -> jax.Array:
    """Returns the same as `_places_by_search`; faster on a GPU."""
    *rows, n = kept.shape
    i, j = (
        lax.broadcasted_iota(jnp.int32, (*rows, n, n), len(rows) + d) for d in (0, 1)
    )
    found = _counted(kept[..., None, :] & (j <= i))
    place = lax.broadcasted_iota(jnp.int32, (*rows, count, n), len(rows))
    # Its index is the number of entries whose running count is still below j.
    return _counted(found[..., None, :] <= place)


def _greatest(bits: int, holds: Any, zero: jax.Array) -> jax.Array:
    """Returns the greatest integer of so many bits that meets a monotone condition."""

    def halve(i: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (np.ones((), zero.dtype) << (bits - 1 - i).astype(zero.dtype))
        return jnp.where(holds(tried), tried, found)

    return lax.fori_loop(0, bits, halve, zero)


def _counted(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, dtype=jnp.int32)
