"""Scores by redundancy: distances between the slices of a group's entries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, compat
from jprune.graph import _roles
from jprune.graph._groups import Group, Member, entry_indices
from jprune.graph._scores import by_mean, checked_leaves, mean, over_members
from jprune.graph._trace import Graph


def geometric_median_scores(
    graph: Graph,
    params: base.Params,
    *,
    combine: Callable[..., Any] = mean,
    normalize: Callable[[Any], Any] | None = by_mean,
    where: tree.Where = tree.is_kernel,
    layout: tree.KernelLayout | None = None,
) -> dict[str, jax.Array]:
    """Returns the sums of distances from each entry's filters to all others.

    With x_k the flattened slice k of a member,

        I_k = combine over members of (sum over j of ||x_k - x_j||)

    normalized within the group. The lowest score is at the geometric median of the
    filters, which the other filters represent best. Members are the output axes of
    kernels; for a group without any, all axes of its kernels.

    Args:
      graph: the recorded function.
      params: the weights; leaves may be hidden.
      combine: reduces scores `(members, size)` with `axis=0`.
      normalize: `(size,) -> (size,)` within a group, or None.
      where: the leaves that count, a `jprune.tree.Where`.
      layout: `(path, leaf) -> KernelAxes`, which names the output axes of a leaf; None
        for `jprune.graph.layout(graph)`, which records the function again: for many
        calls, make it once.

    Returns:
      Group name -> scores `(size,)`, float32; zeros for a group without such a leaf.

    Raises:
      PruningError: if `where` selects no leaf, a pattern matches none, or two leaves
        have the same path; if a leaf is not one of the params, has another shape, or is
        a shape without values, or if the layout does not settle the axes of one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[0.0, 1.0, 5.0]]), "out": jnp.ones((3, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> jg.geometric_median_scores(graph, params, normalize=None)
      {'in[1]': Array([6., 5., 9.], dtype=float32)}

    References:
      He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural
      Networks Acceleration, 2018, arXiv:1811.00250, section 3.
    """
    leaves, shapes = checked_leaves(graph, params), tree.by_path(graph.params)
    counts = tree.by_path(tree.flags(where, graph.params))

    roles = _roles.layout(graph) if layout is None else layout

    def distances(group: Group) -> list[jax.Array]:
        members = [m for m in group.members if m.path in leaves and counts[m.path]]
        outputs = [m for m in members if is_output(m, shapes[m.path], roles)]
        return [_distances(group, m, leaves[m.path]) for m in outputs or members]

    return over_members(graph, distances, combine, normalize)


def entry_rows(group: Group, member: Member, leaf: Any) -> jax.Array:
    """Returns the flattened slices of a group's entries.

    Args:
      group: the group.
      member: one of its members.
      leaf: array of the member's shape.

    Returns:
      Array `(size, weights per entry)`, float32 or wider.
    """
    x = jnp.asarray(leaf)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.moveaxis(x, member.axis, 0).reshape(x.shape[member.axis], -1)
    pieces = []
    for indices in entry_indices(group, member):
        inside = np.flatnonzero(indices >= 0)
        order = inside[np.argsort(indices[inside], kind="stable")]
        pieces.append(x[order].reshape(group.size, -1))
    return jnp.concatenate(pieces, axis=1)


def _distances(group: Group, member: Member, leaf: Any) -> jax.Array:
    def of(x: jax.Array) -> jax.Array:
        return _row_distances(entry_rows(group, member, x))

    return compat.auto_partition(of, jnp.asarray(leaf))


@jax.jit
def _row_distances(rows: jax.Array) -> jax.Array:
    """Returns for each row the sum of its distances to all others.

    Differences are taken one row at a time: inner products would not give equal rows
    the distance 0, and all differences at once would need n times the memory.
    """

    def one(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(rows - x[None]), axis=1)).sum()

    return jax.lax.map(one, rows)


def is_output(member: Member, leaf: Any, layout: tree.KernelLayout) -> bool:
    """Returns whether a member is an output axis of a kernel.

    Args:
      member: member of a group.
      leaf: array of that member, or its shape.
      layout: `(path, leaf) -> KernelAxes`, which names the output axes of a leaf.
    """
    return len(leaf.shape) > 1 and member.axis in layout(member.path, leaf).output
