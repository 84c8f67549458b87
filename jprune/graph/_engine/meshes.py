"""Shardings that are part of types, as on meshes of `AxisType.Explicit` axes."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, get_abstract_mesh

from jprune.graph._engine.scopes import names_of

_reshard = getattr(jax, "reshard", None) or jax.sharding.reshard  # since JAX 0.9


def typed(x: Any) -> NamedSharding | None:
    """Returns the sharding in the type of an array; None if its type has none.

    Args:
      x: array, tracer, type, or `jax.ShapeDtypeStruct`.
    """
    kind = jax.typeof(x) if isinstance(x, jax.Array) else x
    sharding = getattr(kind, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return sharding if AxisType.Explicit in (sharding.mesh.axis_types or ()) else None


def places(x: Any) -> tuple[Any, ...] | None:
    """Returns how the type of an array shards each axis, or None."""
    sharding = typed(x)
    if sharding is None:
        return None
    return (*sharding.spec, *[None] * (len(x.shape) - len(sharding.spec)))


def fitted(sharding: Any, shape: Sequence[int]) -> Any:
    """Returns a sharding for an array of another shape.

    An axis stays sharded if its size is a multiple of the number of shards.

    Args:
      sharding: sharding of an array with the same axes; others than `NamedSharding`s
        are returned as they are.
      shape: the new shape.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec, counts = sharding.spec, sharding.mesh.shape
    kept = [
        entry if n % math.prod(counts[name] for name in names_of(entry)) == 0 else None
        for entry, n in zip(spec, shape, strict=False)
    ]
    if kept == list(spec):
        return sharding
    return NamedSharding(
        sharding.mesh, PartitionSpec(*kept), memory_kind=sharding.memory_kind
    )


def changes(
    params: Mapping[str, Any], before: Sequence[int], after: Sequence[int]
) -> dict[str, Any]:
    """Returns the parameters of a primitive that say how its result is sharded.

    Args:
      params: all parameters.
      before: recorded shape of the result.
      after: its shape now.
    """
    if before == after:
        return {}
    return {
        name: fitted(params[name], after)
        for name in ("sharding", "out_sharding")
        if isinstance(params.get(name), NamedSharding)
    }


def like(x: Any, other: Any) -> Any:
    """Returns an array, broadcast to the shape and sharded as the type of another."""
    sharding = typed(other)
    if sharding is None:
        return x
    return _reshard(jax.numpy.broadcast_to(x, other.shape), sharding)


def around(equation: Any) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which the mesh has the axis types of a recorded equation.

    Indexing with `out_sharding`, for example, runs with automatic axes inside.

    Args:
      equation: equation of a jaxpr.
    """
    recorded, now = equation.ctx.cur_abstract_mesh, get_abstract_mesh()
    if recorded == now or dict(recorded.shape) != dict(now.shape):
        return contextlib.nullcontext()
    return equation.ctx.manager
