"""Entries that others can stand in for: distances between the slices of a group."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, compat
from jprune.graph._groups import Group, Member, places
from jprune.graph._scores import by_mean, mean, over_members
from jprune.graph._trace import Graph


def geometric_median_scores(
    graph: Graph,
    params: base.Params,
    *,
    combine: Callable[..., Any] = mean,
    normalize: Callable[[Any], Any] | None = by_mean,
    where: base.Predicate = tree.is_kernel,
    layout: tree.KernelLayout = tree.kernel_axes,
) -> dict[str, jax.Array]:
    """Returns how far each entry's filters are from all others of their kernel.

    With x_k the slice k of a member, flat,

        I_k = combine over members of (sum over j of ||x_k - x_j||)

    normalized within the group. The least is at the geometric median of the
    filters: what it says, the others say too. Members are the output axes of
    kernels; of a group without any, all axes of its kernels.

    Args:
      graph: the recorded function.
      params: the weights, or the part of their tree that is not hidden.
      combine: over an array `(members, size)`, with `axis=0`.
      normalize: `(size,) -> (size,)` within a group, or None.
      where: which leaves count.
      layout: which axes of a leaf are its output axes.

    Returns:
      Group name -> float32 array `(size,)`. A group without any such leaf scores 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[0.0, 1.0, 5.0]]), "out": jnp.ones((3, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> geometric_median_scores(graph, params, normalize=None)
      {'in[1]': Array([6., 5., 9.], dtype=float32)}

    References:
      He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural
      Networks Acceleration, 2018, arXiv:1811.00250, section 3.
    """
    leaves, shapes = tree.by_path(params), tree.by_path(graph.params)

    def distances(group: Group) -> list[jax.Array]:
        members = [
            m
            for m in group.members
            if m.path in leaves and where(m.path, leaves[m.path])
        ]
        outputs = [m for m in members if is_output(m, shapes[m.path], layout)]
        return [_distances(group, m, leaves[m.path]) for m in outputs or members]

    return over_members(graph, distances, combine, normalize)


def entry_rows(group: Group, member: Member, leaf: Any) -> jax.Array:
    """Returns the slices of a group's entries, flat.

    Args:
      group: the group.
      member: one of its members.
      leaf: an array of the member's shape.

    Returns:
      `(size, weights of a slice)`, float32 or wider.
    """
    x = jnp.asarray(leaf)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.moveaxis(x, member.axis, 0).reshape(x.shape[member.axis], -1)
    pieces = []
    for place in places(group, member):
        inside = np.flatnonzero(place >= 0)
        order = inside[np.argsort(place[inside], kind="stable")]
        pieces.append(x[order].reshape(group.size, -1))
    return jnp.concatenate(pieces, axis=1)


def _distances(group: Group, member: Member, leaf: Any) -> jax.Array:
    def of(x: jax.Array) -> jax.Array:
        return _row_distances(entry_rows(group, member, x))

    return compat.auto_partition(of, jnp.asarray(leaf))


@jax.jit
def _row_distances(rows: jax.Array) -> jax.Array:
    """For each row the sum of its distances to all others.

    Of differences, a row at a time: by inner products equal rows would not be at
    distance 0, and at once all differences would be n times the rows' memory.
    """

    def one(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(rows - x[None]), axis=1)).sum()

    return jax.lax.map(one, rows)


def is_output(member: Member, leaf: Any, layout: tree.KernelLayout) -> bool:
    """Returns whether a group's axis is one that the filters of a kernel are along.

    Args:
      member: of the group.
      leaf: the array of that member, or its shape.
      layout: which axes of a leaf are its output axes.
    """
    return len(leaf.shape) > 1 and member.axis in layout(member.path, leaf).output
