"""Scores as integers in the same order: what selection compares."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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
