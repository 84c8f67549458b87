"""Work on the host for many small arrays, where JAX would compile for each shape."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jprune.graph._engine import meshes


def on_host(x: Any) -> np.ndarray | None:
    """Returns an array as a NumPy array, if a single device or the host holds it.

    Args:
      x: NumPy or JAX array, or a tracer.

    Returns:
      The NumPy array; None for tracers, for arrays sharded over several devices and
      for typed PRNG keys.
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


def put_like(found: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """Moves NumPy arrays to the devices of other arrays, in one call.

    Args:
      found: arrays to move; those that are not NumPy arrays stay where they are.
      given: arrays whose type and devices the results take, one for each. Where one
        is not committed to its device, neither is the result.

    Returns:
      NumPy or JAX arrays.
    """
    each = zip(found, given, strict=True)
    # One call for all: a call per array takes half the time of slicing a network.
    to_put = [
        i
        for i, (x, y) in enumerate(each)
        if isinstance(x, np.ndarray) and isinstance(y, jax.Array)
    ]
    result = list(found)
    for committed in (False, True):
        chosen = [i for i in to_put if given[i].committed == committed]
        where = [given[i].sharding for i in chosen] if committed else None
        put = jax.device_put([found[i] for i in chosen], where)
        for i, x in zip(chosen, put, strict=True):
            result[i] = x
    return result


def taken(x: Any, cut: Mapping[int, np.ndarray]) -> Any:
    """Takes entries along axes; on the host if possible, where nothing compiles.

    Args:
      x: array, or the `jax.ShapeDtypeStruct` of one.
      cut: axis -> indices.

    Returns:
      A NumPy or JAX array, or the `jax.ShapeDtypeStruct` of one.
    """
    if isinstance(x, jax.ShapeDtypeStruct):
        return _struct_taken(x, cut)
    host = on_host(x)
    found: Any = x if host is None else host
    # Outer axes first: along them NumPy copies whole rows, along the last axis single
    # elements, of which fewer are left by then.
    where = meshes.typed(x)
    for axis, kept in sorted(cut.items()):
        if where is not None:
            found = _taken_sharded(found, axis, kept, where)
            continue
        # "clip": the indices exist, and PRNG keys have no value to fill in.
        module = np if host is not None else jnp
        found = module.take(found, kept, axis=axis, mode="clip")
    return found


def _taken_sharded(x: Any, axis: int, kept: np.ndarray, where: Any) -> Any:
    """Takes entries of an array whose type says how it is sharded: so has the call."""
    shape = [*x.shape[:axis], len(kept), *x.shape[axis + 1 :]]
    places = (slice(None),) * axis + (jnp.asarray(kept),)
    return x.at[places].get(mode="clip", out_sharding=meshes.fitted(where, shape))


def _struct_taken(
    x: jax.ShapeDtypeStruct, cut: Mapping[int, np.ndarray]
) -> jax.ShapeDtypeStruct:
    """Returns the shape that is left; as of arrays, a cut axis is not sharded."""
    shape = [len(cut[i]) if i in cut else n for i, n in enumerate(x.shape)]
    sharding = x.sharding
    if isinstance(sharding, NamedSharding):
        if meshes.typed(x) is not None:
            sharding = meshes.fitted(sharding, shape)
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=sharding)
        names = [None if i in cut else name for i, name in enumerate(sharding.spec)]
        sharding = NamedSharding(
            sharding.mesh, PartitionSpec(*names), memory_kind=sharding.memory_kind
        )
    return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=sharding)
