"""Counting at memory speed, and integers beyond 2^32 without 64-bit types.

Every operation on the entries of a leaf is elementwise or a reduction over all
axes, so a sharded leaf stays where it is.
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

    JAX has no 64-bit integers unless told otherwise. What is known of a number
    here is its exact value modulo 2^32, and a float that is off by less than
    2^30: together, the difference of two numbers has an exact sign.

    Attributes:
      modular: uint32, the number modulo 2^32.
      rough: float32, the number roughly.
    """

    modular: jax.Array
    rough: jax.Array


def total(n: Any) -> Total:
    """Returns an integer or an array of integers as a `Total`; negative ones as 0.

    Args:
      n: a Python integer, a NumPy or JAX array of integers, traced or not, or a
        `Total`, which is returned as it is.

    Returns:
      A `Total` of the same shape.

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
    return Total(
        jnp.asarray(exact & 0xFFFFFFFF, jnp.uint32), jnp.asarray(exact, jnp.float32)
    )


def nearest(x: jax.Array) -> Total:
    """Returns the nearest integers of floating-point numbers, halves to even.

    Exact for what `x` holds: of a float32 beyond 2^24 the spacing of its type is
    all that is lost, and it was lost before.

    Args:
      x: a floating-point array; negative numbers and NaN count as 0, numbers above
        2^63 (2^54 in float64) as that.

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
    """Returns a - b as float32: the sign is exact, and so is zero.

    Args:
      a: a `Total`.
      b: a `Total` that broadcasts with it.

    Returns:
      A float32 array.
    """
    rough = a.rough - b.rough
    near = lax.bitcast_convert_type(a.modular - b.modular, jnp.int32)
    return jnp.where(jnp.abs(rough) < 2.0**30, near.astype(jnp.float32), rough)


def minus(a: Total, b: Total) -> Total:
    """Returns a - b; if that is negative, `gap` still knows its sign.

    Args:
      a: a `Total`.
      b: a `Total` that broadcasts with it.

    Returns:
      A `Total`.
    """
    return Total(a.modular - b.modular, a.rough - b.rough)


def how_often(a: Total, unit: jax.Array) -> jax.Array:
    """Returns floor(a / unit) where it is below 2^32, else something large.

    Args:
      a: a `Total`.
      unit: a uint32 array in [1, 2^16].

    Returns:
      A uint32 array.
    """
    guess = jnp.clip(jnp.floor(a.rough / unit.astype(jnp.float32)), 0, 2.0**32 - 2**9)
    guess = guess.astype(jnp.uint32)
    # What the guess is off by is small, so the modular rest is the rest itself.
    rest = lax.bitcast_convert_type(a.modular - guess * unit, jnp.int32)
    off = jnp.floor_divide(rest, unit.astype(jnp.int32))
    return guess + lax.bitcast_convert_type(off, jnp.uint32)


def count(conditions: Sequence[jax.Array]) -> jax.Array:
    """Counts the True entries of several arrays in one pass.

    One reduction of several operands: XLA's CPU backend runs it at the speed of
    a single float sum, and would run each integer sum by itself much slower.

    Args:
      conditions: R >= 2 boolean arrays of one shape, of fewer than 2^32 entries.

    Returns:
      (R,) uint32 counts.
    """
    ones = [c.astype(jnp.int32) for c in conditions]  # wraps at 2^31, and back
    sums = _reduce(ones, [0] * len(ones), [lax.add] * len(ones))
    return lax.bitcast_convert_type(jnp.stack(sums), jnp.uint32)


def extremes(keys: jax.Array) -> jax.Array:
    """Returns the least and the greatest of some integers, in one pass.

    Args:
      keys: an integer array; of an empty one the identities are returned.

    Returns:
      (2,) of its dtype.
    """
    info = jnp.iinfo(keys.dtype)
    return jnp.stack(_reduce([keys, keys], [info.max, info.min], [lax.min, lax.max]))


def _reduce(
    operands: Sequence[jax.Array], starts: Sequence[int], ops: Sequence[Callable]
) -> Sequence[jax.Array]:
    """Reduces several arrays of one shape over all axes, in one pass."""
    return lax.reduce(
        list(operands),
        [np.array(s, x.dtype) for s, x in zip(starts, operands, strict=True)],
        lambda a, b: [op(x, y) for op, x, y in zip(ops, a, b, strict=True)],
        tuple(range(operands[0].ndim)),
    )


def ranks(x: jax.Array, top: jax.Array, spec: Any = None) -> jax.Array:
    """Returns for each entry `top` minus its row-major index.

    Args:
      x: an array of fewer than 2^32 entries; inside `jax.shard_map` the local
        shard.
      top: int32, the rank of the first entry.
      spec: inside `jax.shard_map`, the array's `PartitionSpec`: the index is
        that in the whole array.

    Returns:
      An int32 array of `x`'s shape and sharding, wrapped where out of range.

    Example:
      >>> ranks(jnp.ones((2, 3)), jnp.int32(10)).tolist()
      [[10, 9, 8], [7, 6, 5]]
    """
    shape = x.shape
    names = _names_by_axis(spec, x.ndim)
    # On a mesh of explicit axes the indices are sharded as `x` is: of replicated
    # ones and sharded keys XLA would gather the keys.
    sharding = jax.typeof(x).sharding
    sharding = sharding if any(sharding.spec) else None
    # It starts from `top`: a constant XLA would compute ahead of a loop, and keep.
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
    """Returns into how many shards a spec cuts an array.

    Args:
      spec: its `PartitionSpec` inside `jax.shard_map`, or None.

    Returns:
      An integer.
    """
    return math.prod(
        lax.axis_size(n) for entry in _names_by_axis(spec, 0) for n in entry
    )


def _names_by_axis(spec: Any, ndim: int) -> list[tuple[str, ...]]:
    """The mesh axes along each array axis."""
    entries = [] if spec is None else list(spec)
    named = [e if isinstance(e, tuple) else () if e is None else (e,) for e in entries]
    return named + [()] * (ndim - len(named))
