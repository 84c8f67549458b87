"""Differences between the JAX versions that jprune supports (0.7.2 and later)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

_name = "InconclusiveDimensionOperation"
_home: Any = jax.errors if hasattr(jax.errors, _name) else jax.core
InconclusiveDimensionOperation: type[Exception] = _home.InconclusiveDimensionOperation
"""What JAX raises where symbolic dimensions have no known order."""


def auto_partition(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, *, like: Any = None
) -> jax.Array:
    """Returns `f(x)`, partitioned by XLA on meshes with explicit axes.

    On explicit axes JAX refuses operations whose result has no evident sharding,
    such as a reshape that splits a sharded axis, or a sort along one. On other
    meshes, and without one, this is `f(x)`.

    Args:
      f: function from an array to an array.
      x: argument of `f`.
      like: array or `jax.ShapeDtypeStruct` whose sharding the result takes, along
        the axes on which both have the same size; replicated if None.

    Returns:
      `f(x)`.
    """
    template = x if like is None else like
    if not isinstance(template, jax.ShapeDtypeStruct):
        template = jax.typeof(template)
    sharding = template.sharding
    if not isinstance(sharding, NamedSharding) or not sharding.mesh.explicit_axes:
        return f(x)
    spec = PartitionSpec()
    if like is not None:
        names = [*sharding.spec, *[None] * len(template.shape)]
        # From the shape alone: with the sharding of x, JAX may refuse f(x).
        result = jax.eval_shape(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
        sizes = zip(result.shape, template.shape, names, strict=False)
        spec = PartitionSpec(*(name if n == m else None for n, m, name in sizes))
    sharding = NamedSharding(sharding.mesh, spec)
    # Under jit: otherwise JAX 0.7 runs the inner operations one by one, each with
    # the sharding of the result.
    return jax.jit(jax.sharding.auto_axes(f, out_sharding=sharding))(x)
