"""Arithmetic in float32 or wider."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """Returns an array in float32, or as it is where it is wider.

    Args:
      x: a floating-point array.

    Returns:
      The array.
    """
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)
