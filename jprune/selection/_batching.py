"""Batches of leaves: many small leaves of one shape cost as much as one.

Without batches, a tree of thousands of biases and norms would compile, and launch, a
reduction for each of them. A batch is one leaf, or several leaves stacked along a new
first axis. The kernels of a search are written for one leaf and mapped over the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counting
from jprune._core.ordering import greatest_number, ordered_bits, ordered_products

_SMALL = 2**14  # entries: larger leaves get reductions of their own
_SMALL_ON_CPU = 2**17  # where the host can read and stack leaves in place
_MANY = 4  # leaves of one shape: fewer are not worth stacking


class Batch(NamedTuple):
    """Leaves that are searched together.

    Attributes:
      values: the leaf, or the leaves stacked along a first axis; leaves of different
        shapes are flattened, and padded with the smallest score.
      leaves: (B,) int32, indices of the leaves in the tree.
      stacked: whether `values` has the additional first axis.
      spec: inside `jax.shard_map`, the `PartitionSpec` of the leaf.
    """

    values: Any
    leaves: np.ndarray
    stacked: bool
    spec: Any = None


def batch(
    leaves: Sequence[Any], specs: Sequence[Any], dtype: jnp.dtype, on_host: bool
) -> list[Batch]:
    """Groups leaves into batches.

    Args:
      leaves: arrays.
      specs: `PartitionSpec` of each leaf inside `jax.shard_map`, or None.
      dtype: dtype in which scores are compared.
      on_host: whether values are known, so that the host can stack leaves of different
        shapes; leaves on several devices are then not stacked.

    Returns:
      Batches that together hold every leaf once.
    """
    classes: dict[Any, list[int]] = {}
    for i, (x, spec) in enumerate(zip(leaves, specs, strict=True)):
        classes.setdefault(_class(i, x, spec, on_host), []).append(i)
    batches = []
    for members in classes.values():
        if len(members) < _MANY:
            batches += [
                Batch(leaves[i], np.array([i], np.int32), False, specs[i])
                for i in members
            ]
            continue
        parts = [leaves[i] for i in members]
        values = _stack_on_host(parts, dtype) if on_host else jnp.stack(parts)
        batches.append(Batch(values, np.array(members, np.int32), True))
    return batches


def unbatch(
    batches: Sequence[Batch], masks: Sequence[Any], like: Sequence[Any]
) -> list[Any]:
    """Splits the masks of batches into one mask per leaf, in the order of the tree.

    Args:
      batches: batches from `batch`.
      masks: masks of the values of each batch.
      like: the leaves.

    Returns:
      A list of masks, on the devices of their leaves.
    """
    result: list[Any] = [None] * len(like)
    for b, found in zip(batches, masks, strict=True):
        if not b.stacked:
            result[b.leaves[0]] = found
            continue
        parts = [like[i] for i in b.leaves]
        if isinstance(found, jax.core.Tracer):
            rows = [_row(found, i) for i in range(len(parts))]
        else:
            rows = [
                row[: np.size(x)].reshape(np.shape(x))
                for row, x in zip(np.asarray(found), parts, strict=True)
            ]
            rows = _put(rows, parts[0])
        for i, row in zip(b.leaves, rows, strict=True):
            result[i] = row
    return result


def key_range(b: Batch, dtype: jnp.dtype, rates: Any) -> jax.Array:
    """Returns the smallest and the largest key of each leaf of a batch.

    Args:
      b: batch of B leaves.
      dtype: dtype in which scores are compared.
      rates: (L,) array of that dtype, factors for the scores of each leaf of the tree;
        or None.

    Returns:
      (B, 2) unsigned keys, without the first axis for a leaf that is not stacked.
    """
    return _mapped(_key_range, b, dtype)(b.values, b.leaves, rates)


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
    return _mapped(_key_counts, b, dtype)(b.values, b.leaves, rates, pivots)


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
    return _mapped(_tie_counts, b, dtype)(b.values, b.leaves, rates, keys, pivots)


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
    return _mapped(_kept, b, dtype)(b.values, b.leaves, rates, keys, ranks)


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
    return ~(sizes - jnp.ones_like(sizes))


# Kernels for one leaf. The values go through a barrier together with operands that
# change from pass to pass: otherwise XLA would compute the keys and ranks of all
# entries ahead of the loop, and hold them in memory.


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
    *,
    dtype: jnp.dtype,
    spec: Any,
) -> jax.Array:
    x, pivots, top = lax.optimization_barrier((jnp.asarray(x), pivots, _TOP_RANK))
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
    *,
    dtype: jnp.dtype,
    spec: Any,
) -> jax.Array:
    x, key, top = lax.optimization_barrier((jnp.asarray(x), key, _TOP_RANK))
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

    def mapped(values: jax.Array, leaves: jax.Array, *tables: Any) -> jax.Array:
        rows = [None if t is None else _rows(t, leaves) for t in tables]
        if stacked:
            return jax.vmap(one)(values, *rows)
        return one(values, *(None if r is None else r[0] for r in rows))

    return jax.jit(mapped)


def _rows(table: jax.Array, leaves: jax.Array) -> jax.Array:
    """The rows of some leaves; a table of one row holds for all leaves."""
    if table.shape[0] == 1:
        return jnp.broadcast_to(table, (leaves.shape[0], *table.shape[1:]))
    return jnp.asarray(table)[leaves]


def _class(i: int, x: Any, spec: Any, on_host: bool) -> Any:
    """Leaves of equal class are stacked; a leaf that is not is its own class."""
    size = np.size(x)
    if spec is not None or size > (_SMALL_ON_CPU if on_host else _SMALL):
        return i
    if not on_host:
        return np.shape(x), jnp.result_type(x)
    device: Any = None
    if isinstance(x, jax.Array):
        devices = x.sharding.device_set
        if len(devices) > 1:
            return i
        # Elsewhere a large leaf stays on its device.
        if size > _SMALL and any(d.platform != "cpu" for d in devices):
            return i
        device = x.committed and x.sharding
    return _row_length(size), jnp.result_type(x), device


def _row(x: jax.Array, i: int) -> jax.Array:
    """Returns `x[i]`, with an index that is hidden from XLA.

    XLA compiles equal kernels once. With a constant index the kernels of all rows
    differ, and compiling them took nearly all of the time for a tree of a thousand
    leaves. XLA moves a constant scalar into the kernel, even from behind a barrier; it
    does not move a constant of two entries.
    """
    halves = lax.optimization_barrier(jnp.asarray(np.array([i, 0], np.int32)))
    return lax.dynamic_index_in_dim(x, jnp.sum(halves), keepdims=False)


def _row_length(size: int) -> int:
    """A power of two, so that few kernels serve all sizes."""
    return 1 << max(0, size - 1).bit_length()


def _stack_on_host(leaves: list[Any], dtype: jnp.dtype) -> jax.Array:
    """Flat leaves as the rows of one array, padded with the smallest score.

    Searches never count the padding: pivots are above the smallest key, and ranks are
    those of entries. The smallest score is that of the dtype in which scores are
    compared: a leaf's own dtype may have no infinity, and its smallest integer may be
    larger than scores of other leaves.
    """
    host = [np.asarray(x) for x in jax.device_get(leaves)]
    most = max(x.size for x in host)
    least = -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    # Large leaves, which are few, are not padded further than to the largest of them.
    length = most if most > _SMALL else _row_length(most)
    rows = np.full((len(host), length), least, dtype)
    for row, x in zip(rows, host, strict=True):
        row[: x.size] = x.ravel()
    return _put([rows], leaves[0])[0]


def _put(arrays: list[np.ndarray], like: Any) -> list[jax.Array]:
    """Puts NumPy arrays on the device of a leaf, committed if the leaf is."""
    committed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(arrays, like.sharding if committed else None)
