"""Number of entries that a sparsity keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base, checks, counting, words


def kept_count(size: int, sparsity: jax.typing.ArrayLike) -> Any:
    """Returns how many of `size` entries a sparsity keeps.

    size - round(size * sparsity), halves to even. A Python or NumPy number is
    evaluated in float64. A JAX array, traced or not, is rounded to float32, and the
    count for that number is exact: computed in integers of 64 bits, where a product
    in float32 would be wrong by up to 64 for sizes below 2^31.

    Args:
      size: number of entries, in [0, 2^40).
      sparsity: fraction removed, in [0, 1]. In a JAX array, up to 1e-6 outside counts
        as rounding; what is farther outside, or NaN, keeps everything in a trace, and
        `jax.experimental.checkify` reports it.

    Returns:
      The count, in [0, size]: a Python integer for a Python or NumPy number, an
      int32 array for a JAX array. Where int32 would not hold it, because `size` is
      2^31 or more, a count that only `jprune.selection` reads (a `Count`).

    Raises:
      PruningError: if the sparsity is outside [0, 1] and not traced, or is no number,
        or if `size` is 2^40 or more.

    Example:
      >>> kept_count(1000, 0.9)
      100
    """
    if size >= 2**40:
        raise base.PruningError(f"size is below 2^40 entries; got {size}.")
    if not isinstance(sparsity, jax.Array):
        return size - round(size * float(check_sparsity(sparsity)))
    s = clip_sparsity(check_sparsity(sparsity))
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


def check_sparsity(sparsity: base.Sparsity) -> Any:
    """Returns the sparsity; raises if it is not a number in [0, 1], nor an array.

    Args:
      sparsity: fraction removed: a Python or NumPy number, which is checked; a JAX
        array, traced or not, whose value is checked where it is used (`kept_count`),
        because that may wait for the device; or a schedule, likewise.

    Returns:
      The argument.

    Raises:
      PruningError: if a number is outside [0, 1] or NaN, or if it is no number, such as
        a string or a bool.

    Example:
      >>> check_sparsity(0.9)
      0.9
    """
    if callable(sparsity):
        return sparsity
    if isinstance(sparsity, jax.Array):
        valid = jnp.issubdtype(sparsity.dtype, jnp.floating) or jnp.issubdtype(
            sparsity.dtype, jnp.integer
        )
    else:
        valid = checks.is_number(sparsity) and np.all(_inside(np.asarray(sparsity)))
    if not valid:
        raise base.PruningError(
            f"sparsity is the fraction removed, a number in [0, 1]; got {sparsity!r}."
        )
    return sparsity


def clip_sparsity(sparsity: jax.Array) -> jax.Array:
    """Clips the sparsity in a JAX array to [0, 1]; one that is far outside becomes 0.

    So a mistake prunes nothing: 1.5 does not empty a mask. Up to 1e-6 outside is
    taken for the rounding of a schedule.

    Args:
      sparsity: fraction removed; real array.

    Returns:
      A float32 array in [0, 1]; 0 where the sparsity is NaN or outside.

    Raises:
      PruningError: if an array that is not traced has such a value. In a trace,
        `jax.experimental.checkify` reports it (a debug check).

    Example:
      >>> jax.jit(clip_sparsity)(jnp.array([0.9, 1.5, jnp.nan])).tolist()
      [0.8999999761581421, 0.0, 0.0]
    """

    def near(s: Any) -> Any:
        return (s >= -_ROUNDING) & (s <= 1 + _ROUNDING)

    checks.check_value(near, sparsity, _OUTSIDE)
    s = sparsity.astype(jnp.float32)
    return jnp.where(near(s), jnp.clip(s, 0.0, 1.0), 0.0)


_ROUNDING = 1e-6
_OUTSIDE = "sparsity is the fraction removed, a number in [0, 1]; got {value}."


def _inside(s: Any) -> Any:
    return (s >= 0) & (s <= 1)
