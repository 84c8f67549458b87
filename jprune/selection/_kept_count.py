"""Number of entries that a sparsity keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base, counting, words


def kept_count(size: int, sparsity: jax.typing.ArrayLike) -> Any:
    """Returns how many of `size` entries a sparsity keeps.

    size - round(size * sparsity), halves to even. A Python or NumPy number is
    evaluated in float64. A JAX array, traced or not, is rounded to float32, and the
    count for that number is exact: computed in integers of 64 bits, where a product
    in float32 would be wrong by up to 64 for sizes below 2^31.

    Args:
      size: number of entries, in [0, 2^40).
      sparsity: fraction removed, in [0, 1]; JAX arrays are clipped to it.

    Returns:
      The count, in [0, size]: a Python integer for a Python or NumPy number, an
      int32 array for a JAX array. Where int32 would not hold it, because `size` is
      2^31 or more, a count that only `jprune.selection` reads (a `Count`).

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], or `size` is 2^40 or
        more.

    Example:
      >>> kept_count(1000, 0.9)
      100
    """
    if size >= 2**40:
        raise base.PruningError(f"size is below 2^40 entries; got {size}.")
    if not isinstance(sparsity, jax.Array):
        return size - round(size * float(check_sparsity(sparsity)))
    s = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    removed = _rounded_product(words.of_known(size), s)
    if size < 2**31:
        return size - removed.modular.astype(jnp.int32)
    return counting.minus(counting.total(size), removed)


@jax.jit
def _rounded_product(size: words.Words, s: jax.Array) -> counting.Total:
    """round(size * s), halves to even, for float32 numbers s in [0, 1]."""
    bits = lax.bitcast_convert_type(s, jnp.uint32)
    # s = mantissa * 2^-places; 0 and subnormal numbers remove nothing.
    mantissa = bits & np.uint32(2**23 - 1) | np.uint32(2**23)
    places = np.uint32(150) - (bits >> 23)
    # The product is below 2^64: with more than 64 places it rounds to 0.
    mantissa = jnp.where(places > 64, jnp.zeros_like(mantissa), mantissa)
    places = jnp.minimum(places, jnp.full_like(places, 64))
    return words.rounded(words.product(size, mantissa), places)


def check_sparsity(sparsity: jax.typing.ArrayLike) -> Any:
    """Returns the sparsity; raises if it is a number outside [0, 1].

    Args:
      sparsity: fraction removed. Python and NumPy numbers are checked; JAX arrays,
        traced or not, are not, because that would wait for the device.

    Returns:
      The argument.

    Raises:
      PruningError: if a Python or NumPy number is outside [0, 1] or NaN.

    Example:
      >>> check_sparsity(0.9)
      0.9
    """
    if not isinstance(sparsity, jax.Array):
        values = np.asarray(sparsity, np.float64)
        if not np.all((values >= 0) & (values <= 1)):
            raise base.PruningError(
                f"sparsity is the fraction removed, in [0, 1]; got {sparsity}."
            )
    return sparsity
