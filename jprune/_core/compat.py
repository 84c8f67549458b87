"""What differs between the JAX versions that jprune supports (0.7.2 and later)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def auto_partition(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, *, like: Any = None
) -> jax.Array:
    """Returns `f(x)`, partitioned by XLA where the mesh's axes are explicit.

    Explicit axes refuse operations whose result has no evident sharding, such as
    a reshape that cuts a sharded axis, or a sort along one. Everywhere else this
    is `f(x)`.

    Args:
      f: from one array to one array.
      x: its argument.
      like: an array, or what `jax.eval_shape` says of one, whose sharding the
        result takes along the axes that have its size; replicated if None.

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
        # Of shapes alone: with its sharding, f(x) may be what is refused.
        result = jax.eval_shape(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
        sizes = zip(result.shape, template.shape, names, strict=False)
        spec = PartitionSpec(*(name if n == m else None for n, m, name in sizes))
    sharding = NamedSharding(sharding.mesh, spec)
    # Under jit: JAX 0.7 runs the inner operations one by one otherwise, each
    # with the sharding that is meant for the result.
    return jax.jit(jax.sharding.auto_axes(f, out_sharding=sharding))(x)
