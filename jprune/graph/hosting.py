"""Small work on many arrays of many shapes, without a compilation for each shape."""

from typing import Any

import jax
import numpy as np


def on_host(x: Any) -> np.ndarray | None:
    """Returns an array as NumPy's if that is what it is, or if one device holds it.

    Args:
      x: an array of NumPy or JAX, or a tracer.

    Returns:
      The array; None for tracers, which are part of a compiled program, for arrays
      that are sharded over devices, and for keys.
    """
    if isinstance(x, np.ndarray):
        return x
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
        return None
    if len(x.sharding.device_set) > 1 or not x.is_fully_addressable:
        return None
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
        return None
    return np.asarray(x)


def like(found: np.ndarray, x: Any) -> Any:
    """Returns an array of the host as what another one is, on its device.

    Args:
      found: the array of the host.
      x: the other one. If JAX may still move it, because nobody asked for its
        device, the result stays such.

    Returns:
      An array of NumPy or JAX.
    """
    if isinstance(x, np.ndarray):
        return found
    return jax.device_put(found, x.sharding if x.committed else None)
