"""Floating-point arithmetic at the ends of the range of float32.

Many devices flush subnormal numbers to zero in floating-point operations. XLA may
divide by multiplying with the inverse, which is subnormal for divisors above 8.5e37
in float32. The functions here work on bits where that matters.
"""

import jax
import jax.numpy as jnp
from jax import lax


def wide(x: jax.Array) -> jax.Array:
    """Converts an array to float32, unless it is float64.

    Args:
      x: real array.

    Returns:
      The array, in float32 or float64.
    """
    is_wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    return x if is_wide else x.astype(jnp.float32)


def magnitude_bits(x: jax.Array) -> jax.Array:
    """Returns the bits of |x| as signed integers, which are in the order of |x|.

    Args:
      x: float32 or float64 array.

    Returns:
      A non-negative int32 or int64 array; NaN ranks above infinity.
    """
    signed = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    return lax.bitcast_convert_type(x, signed) & jnp.iinfo(signed).max


def lifted(x: jax.Array, places: int) -> jax.Array:
    """Returns x * 2^places, exactly, for subnormal numbers too.

    Args:
      x: float32 or float64 array.
      places: exponent of the factor. Products have to be in the normal range.

    Returns:
      The products, in the dtype of `x`.

    Example:
      >>> float(lifted(jnp.float32(2.0**-149), 150))
      2.0
    """
    info, bits = jnp.finfo(x.dtype), magnitude_bits(x)
    # A subnormal number is a multiple of the smallest one.
    least = 2.0 ** (int(info.minexp) - int(info.nmant) + places)
    small = bits.astype(x.dtype) * least
    small = jnp.where(jnp.signbit(x), -small, small)
    return jnp.where(bits >> info.nmant == 0, small, x * 2.0**places)


def scaled(
    x: jax.Array, axis: int | tuple[int, ...] | None = None
) -> tuple[jax.Array, jax.Array]:
    """Scales by a power of two, so that sums of squares neither over- nor underflow.

    Args:
      x: float32 or float64 array.
      axis: axes that share a power of two; all of them if None.

    Returns:
      y and a power of two, of size one along `axis`, with x = y * power exactly. In
      float32 the largest magnitude of y is in [2^-49, 2^37), or 0. Entries below 2^-63
      times the largest one may underflow, in y or in its squares.

    Example:
      >>> y, power = scaled(jnp.float32(jnp.array([3.0e38, 1.0e38])))
      >>> y.astype(int).tolist(), power.tolist() == [2.0**126]
      ([3, 1], True)
    """
    x = jnp.asarray(x)
    info = jnp.finfo(x.dtype)
    nmant, bias = int(info.nmant), int(info.maxexp) - 1
    top = jnp.max(jnp.abs(x), axis, keepdims=True, initial=0)
    exponent = magnitude_bits(top) >> nmant  # of a subnormal number it is 0
    # Clipped so that the power and its inverse are both normal numbers.
    exponent = jnp.clip(exponent, 1, 2 * bias - 1)
    power = lax.bitcast_convert_type(exponent << nmant, x.dtype)
    inverse = lax.bitcast_convert_type((2 * bias - exponent) << nmant, x.dtype)
    # Where subnormal numbers count, a fixed power that makes them normal.
    tiny, places = exponent < bias - bias // 2, bias // 2 + nmant + 14
    y = jnp.where(tiny, lifted(x, places), x * inverse)
    return y, jnp.where(tiny, jnp.full_like(power, 2.0**-places), power)
