"""Scores as integers in the same order: what selection compares."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import precision


def ordered_bits(x: jax.Array) -> jax.Array:
    """Returns signed integers in the order of `x`, of its own width.

    a < b if and only if bits(a) < bits(b), and a == b likewise, for every pair
    of floats other than NaN, subnormal numbers and both zeros included; every
    NaN ranks above infinity. Only integer operations touch the values, because
    floating-point comparisons flush subnormal numbers to zero on some devices.

    Args:
      x: a floating or integer array of 16, 32 or 64 bits.

    Returns:
      An array of `x`'s shape, dtype int16, int32 or int64.

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
    # A negative float has the sign bit, and its magnitude grows downwards.
    ordered = jnp.where(bits < 0, least - bits, bits)
    nan = jnp.abs(ordered) > infinity
    return jnp.where(nan, infinity + np.array(1, signed), ordered)


def ordered_products(x: jax.Array, rate: jax.Array) -> jax.Array:
    """Returns signed integers in the order of x * rate, without underflow.

    Each product is rounded to the mantissa of its type, as if the type had as many
    exponents as needed: no product of a number above zero is taken for zero. Negative
    products above -2^-87 (in float32) tie with each other, below zero.

    Args:
      x: float32 or float64.
      rate: of that type, in [2^-16, 1].

    Returns:
      An array of `x`'s shape, dtype int32 or int64; every NaN is above infinity.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.float32([0, 1e-45, 1e-38, 1e38])
      >>> bits = ordered_products(x, jnp.float32(1e-4))
      >>> [int(b) for b in jnp.sign(bits[1:] - bits[:-1])]
      [1, 1, 1]
    """
    nmant = int(jnp.finfo(x.dtype).nmant)
    tiny = precision.magnitude_bits(x) >> nmant < 32
    product = jnp.where(tiny, precision.lifted(x), x) * rate
    # Lifted products continue the order of the others below the normal range. The
    # least one has 17 exponents more than a mantissa has bits below it; then zero.
    keys = precision.magnitude_bits(product)
    keys -= jnp.where(tiny, jnp.full_like(keys, precision.LIFT << nmant), 0)
    room = (nmant + 17) << nmant
    keys = jnp.maximum(keys, -room)
    below = -room - 1 - jnp.maximum(keys - room, 0)
    keys = jnp.where(product < 0, below, keys)
    infinity = np.asarray(jnp.inf, x.dtype).view(keys.dtype)
    return jnp.minimum(keys, infinity + np.array(1, keys.dtype))


def greatest_number(dtype: jnp.dtype) -> int:
    """Returns the largest of `ordered_bits` that is not a NaN's.

    Args:
      dtype: of the scores.

    Returns:
      An integer.
    """
    signed = np.dtype(f"int{dtype.itemsize * 8}")
    if jnp.issubdtype(dtype, jnp.floating):
        return int(np.asarray(jnp.inf, dtype).view(signed))
    return int(np.iinfo(signed).max)
