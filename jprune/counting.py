"""The k-th largest of integer keys, by counting: the engine of `jprune.selection`.

A pass over the keys counts how many of them reach each of seven pivots, which
gives three bits of the answer. Every operation on the keys is elementwise or a
sum over all axes, so sharded keys stay where they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Seven pivots a pass: about what a CPU counts in the time that it takes to read.
_DIGIT_BITS = 3
_PIVOTS = 2**_DIGIT_BITS - 1


def kth_largest(
    keys: list[jax.Array], k: jax.Array, bits: int, needed: jax.Array | bool = True
) -> jax.Array:
    """Returns the largest t below 2^bits that at least k keys reach.

    Args:
      keys: unsigned integer arrays of one dtype, all below 2^bits.
      k: (1,) int32 where all arrays are counted together, (len(keys),) where
        each is for itself.
      bits: how many bits of the keys are in use.
      needed: whether to search at all, a Python or a traced bool.

    Returns:
      The thresholds, shaped as `k`, of the keys' dtype; 0 if not needed.
    """
    passes = -(-bits // _DIGIT_BITS)
    dtype = keys[0].dtype
    steps = np.arange(1, _PIVOTS + 1, dtype=np.int32)

    def refine(i: jax.Array, t: jax.Array) -> jax.Array:
        shift = (_DIGIT_BITS * (passes - 1 - i)).astype(dtype)
        pivots = t[:, None] + (jnp.asarray(steps, dtype) << shift)[None]
        counts = tally(
            [
                [x >= p for p in pivots[g if k.size == len(keys) else 0]]
                for g, x in enumerate(keys)
            ],
            k.size,
        )
        # The first digit has fewer bits than the others where 3 does not divide.
        fits = steps < jnp.left_shift(1, jnp.minimum(bits - shift.astype(jnp.int32), 3))
        reached = (counts >= k[:, None]) & fits[None]
        digit = jnp.sum(reached, axis=1, dtype=jnp.int32)
        return t + (digit.astype(dtype) << shift)

    start = jnp.zeros(k.shape, dtype)
    return lax.fori_loop(0, jnp.where(needed, passes, 0), refine, start)


def tally(conditions: list[list[jax.Array]], groups: int) -> jax.Array:
    """Counts True entries: of each leaf (groups = leaves) or of all (groups = 1).

    Args:
      conditions: for each leaf, R boolean arrays of its shape.
      groups: the number of leaves, or 1.

    Returns:
      (groups, R) int32 counts.
    """
    counts = jnp.stack([count(c) for c in conditions])
    if groups == 1:
        return jnp.sum(counts, axis=0, keepdims=True, dtype=jnp.int32)
    return counts


def count(conditions: list[jax.Array]) -> jax.Array:
    """Counts the True entries of several arrays in one pass.

    One reduction of several operands: XLA's CPU backend runs it at the speed of
    a single float sum, and would run each integer sum by itself much slower.

    Args:
      conditions: R boolean arrays of one shape.

    Returns:
      (R,) int32 counts.
    """
    ones = [c.astype(jnp.int32) for c in conditions]
    sums = lax.reduce(
        ones,
        [jnp.int32(0)] * len(ones),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        tuple(range(conditions[0].ndim)),
    )
    return jnp.stack(sums)


def flat_index(x: jax.Array) -> jax.Array:
    """Returns the row-major index of each entry, without reshaping sharded axes.

    Args:
      x: an array of fewer than 2^32 entries.

    Returns:
      A uint32 array of its shape.
    """
    strides = np.cumprod([1, *x.shape[:0:-1]])[::-1] if x.ndim else []
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        iota = lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        index += iota * jnp.uint32(stride)
    return index
