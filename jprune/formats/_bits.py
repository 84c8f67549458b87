"""Bits: exact moves of values, masks as bits, and small integers in few bits."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def moved(x: jax.Array, move: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns `move(x)`, exact to the bit, and differentiable.

    Floats are moved as unsigned integers with the same bits: XLA may convert narrow
    floats to wider ones and back, which changes the bits of NaNs. Tangents are moved as
    floats.

    Args:
      x: array.
      move: linear function that rearranges the entries of an array of integers or
        floats, and fills with zeros.

    Returns:
      An array of the dtype of `x`.

    Example:
      >>> moved(jnp.array([1.0, -0.0]), lambda x: x[::-1])
      Array([-0.,  1.], dtype=float32)
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return move(x)
    unsigned = f"uint{jnp.finfo(x.dtype).bits}"

    @jax.custom_jvp
    def exactly(x: jax.Array) -> jax.Array:
        bits = move(jax.lax.bitcast_convert_type(x, unsigned))
        return jax.lax.bitcast_convert_type(bits, x.dtype)

    # A linear map is its own derivative; through integers there would be none.
    exactly.defjvp(lambda x, t: (exactly(*x), move(*t)))
    return exactly(x)


def to_mask(bits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unpacks the bits of a mask from `np.packbits`.

    Args:
      bits: (ceil(size / 8),) uint8, the first entry in the highest bit.
      shape: shape of the mask.

    Returns:
      A boolean array of that shape.

    Example:
      >>> to_mask(jnp.array([0b10100000], jnp.uint8), (3,))
      Array([ True, False,  True], dtype=bool)
    """
    return jnp.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)


def ranks(bits: jax.Array, count: int) -> jax.Array:
    """Returns the number of True entries before each entry of a mask.

    A cumulative sum over bytes, and counts of bits within bytes: an eighth of the steps
    of a cumulative sum over entries.

    Args:
      bits: (ceil(count / 8),) uint8, the first entry in the highest bit.
      count: number of entries.

    Returns:
      (count,) int32 array.

    Example:
      >>> ranks(jnp.array([0b10110000], jnp.uint8), 5)
      Array([0, 1, 1, 2, 3], dtype=int32)
    """
    in_byte = jax.lax.population_count(bits).astype(jnp.int32)
    before = jnp.cumsum(in_byte) - in_byte
    above = jnp.array([0xFF00 >> i & 0xFF for i in range(8)], jnp.uint8)
    within = jax.lax.population_count(bits[:, None] & above[None])
    return (before[:, None] + within.astype(jnp.int32)).reshape(-1)[:count]


def of_numbers(x: np.ndarray, below: int) -> np.ndarray:
    """Packs integers to ceil(log2 below) bits each.

    Args:
      x: array of integers in [0, below).
      below: exclusive upper bound, positive.

    Returns:
      uint8 array of their bits in row-major order, the highest bit of each first.

    Example:
      >>> of_numbers(np.array([2, 1, 3]), 4)  # 10 01 11 and two zeros
      array([156], dtype=uint8)
    """
    shifts = np.arange((below - 1).bit_length())[::-1]
    return np.packbits((x.reshape(-1, 1) >> shifts) & 1)


def to_numbers(bits: jax.Array, count: int, below: int) -> jax.Array:
    """Unpacks the integers that `of_numbers` packed.

    Args:
      bits: result of `of_numbers`.
      count: number of integers.
      below: as in `of_numbers`.

    Returns:
      (count,) int32 array.

    Example:
      >>> to_numbers(jnp.array([156], jnp.uint8), 3, 4)
      Array([2, 1, 3], dtype=int32)
    """
    shifts = jnp.arange((below - 1).bit_length(), dtype=jnp.int32)[::-1]
    each = jnp.unpackbits(bits, count=count * shifts.size).astype(jnp.int32)
    return jnp.sum(each.reshape(count, shifts.size) << shifts[None], 1, jnp.int32)
