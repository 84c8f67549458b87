"""Floating-point arithmetic that loses nothing: wide types, no flushed numbers.

Many devices treat subnormal numbers as zero in floating-point operations, and XLA
may divide by multiplying with an inverse, which is subnormal for divisors above
8.5e37 in float32. What follows works on the bits where that matters.
"""

import jax
import jax.numpy as jnp
from jax import lax

LIFT = 68  # brings products of subnormal numbers with 2^-16 into the normal range


def wide(x: jax.Array) -> jax.Array:
    """Returns an array in float32, or as it is where it is float64.

    Args:
      x: a real array.

    Returns:
      The array, in float32 or float64.
    """
    is_wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    return x if is_wide else x.astype(jnp.float32)


def magnitude_bits(x: jax.Array) -> jax.Array:
    """Returns the bits of |x| as signed integers, in the order of |x|.

    Args:
      x: float32 or float64.

    Returns:
      int32 or int64, not negative; a NaN is above infinity.
    """
    signed = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    return lax.bitcast_convert_type(x, signed) & jnp.iinfo(signed).max


def lifted(x: jax.Array, places: int = LIFT) -> jax.Array:
    """Returns x * 2^places, exactly, for subnormal numbers too.

    Args:
      x: float32 or float64.
      places: how far to scale; the product has to be in the normal range.

    Returns:
      The products, in `x`'s type.

    Example:
      >>> float(lifted(jnp.float32(2.0**-149), 150))
      2.0
    """
    info, bits = jnp.finfo(x.dtype), magnitude_bits(x)
    # A subnormal number is an integer times the least one.
    least = 2.0 ** (int(info.minexp) - int(info.nmant) + places)
    small = bits.astype(x.dtype) * least
    small = jnp.where(jnp.signbit(x), -small, small)
    return jnp.where(bits >> info.nmant == 0, small, x * 2.0**places)


def scaled(
    x: jax.Array, axis: int | tuple[int, ...] | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scales by a power of two, so that the largest magnitude is in [1, 4).

    Args:
      x: float32 or float64.
      axis: the axes that are scaled together; all of them if None.

    Returns:
      y, a and b with x = y * a * b exactly; a and b are powers of two of size one
      along `axis`. Zeros stay zeros.

    Example:
      >>> y, a, b = scaled(jnp.float32(jnp.array([3.0e38, 1.0e38])))
      >>> y.astype(int).tolist(), float(b) == 2.0**126
      ([3, 1], True)
    """
    x = jnp.asarray(x)
    nmant = int(jnp.finfo(x.dtype).nmant)

    def exponent(x: jax.Array) -> jax.Array:
        bits = jnp.max(magnitude_bits(x), axis, keepdims=True, initial=0)
        return bits >> nmant

    tiny = exponent(x) < LIFT
    x = jnp.where(tiny, lifted(x), x)
    ones = jnp.ones(tiny.shape, x.dtype)
    # Clipped to where the power and its inverse are both normal.
    bias = int(jnp.finfo(x.dtype).maxexp) - 1
    field = jnp.clip(exponent(x), 1, 2 * bias - 1)
    power = lax.bitcast_convert_type(field << nmant, x.dtype)
    inverse = lax.bitcast_convert_type((2 * bias - field) << nmant, x.dtype)
    return x * inverse, jnp.where(tiny, ones * 2.0**-LIFT, ones), power
