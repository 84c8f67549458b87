"""Values, masks and small numbers as bits: what the packed formats are made of."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def moved(x: jax.Array, move: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns `move(x)`, to the bit.

    Floats are moved as the unsigned integers of their bits: a narrow one may be
    widened and rounded back on its way, which changes the bits of a NaN. Tangents
    are moved as what they are, so that gradients go through.

    Args:
      x: an array.
      move: puts the entries of an array elsewhere, and zeros where there are none;
        linear, and for integers and floats alike.

    Returns:
      An array of the type of `x`.

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

    # The derivative of a linear map is the map; that of integers would be nothing.
    exactly.defjvp(lambda x, t: (exactly(*x), move(*t)))
    return exactly(x)


def to_mask(bits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the mask of which `np.packbits` made these.

    Args:
      bits: (ceil(size / 8),), the first entry highest, uint8.
      shape: of the mask.

    Returns:
      A boolean array of that shape.

    Example:
      >>> to_mask(jnp.array([0b10100000], jnp.uint8), (3,))
      Array([ True, False,  True], dtype=bool)
    """
    return jnp.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)


def ranks(bits: jax.Array, count: int) -> jax.Array:
    """Returns, for each entry of a mask, how many before it are True.

    A running sum over bytes, and a count of bits within each: an eighth of the steps
    that a running sum over entries takes.

    Args:
      bits: (ceil(count / 8),), the first entry highest, uint8.
      count: how many entries there are.

    Returns:
      (count,), int32.

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
    """Returns numbers in ceil(log2 below) bits each.

    Args:
      x: integers in [0, below).
      below: what all are below, positive.

    Returns:
      Their bits in row-major order, the highest of each first, uint8.

    Example:
      >>> of_numbers(np.array([2, 1, 3]), 4)  # 10 01 11 and two zeros
      array([156], dtype=uint8)
    """
    shifts = np.arange((below - 1).bit_length())[::-1]
    return np.packbits((x.reshape(-1, 1) >> shifts) & 1)


def to_numbers(bits: jax.Array, count: int, below: int) -> jax.Array:
    """Returns the numbers of which `of_numbers` made these.

    Args:
      bits: what `of_numbers` returned.
      count: how many there are.
      below: as in `of_numbers`.

    Returns:
      (count,), int32.

    Example:
      >>> to_numbers(jnp.array([156], jnp.uint8), 3, 4)
      Array([2, 1, 3], dtype=int32)
    """
    shifts = jnp.arange((below - 1).bit_length(), dtype=jnp.int32)[::-1]
    each = jnp.unpackbits(bits, count=count * shifts.size).astype(jnp.int32)
    return jnp.sum(each.reshape(count, shifts.size) << shifts[None], 1, jnp.int32)
