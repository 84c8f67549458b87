"""How many entries a sparsity keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base, counting


def kept_count(size: int, sparsity: jax.typing.ArrayLike) -> Any:
    """Returns how many of `size` entries a sparsity keeps.

    size - round(size * sparsity), halves to even. A Python or NumPy number is
    evaluated in float64; a JAX array, traced or not, in split float32 arithmetic
    that is good to a tenth of a unit for every size below 2^31, where a plain
    product would be wrong by up to 64, and to a few units below 2^40.

    Args:
      size: a number of entries in [0, 2^40).
      sparsity: a fraction in [0, 1]; JAX arrays are clipped to it.

    Returns:
      An int32 scalar in [0, size]; for a size of 2^31 and more, which int32 does
      not hold, a `counting.Total`.

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], or the size has
        more than 40 bits.

    Example:
      >>> int(kept_count(1000, 0.9))
      100
    """
    if size >= 2**40:
        raise base.PruningError(f"{size} entries; fewer than 2^40 can be counted.")
    small = size < 2**31
    if not isinstance(sparsity, jax.Array):
        known = known_kept_count(size, sparsity)
        return jnp.asarray(known, jnp.int32) if small else counting.total(known)
    s = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    # sparsity = coarse / 4096 + fine and size = 4096 * high + low, so that the
    # large part of the product is an exact integer and only a small rest rounds.
    coarse = jnp.floor(s * 4096)
    fine = s - coarse / 4096
    high, low = divmod(size, 4096)
    rest = jnp.round(low * coarse / 4096 + np.float32(size) * fine).astype(jnp.int32)
    if small:
        removed = high * coarse.astype(jnp.int32) + rest
        return size - jnp.clip(removed, 0, size)
    # The same modulo 2^32, beside the number in float.
    modular = np.uint32(high) * coarse.astype(jnp.uint32) + rest.astype(jnp.uint32)
    rough = np.float32(high) * coarse + rest.astype(jnp.float32)
    return counting.minus(counting.total(size), counting.Total(modular, rough))


def known_kept_count(size: int, sparsity: jax.typing.ArrayLike) -> int:
    """Returns `kept_count` of a Python or NumPy number as a Python integer.

    Args:
      size: a number of entries, not negative.
      sparsity: a fraction in [0, 1].

    Returns:
      size - round(size * sparsity), halves to even, in float64.

    Raises:
      PruningError: if the sparsity is outside [0, 1].
    """
    return size - round(size * float(check_sparsity(sparsity)))


def check_sparsity(sparsity: jax.typing.ArrayLike) -> Any:
    """Returns the sparsity; raises if it is a number that is not in [0, 1].

    Args:
      sparsity: a Python or NumPy number; JAX arrays pass unchecked, traced or
        not, because looking at them would wait for the device.

    Returns:
      The argument.

    Raises:
      PruningError: if a known value is outside [0, 1] or NaN.
    """
    if not isinstance(sparsity, jax.Array):
        values = np.asarray(sparsity, np.float64)
        if not np.all((values >= 0) & (values <= 1)):
            raise base.PruningError(
                f"A sparsity is the fraction removed, in [0, 1]; got {sparsity}."
            )
    return sparsity
