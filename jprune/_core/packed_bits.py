"""Booleans as bits along the last axis: unpacking, shapes and shardings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def unpacked(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the bits along the last axis, the highest of each byte first.

    Cheaper than `jnp.unpackbits` in a fused step on CPUs: each byte is repeated eight
    times, and the position in the row selects the bit.

    Args:
      packed: uint8 array, as `jnp.packbits` along the last axis returns.
      shape: shape before it was packed.

    Returns:
      A boolean array of that shape.
    """
    wide = jnp.broadcast_to(packed[..., None], (*packed.shape, 8))
    wide = wide.reshape(*shape[:-1], 8 * packed.shape[-1])[..., : shape[-1]]
    place = lax.broadcasted_iota(jnp.uint8, shape, len(shape) - 1) & np.uint8(7)
    return (wide & (np.uint8(128) >> place)) != np.uint8(0)


def bytes_like(mask: jax.Array) -> jax.ShapeDtypeStruct:
    """Returns the shape of a packed mask, and the sharding that it keeps.

    Args:
      mask: boolean array of one axis or more.
    """
    *leading, last = mask.shape
    shape, sharding = (*leading, -(-last // 8)), jax.typeof(mask).sharding
    if not isinstance(sharding, NamedSharding):
        return jax.ShapeDtypeStruct(shape, jnp.uint8)
    names = [*sharding.spec, *[None] * mask.ndim][: mask.ndim]
    over = names[-1] if isinstance(names[-1], tuple) else (names[-1],)
    parts = math.prod(sharding.mesh.shape[name] for name in over if name is not None)
    whole = last % (8 * parts) == 0
    spec = PartitionSpec(*names[:-1], names[-1] if whole else None)
    sharding = NamedSharding(sharding.mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
