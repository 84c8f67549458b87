"""Checks of values that may be traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from jprune._core import base


def check_value(is_valid: Callable[[Any], Any], value: jax.Array, message: str) -> None:
    """Raises if an array's value is not valid; in a trace, through `checkify`.

    In a trace it is a `checkify` debug check, which acts only under
    `jax.experimental.checkify` and costs nothing elsewhere.

    Args:
      is_valid: `array -> booleans`, for NumPy and JAX arrays.
      value: array. One that is not traced is copied to the host.
      message: format string with the field `value`.

    Raises:
      PruningError: if a value that is not traced is not valid.

    Example:
      >>> check_value(lambda x: x > 0, jnp.float32(1.0), "{value} is not positive")
    """
    if isinstance(value, jax.core.Tracer):
        checkify.debug_check(jnp.all(is_valid(value)), message, value=value)
    elif not np.all(is_valid(known := np.asarray(value))):
        raise base.PruningError(message.format(value=known))


def is_number(x: Any) -> bool:
    """Returns whether it is one real number of Python or NumPy, and no bool.

    Args:
      x: anything.

    Returns:
      True for such a number; False for JAX arrays, too.

    Example:
      >>> is_number(np.float32(0.5)), is_number(True), is_number("0.5")
      (True, False, False)
    """
    if isinstance(x, np.generic | np.ndarray):  # bfloat16 has a kind of its own
        real = x.dtype.kind in "iu" or jnp.issubdtype(x.dtype, jnp.floating)
        return real and x.ndim == 0
    return isinstance(x, int | float) and not isinstance(x, bool)
