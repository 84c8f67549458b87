"""Order-preserving conversions of scores to integers, which selection compares."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import precision

_LIFT = 68  # places that make even the product of a subnormal number and 2^-16 normal


def ordered_bits(x: jax.Array) -> jax.Array:
    """Returns signed integers in the order of `x`, with the same number of bits.

    a < b if and only if bits(a) < bits(b), and a == b if and only if they are equal,
    for all floats but NaN, including subnormal numbers and both zeros; every NaN
    ranks above infinity. Only integer operations are used, because floating-point
    comparisons flush subnormal numbers to zero on some devices.

    Args:
      x: floating-point or integer array of 16, 32 or 64 bits.

    Returns:
      An int16, int32 or int64 array of the shape of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> bits = ordered_bits(jnp.array([-1.0, -0.0, 0.0, 1e-45, jnp.inf, jnp.nan]))
      >>> [int(b) for b in jnp.sign(bits[1:] - bits[:-1])]
      [1, 0, 1, 1, 1]
    """
    signed = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    least = np.array(jnp.iinfo(signed).min, signed)
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return lax.bitcast_convert_type(x, signed) ^ least
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x
    bits = lax.bitcast_convert_type(x, signed)
    infinity = np.asarray(jnp.inf, x.dtype).view(signed)
    # The bits of a negative float are the sign bit and a magnitude, which counts down.
    ordered = jnp.where(bits < 0, least - bits, bits)
    nan = jnp.abs(ordered) > infinity
    return jnp.where(nan, infinity + np.array(1, signed), ordered)


def ordered_products(x: jax.Array, rate: jax.Array) -> jax.Array:
    """Returns signed integers in the order of x * rate, without underflow.

    Products are rounded to the mantissa of the type, but not to its range: the
    product of a positive number is never 0. Negative products above -2^-87 (in
    float32) tie with each other, below zero.

    Args:
      x: float32 or float64 array.
      rate: scalar of the same type, in [2^-16, 1].

    Returns:
      An int32 or int64 array of the shape of `x`; every NaN ranks above infinity.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.float32([0, 1e-45, 1e-38, 1e38])
      >>> bits = ordered_products(x, jnp.float32(1e-4))
      >>> [int(b) for b in jnp.sign(bits[1:] - bits[:-1])]
      [1, 1, 1]
    """
    nmant = int(jnp.finfo(x.dtype).nmant)
    tiny = precision.magnitude_bits(x) >> nmant < 32
    product = jnp.where(tiny, precision.lifted(x, _LIFT), x) * rate
    # Lifted products continue the order of the others below the normal range, for at
    # most nmant + 16 further exponents; zero comes below all of them.
    keys = precision.magnitude_bits(product)
    keys -= jnp.where(tiny, jnp.full_like(keys, _LIFT << nmant), 0)
    room = (nmant + 17) << nmant
    keys = jnp.maximum(keys, -room)
    below = -room - 1 - jnp.maximum(keys - room, 0)
    keys = jnp.where(product < 0, below, keys)
    infinity = np.asarray(jnp.inf, x.dtype).view(keys.dtype)
    return jnp.minimum(keys, infinity + np.array(1, keys.dtype))


def greatest_number(dtype: jnp.dtype) -> int:
    """Returns the largest value of `ordered_bits` that does not stand for a NaN.

    Args:
      dtype: dtype of the scores.

    Returns:
      An integer.
    """
    signed = np.dtype(f"int{dtype.itemsize * 8}")
    if jnp.issubdtype(dtype, jnp.floating):
        return int(np.asarray(jnp.inf, dtype).view(signed))
    return int(np.iinfo(signed).max)
