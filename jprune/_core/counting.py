"""Counts of entries at memory speed, and counts beyond 2^32 without 64-bit types.

Every operation on the entries of a leaf is elementwise or a reduction over all
axes, so sharded leaves are not gathered. What is small, one number per leaf, may be
arrays of NumPy as well: a search that runs on the host then compiles nothing for it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import precision


class Total(NamedTuple):
    """A non-negative integer below 2^47, or an array of them, without 64-bit types.

    JAX has no 64-bit integers by default. A `Total` holds a number modulo 2^32,
    exactly, and an approximation with an error below 2^30. Sums and differences are
    formed word by word, without carries, and the sign of a difference is exact.

    Attributes:
      modular: uint32, the number modulo 2^32.
      rough: float32, the number with an error below 2^30.
    """

    modular: jax.Array
    rough: jax.Array


def total(n: Any) -> Total:
    """Converts integers to a `Total`; negative ones become 0.

    Args:
      n: Python integer, NumPy or JAX array of integers (traced or not), or a
        `Total`, which is returned unchanged.

    Returns:
      A `Total` of the same shape, of NumPy arrays if `n` is one.

    Example:
      >>> int(total(2**33 + 5).modular), float(total(2**33 + 5).rough)
      (5, 8589934592.0)
    """
    if isinstance(n, Total):
        return n
    if isinstance(n, jax.Array):
        n = jnp.maximum(n, jnp.zeros_like(n))
        return Total(n.astype(jnp.uint32), n.astype(jnp.float32))
    exact = np.maximum(np.asarray(n, np.int64), 0)
    as_array = np.asarray if isinstance(n, np.ndarray) else jnp.asarray
    return Total(as_array(exact & 0xFFFFFFFF, np.uint32), as_array(exact, np.float32))


def nearest(x: jax.Array) -> Total:
    """Rounds floating-point numbers to the nearest integers, halves to even.

    Exact for the numbers in `x`. (A float32 above 2^24 is itself a multiple of the
    spacing there: 512 around 5e9.)

    Args:
      x: floating-point array; negative numbers and NaN become 0, numbers above 2^63
        (2^54 in float64) become that.

    Returns:
      A `Total` of the same shape.

    Example:
      >>> found = nearest(jnp.float32(5e9))
      >>> int(found.modular) + 2**32, float(found.rough)
      (5000000000, 5000000000.0)
    """
    x = jnp.round(precision.wide(x))
    # `rough` has to be within 2^30, and is exact where x is float32.
    most = 2.0**63 if x.dtype == jnp.float32 else 2.0**54
    x = jnp.minimum(jnp.where(x > 0, x, jnp.zeros_like(x)), most)
    word = 2.0**32  # a power of two: the quotient and the product are exact
    modular = (x - jnp.floor(x / word) * word).astype(jnp.uint32)
    return Total(modular, x.astype(jnp.float32))


def gap(a: Total, b: Total) -> jax.Array:
    """Returns a - b as float32; its sign is exact, and so are small differences.

    Args:
      a: a `Total`.
      b: a `Total` that broadcasts with `a`.

    Returns:
      A float32 array.
    """
    rough = a.rough - b.rough
    xp = rough.__array_namespace__()
    near = (a.modular - b.modular).view(np.int32)
    return xp.where(abs(rough) < 2.0**30, near.astype(np.float32), rough)


def minus(a: Total, b: Total) -> Total:
    """Returns a - b, which may be negative; `gap` still gives its sign.

    Args:
      a: a `Total`.
      b: a `Total` that broadcasts with `a`.

    Returns:
      A `Total`.
    """
    return Total(a.modular - b.modular, a.rough - b.rough)


def how_often(a: Total, unit: jax.Array) -> jax.Array:
    """Returns floor(a / unit) where it is below 2^32, else some large number.

    Args:
      a: a `Total`.
      unit: uint32 array in [1, 2^16].

    Returns:
      A uint32 array.
    """
    xp = unit.__array_namespace__()
    guess = xp.clip(xp.floor(a.rough / unit.astype(np.float32)), 0, 2.0**32 - 2**9)
    guess = guess.astype(np.uint32)
    # The error of the guess is small, so the remainder modulo 2^32 is the remainder.
    rest = (a.modular - guess * unit).view(np.int32)
    return guess + (rest // unit.astype(np.int32)).view(np.uint32)


def count(conditions: Sequence[jax.Array]) -> jax.Array:
    """Counts the True entries of several arrays in one pass.

    A single reduction of several operands, which XLA's CPU backend runs at the speed
    of one float sum; separate integer sums are much slower.

    Args:
      conditions: R >= 2 boolean arrays of one shape, with fewer than 2^32 entries.

    Returns:
      (R,) uint32 counts.
    """
    ones = [(c.astype(jnp.int32), lax.add) for c in conditions]  # wraps, and back
    return lax.bitcast_convert_type(jnp.stack(reduced(ones)), jnp.uint32)


def true_entries(
    mask: jax.typing.ArrayLike, most: int = 2**32 - 1
) -> list[tuple[int, jax.Array]]:
    """Counts the True entries of an array of any size.

    Args:
      mask: boolean array.
      most: largest number of entries that one count is of.

    Returns:
      For each part of the array its number of entries and a uint32 count. There is one
      part, unless the array has more than `most` entries.

    Example:
      >>> [(n, int(count)) for n, count in true_entries(jnp.arange(5) > 0, most=3)]
      [(3, 2), (2, 2)]
    """
    shape = np.shape(mask)
    size = math.prod(shape)
    if size <= most:
        return [(size, jnp.sum(mask, dtype=jnp.uint32))]
    axis = int(np.argmax(shape))
    rows = most // (size // shape[axis])
    pieces = [
        lax.slice_in_dim(jnp.asarray(mask), i, min(i + rows, shape[axis]), axis=axis)
        for i in range(0, shape[axis], rows)
    ]
    return [(p.size, jnp.sum(p, dtype=jnp.uint32)) for p in pieces]


def extremes(keys: jax.Array) -> jax.Array:
    """Returns the minimum and the maximum of an integer array, in one pass.

    Args:
      keys: integer array; for an empty one the result is (largest, smallest) integer
        of its type.

    Returns:
      (2,) array of the dtype of `keys`.
    """
    return jnp.stack(reduced([(keys, lax.min), (keys, lax.max)]))


def unstacked(x: jax.Array) -> list[jax.Array]:
    """Returns the entries of a vector; `list(x)` would compile a program with as many.

    Args:
      x: (n,) array.

    Returns:
      A list of n scalars.
    """
    if isinstance(x, jax.core.Tracer):
        return list(x)
    return jax.device_put(list(np.asarray(x)))


def reduced(
    pairs: Sequence[tuple[jax.Array, Callable]], axes: Sequence[int] | None = None
) -> Sequence[jax.Array]:
    """Reduces several integer arrays of one shape, in one pass.

    Args:
      pairs: arrays, each with its operation: `lax.add`, `lax.min` or `lax.max`.
      axes: axes to reduce over; all if None.

    Returns:
      A list with one array for each pair. Over no entries the sum is 0, the minimum the
      largest integer of the type, and the maximum the smallest.
    """
    arrays, ops = zip(*pairs, strict=True)
    if isinstance(arrays[0], np.ndarray):
        over = None if axes is None else tuple(axes)
        return [
            _UFUNC[op].reduce(x, over, x.dtype, initial=_START[op](x.dtype))
            for x, op in pairs
        ]
    return lax.reduce(
        list(arrays),
        [_START[op](x.dtype) for x, op in pairs],
        lambda a, b: [op(x, y) for op, x, y in zip(ops, a, b, strict=True)],
        tuple(range(arrays[0].ndim)) if axes is None else tuple(axes),
    )


_UFUNC: dict[Callable, np.ufunc] = {
    lax.add: np.add,
    lax.min: np.minimum,
    lax.max: np.maximum,
}

_START: dict[Callable, Callable[[Any], np.ndarray]] = {
    lax.add: lambda dtype: np.zeros((), dtype),
    lax.min: lambda dtype: np.array(jnp.iinfo(dtype).max, dtype),
    lax.max: lambda dtype: np.array(jnp.iinfo(dtype).min, dtype),
}


def ranks(x: jax.Array, top: jax.Array, spec: Any = None) -> jax.Array:
    """Returns `top` minus the row-major index of each entry.

    Args:
      x: array of fewer than 2^32 entries; inside `jax.shard_map` the local shard.
      top: int32, the rank of the first entry.
      spec: inside `jax.shard_map`, the `PartitionSpec` of the whole array, in which
        indices are then counted.

    Returns:
      An int32 array with the shape and sharding of `x`, wrapped on overflow.

    Example:
      >>> ranks(jnp.ones((2, 3)), jnp.int32(10)).tolist()
      [[10, 9, 8], [7, 6, 5]]
    """
    shape = x.shape
    names = _names_by_axis(spec, x.ndim)
    # On a mesh of explicit axes the indices are sharded as `x` is: with replicated
    # indices XLA would gather the sharded keys.
    sharding = jax.typeof(x).sharding
    sharding = sharding if any(sharding.spec) else None
    # Starts from `top`, because XLA would move constant ranks out of a loop, and hold
    # them in memory.
    result, stride = jnp.zeros_like(x, jnp.int32) + top, 1
    for axis in reversed(range(x.ndim)):
        place = lax.broadcasted_iota(jnp.int32, shape, axis, out_sharding=sharding)
        if names[axis]:
            place += lax.axis_index(names[axis]) * np.int32(shape[axis])
        result -= place * np.uint32(stride).astype(np.int32)
        stride *= shape[axis] * math.prod(lax.axis_size(n) for n in names[axis])
    return result


def over_shards(reduce: Callable[..., jax.Array], x: jax.Array, spec: Any) -> jax.Array:
    """Returns `reduce(x, axis_names)` over the mesh axes of a spec, if any.

    Args:
      reduce: `lax.psum`, `lax.pmin` or `lax.pmax`.
      x: what each shard of the array has found.
      spec: the array's `PartitionSpec` inside `jax.shard_map`, else None. Over
        mesh axes that it does not name the array is replicated, and is counted
        once.

    Returns:
      An array of `x`'s shape.
    """
    names = [n for entry in _names_by_axis(spec, 0) for n in entry]
    return reduce(x, tuple(names)) if names else x


def shard_factor(spec: Any) -> int:
    """Returns the number of shards that an array is split into.

    Args:
      spec: `PartitionSpec` of the array inside `jax.shard_map`, or None.

    Returns:
      An integer, 1 for None.
    """
    return math.prod(
        lax.axis_size(n) for entry in _names_by_axis(spec, 0) for n in entry
    )


def _names_by_axis(spec: Any, ndim: int) -> list[tuple[str, ...]]:
    """The mesh axes along each array axis."""
    entries = [] if spec is None else list(spec)
    named = [e if isinstance(e, tuple) else () if e is None else (e,) for e in entries]
    return named + [()] * (ndim - len(named))
