"""What a search asks of a batch of leaves: ranges of keys, counts, and masks.

The kernels are written for one leaf and mapped over a batch. Scores are compared as
integers in the same order, their keys; the rank of an entry tells which of equal scores
comes first.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counting
from jprune._core.ordering import greatest_number, ordered_bits, ordered_products
from jprune.selection._batching import Batch


def key_range(b: Batch, dtype: jnp.dtype, rates: Any) -> Any:
    """Returns the smallest and the largest key of each leaf of a batch.

    Args:
      b: batch of B leaves.
      dtype: dtype in which scores are compared.
      rates: (L,) array of that dtype, factors for the scores of each leaf of the tree;
        or None.

    Returns:
      (B, 2) unsigned keys, without the first axis for a leaf that is not stacked.
    """
    found = _mapped(_key_range, b, dtype)(b.values, _leaf_of_each(b), rates)
    if b.layout is None:
        return found
    xp: Any = jnp if isinstance(found, jax.core.Tracer) else np
    found = xp.asarray(found)  # sliced by NumPy, where nothing has to be compiled
    low = _per_leaf(np.minimum, found[:, :1], b)
    high = _per_leaf(np.maximum, found[:, 1:], b)
    return xp.concatenate([low, high], axis=1)


def key_counts(b: Batch, dtype: jnp.dtype, rates: Any, pivots: Any) -> jax.Array:
    """Returns how many keys of each leaf of a batch are at least each pivot.

    Args:
      b: batch of B leaves.
      dtype: dtype in which scores are compared.
      rates: as in `key_range`.
      pivots: (L, R) unsigned keys for each leaf of the tree, or (1, R) for all leaves.

    Returns:
      (B, R) uint32, without the first axis for a leaf that is not stacked.
    """
    found = _mapped(_key_counts, b, dtype)(b.values, _leaf_of_each(b), rates, pivots)
    return _per_leaf(np.add, found, b)


def tie_counts(
    b: Batch, dtype: jnp.dtype, rates: Any, keys: Any, pivots: Any
) -> jax.Array:
    """Returns how many entries with a given key have at least each rank.

    The rank of an entry is 2^32 - 1 minus its row-major index.

    Args:
      b: batch of B leaves.
      dtype: dtype in which scores are compared.
      rates: as in `key_range`.
      keys: (L,) unsigned keys, one for each leaf of the tree.
      pivots: (L, R) uint32 ranks.

    Returns:
      (B, R) uint32, without the first axis for a leaf that is not stacked.
    """
    found = _mapped(_tie_counts, b, dtype)(
        b.values, _leaf_of_each(b), rates, keys, pivots, tops=_tops(b)
    )
    return _per_leaf(np.add, found, b)


def kept(b: Batch, dtype: jnp.dtype, rates: Any, keys: Any, ranks: Any) -> jax.Array:
    """Returns masks: True above the key, and at the key above the rank.

    Args:
      b: batch of B leaves.
      dtype: dtype in which scores are compared.
      rates: as in `key_range`.
      keys: (L,) unsigned keys, one for each leaf of the tree.
      ranks: (L,) uint32 ranks.

    Returns:
      A boolean array of the shape of the batch's values.
    """

    def masks() -> jax.Array:
        return _mapped(_kept, b, dtype)(
            b.values, _leaf_of_each(b), rates, keys, ranks, tops=_tops(b)
        )

    if b.layout is None or not isinstance(keys, jax.core.Tracer):
        return masks()
    # In a branch, so that XLA does not fuse it with the slice of each leaf, which would
    # compile it for each. (On CPUs, barriers are gone before fusion.)
    some = jnp.any(keys < _greatest(keys)) | jnp.any(ranks < _greatest(ranks))
    nothing = functools.partial(jnp.zeros, b.values.shape, bool)
    return lax.cond(some, masks, nothing)


def has_nan(greatest: Any, dtype: jnp.dtype) -> Any:
    """Returns whether the largest key of a leaf is that of a NaN.

    Args:
      greatest: array of unsigned keys.
      dtype: dtype in which scores are compared.

    Returns:
      A boolean array of the same shape.
    """
    unsigned = greatest_number(dtype) - np.iinfo(f"int{dtype.itemsize * 8}").min
    return greatest > np.array(unsigned, greatest.dtype)


def least_rank(sizes: jax.Array) -> jax.Array:
    """Returns the rank of the last entry of each leaf.

    Args:
      sizes: uint32 array, numbers of entries, at least 1.

    Returns:
      A uint32 array of the same shape.
    """
    return ~(sizes - 1)


def _leaf_of_each(b: Batch) -> np.ndarray:
    """The leaf of the tree that each entry of the first axis of a batch belongs to."""
    return b.leaves if b.layout is None else b.leaves[b.layout.owner]


def _tops(b: Batch) -> np.ndarray:
    """The rank of the first entry of each leaf, or of each row of a leaf."""
    first = 0 if b.layout is None else b.layout.first
    return np.broadcast_to(_TOP_RANK - np.int32(first), _leaf_of_each(b).shape)


def _per_leaf(reduce: np.ufunc, found: jax.Array, b: Batch) -> Any:
    """What was found in each leaf; that of its rows is reduced."""
    if b.layout is None:
        return found
    owner, number = b.layout.owner, len(b.leaves)
    if isinstance(found, jax.core.Tracer):
        traced = _TRACED[reduce]
        return traced(found, jnp.asarray(owner), number, indices_are_sorted=True)
    starts = np.searchsorted(owner, np.arange(number))
    return reduce.reduceat(np.asarray(found), starts, dtype=found.dtype)


_TRACED: dict[np.ufunc, Callable[..., jax.Array]] = {
    np.add: jax.ops.segment_sum,
    np.minimum: jax.ops.segment_min,
    np.maximum: jax.ops.segment_max,
}


def _greatest(x: jax.Array) -> np.ndarray:
    return np.array(np.iinfo(x.dtype).max, x.dtype)


# Kernels for one leaf, or one row of a leaf. The values go through a barrier together
# with operands that change from pass to pass: otherwise XLA would compute the keys and
# ranks of all entries ahead of the loop, and hold them in memory.


def _key_range(x: jax.Array, rate: Any, *, dtype: jnp.dtype, spec: Any) -> jax.Array:
    low, high = counting.extremes(_keys(jnp.asarray(x), rate, dtype))
    ends = jnp.stack(
        [
            counting.over_shards(lax.pmin, low, spec),
            counting.over_shards(lax.pmax, high, spec),
        ]
    )
    return _unsigned(ends)


def _key_counts(
    x: jax.Array, rate: Any, pivots: jax.Array, *, dtype: jnp.dtype, spec: Any
) -> jax.Array:
    x, pivots = lax.optimization_barrier((jnp.asarray(x), pivots))
    keys = _keys(x, rate, dtype)
    counts = counting.count([keys >= p for p in _signed(pivots, keys.dtype)])
    return counting.over_shards(lax.psum, counts, spec)


def _tie_counts(
    x: jax.Array,
    rate: Any,
    key: jax.Array,
    pivots: jax.Array,
    top: jax.Array,
    *,
    dtype: jnp.dtype,
    spec: Any,
) -> jax.Array:
    x, pivots, top = lax.optimization_barrier((jnp.asarray(x), pivots, top))
    keys, ranks = _keys(x, rate, dtype), counting.ranks(x, top, spec)
    # The smallest integer is not the rank of any entry.
    least = jnp.full_like(ranks, jnp.iinfo(ranks.dtype).min)
    ranks = jnp.where(keys == _signed(key, keys.dtype), ranks, least)
    counts = counting.count([ranks >= p for p in _signed(pivots, ranks.dtype)])
    return counting.over_shards(lax.psum, counts, spec)


def _kept(
    x: jax.Array,
    rate: Any,
    key: jax.Array,
    rank: jax.Array,
    top: jax.Array,
    *,
    dtype: jnp.dtype,
    spec: Any,
) -> jax.Array:
    x, key, top = lax.optimization_barrier((jnp.asarray(x), key, top))
    keys, ranks = _keys(x, rate, dtype), counting.ranks(x, top, spec)
    key, rank = _signed(key, keys.dtype), _signed(rank, ranks.dtype)
    return (keys > key) | ((keys == key) & (ranks > rank))


# The rank of an entry is this minus its index, so the first entry has the highest; as
# an unsigned integer it is 2^32 - 1 minus the index.
_TOP_RANK = np.int32(2**31 - 1)


def _keys(x: jax.Array, rate: Any, dtype: jnp.dtype) -> jax.Array:
    """The scores as signed integers in their order."""
    x = x.astype(dtype)
    # A product: XLA rounds quotients `x / cost` once or twice, depending on the shape.
    return ordered_bits(x) if rate is None else ordered_products(x, rate)


def _unsigned(keys: jax.Array) -> jax.Array:
    """Converts signed integers to unsigned ones in the same order, starting at 0."""
    wide = jnp.dtype("int64" if keys.dtype.itemsize == 8 else "int32")
    shifted = keys.astype(wide) - np.array(jnp.iinfo(keys.dtype).min, wide)
    return lax.bitcast_convert_type(shifted, jnp.dtype(f"u{wide.name}"))


def _signed(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The inverse of `_unsigned`, for integers of a dtype."""
    wide = jnp.dtype("int64" if keys.dtype.itemsize == 8 else "int32")
    shifted = lax.bitcast_convert_type(keys, wide)
    return (shifted + np.array(jnp.iinfo(dtype).min, wide)).astype(dtype)


def _mapped(kernel: Callable, b: Batch, dtype: jnp.dtype) -> Callable:
    return _jitted(kernel, jnp.dtype(dtype), b.stacked, b.spec)


@functools.cache
def _jitted(kernel: Callable, dtype: jnp.dtype, stacked: bool, spec: Any) -> Callable:
    """A kernel mapped over a batch, whose operands are tables with a row per leaf.

    All trees share the jitted function, so that each shape is compiled once.
    """
    one = functools.partial(kernel, dtype=dtype, spec=spec)

    def mapped(values: Any, leaves: Any, *tables: Any, tops: Any = None) -> jax.Array:
        rows = [None if t is None else _of_leaves(t, leaves) for t in tables]
        rows += [] if tops is None else [tops]
        if stacked:
            return jax.vmap(one)(values, *rows)
        return one(values, *(None if r is None else r[0] for r in rows))

    return jax.jit(mapped)


def _of_leaves(table: jax.Array, leaves: jax.Array) -> jax.Array:
    """The rows of some leaves; a table of one row holds for all leaves."""
    if table.shape[0] == 1:
        return jnp.broadcast_to(table, (leaves.shape[0], *table.shape[1:]))
    return jnp.asarray(table)[leaves]
