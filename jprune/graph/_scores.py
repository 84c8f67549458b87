"""Scores of group entries from scores of weights, and values of entries on weights.

Removing an entry of a group, such as a channel, removes a column of one kernel, a row
of the next, a scale and a bias. The score of the entry combines the scores of all
these weights, for any criterion.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, compat
from jprune.graph._engine.hosting import on_host
from jprune.graph._groups import Group, Member, check_known, entry_indices, is_whole
from jprune.graph._trace import Graph

_TINY = float(np.finfo(np.float32).tiny)  # so that scores of 0 stay 0


def by_mean(scores: Any) -> Any:
    """Divides the scores of a group by their mean, so that groups can compete.

    Args:
      scores: `(size,)`, not negative.

    Returns:
      `(size,)`, with mean 1; zeros stay zeros if all scores are 0.

    Example:
      >>> import jax.numpy as jnp
      >>> by_mean(jnp.array([1.0, 2.0, 3.0])).tolist()
      [0.5, 1.0, 1.5]
    """
    return scores / (scores.mean() + _TINY)


def by_max(scores: Any) -> Any:
    """Divides the scores of a group by their maximum.

    Args:
      scores: `(size,)`, not negative.

    Returns:
      `(size,)`, with maximum 1; zeros stay zeros if all scores are 0.

    Example:
      >>> import jax.numpy as jnp
      >>> by_max(jnp.array([1.0, 2.0, 4.0])).tolist()
      [0.25, 0.5, 1.0]
    """
    return scores / (scores.max() + _TINY)


def mean(scores: Any, axis: int = 0) -> Any:
    """Returns the mean over members of scores `(members, size)`."""
    return scores.mean(axis=axis)


def first_member(scores: Any, axis: int = 0) -> Any:
    """Returns the scores of the first member alone, as if its layer were not coupled.

    Args:
      scores: `(members, size)`.
      axis: not used; that of `combine` in `group_scores`.

    Returns:
      `(size,)`.

    Example:
      >>> import jax.numpy as jnp
      >>> first_member(jnp.array([[1.0, 2.0], [8.0, 9.0]])).tolist()
      [1.0, 2.0]
    """
    del axis
    return scores[0]


def group_scores(
    graph: Graph,
    scores: base.Scores,
    *,
    each: Callable[[Any], Any] | None = None,
    combine: Callable[..., Any] = mean,
    normalize: Callable[[Any], Any] | None = by_mean,
    where: tree.Where = tree.is_float,
) -> dict[str, jax.Array]:
    """Returns a score for each entry of each group, from scores of weights.

    With S the scores of weights, entry k of a group scores

        I_k = combine over members of (sum of S over the member's slice k)

    normalized within the group.

    Args:
      graph: the recorded function.
      scores: tree of the params, a score for each weight, such as |w|, w^2 or |w g|;
        hidden leaves (`optax.MaskedNode`) do not count. Outside of `jit` they are
        summed on the host, where nothing compiles, unless several devices hold them.
        Running statistics among the params would count like weights: leave them out,
        or exclude them by `where`.
      each: function that is applied to each leaf before it is summed, such as
        `np.square` on params; it avoids a second tree of that size. It receives NumPy
        arrays where the leaves are summed on the host: a function of `jnp` would
        compile there for every shape, which takes seconds. None leaves the leaves
        unchanged.
      combine: reduces scores `(members, size)` with `axis=0`: by default their mean;
        `jnp.sum`, `jnp.max`, or `first_member` for the first member alone.
      normalize: `(size,) -> (size,)` within a group, or None. Without normalization,
        groups with large weights dominate a global ranking.
      where: the leaves that count, a `jprune.tree.Where`. Leaves that are not
        floating-point do not count by default.

    Returns:
      Group name -> scores `(size,)`, float32; zeros for a group without such a leaf.

    Raises:
      PruningError: if a leaf is not one of the params, has another shape, or is a
        shape without values.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 2.0]]), "out": jnp.array([[1.0], [4.0]])}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> jg.group_scores(graph, params, normalize=None)
      {'in[1]': Array([1., 3.], dtype=float32)}

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900,
      section 3.3, with p = 2, the mean over members and the mean of the group.
    """
    by_path = checked_leaves(graph, scores)
    counts = tree.by_path(tree.flags(where, graph.params))
    members: dict[str, list[tuple[Group, Member]]] = {}
    for group in graph.groups.values():
        for m in group.members:
            if m.path in by_path and counts[m.path]:
                members.setdefault(m.path, []).append((group, m))
    found: dict[tuple[str, str, int], Any] = {}
    for path, of in members.items():
        host = on_host(by_path[path])
        leaf = by_path[path] if host is None else host
        leaf = leaf if each is None else each(leaf)
        for group, m in of:
            found[group.name, path, m.axis] = entry_sums(group, m, leaf)

    def sums(group: Group) -> list[Any]:
        keys = [(group.name, m.path, m.axis) for m in group.members]
        return [found[key] for key in keys if key in found]

    return over_members(graph, sums, combine, normalize)


def over_members(
    graph: Graph,
    scored: Callable[[Group], list[Any]],
    combine: Callable[..., Any],
    normalize: Callable[[Any], Any] | None,
) -> dict[str, jax.Array]:
    """Combines and normalizes the scores that the members of each group give.

    Args:
      graph: the recorded function.
      scored: group -> one array `(size,)` for each member that counts.
      combine: as in `group_scores`.
      normalize: as in `group_scores`.

    Returns:
      Group name -> scores `(size,)`; zeros for a group without members that count.
    """
    found = {}
    for name, group in graph.groups.items():
        each = scored(group)
        if not each:
            found[name] = jnp.zeros(group.size)
            continue
        host = all(isinstance(x, np.ndarray) for x in each)
        total = combine((np if host else jnp).stack(each), axis=0)
        found[name] = total if normalize is None else normalize(total)
    # One call for all of them, and none for those that are traced.
    put = jax.device_put({n: x for n, x in found.items() if isinstance(x, np.ndarray)})
    return {n: put[n] if n in put else jnp.asarray(x) for n, x in found.items()}


def entry_sums(group: Group, member: Member, leaf: Any) -> jax.Array:
    """Returns the sums of a leaf over the slices of a group's entries.

    Args:
      group: the group.
      member: one of its members.
      leaf: array of the member's shape.

    Returns:
      Array `(size,)`, float32 or wider; a NumPy array unless the leaf is traced or
      held by several devices.
    """
    host = on_host(leaf)
    if host is not None:
        return _host_sums(group, member, host)
    # Replicated on explicit meshes, because members may be sharded differently.
    return compat.auto_partition(lambda x: _sums(group, member, x), jnp.asarray(leaf))


def _sums(group: Group, member: Member, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    others = tuple(i for i in range(x.ndim) if i != member.axis)
    sums = x.sum(axis=others)
    if is_whole(group, member):
        return sums
    total = jnp.zeros(group.size, sums.dtype)
    for indices in entry_indices(group, member):
        inside = indices >= 0
        total = total.at[indices[inside]].add(sums[np.flatnonzero(inside)])
    return total


def _host_sums(group: Group, member: Member, x: np.ndarray) -> Any:
    """Computes the same in NumPy, without a compilation for each shape."""
    others = tuple(i for i in range(x.ndim) if i != member.axis)
    sums = x.sum(axis=others, dtype=np.promote_types(x.dtype, np.float32))
    if is_whole(group, member):
        return sums
    total = np.zeros(group.size, sums.dtype)
    for indices in entry_indices(group, member):
        inside = indices >= 0
        np.add.at(total, indices[inside], sums[inside])
    return total


def spread_to_params(graph: Graph, values: Mapping[str, Any]) -> base.Params:
    """Returns for each weight the sum of the values of the entries it belongs to.

    Args:
      graph: the recorded function.
      values: group name -> values `(size,)`; missing groups count as zeros.

    Returns:
      The params' tree; leaves broadcast to the params.

    Raises:
      PruningError: if there is no such group.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((1, 2)), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> jg.spread_to_params(graph, {"in[1]": jnp.array([1.0, 2.0])})["in"]
      Array([[1., 2.]], dtype=float32)
    """
    return _onto(graph, values, jnp.zeros((), jnp.float32), jnp.add)


def param_masks(graph: Graph, keep: Mapping[str, Any]) -> base.Masks:
    """Returns the masks of params that a choice of entries implies.

    A weight is kept if all entries that it belongs to are kept.

    Args:
      graph: the recorded function.
      keep: group name -> bools `(size,)`, perhaps traced. Missing groups are whole.

    Returns:
      The params' tree of bool arrays that broadcast to the params.

    Raises:
      PruningError: if there is no such group.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 2)), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> masks = jg.param_masks(graph, {"in[1]": jnp.array([True, False])})
      >>> masks["in"].tolist(), masks["out"].tolist()
      ([[True, False]], [[True], [False]])
    """
    return _onto(graph, keep, jnp.ones((), bool), jnp.logical_and)


def _onto(graph: Graph, values: Mapping[str, Any], begin: Any, join: Any) -> Any:
    check_known(graph.groups, values)
    ranks = {path: len(axes) for path, axes in graph.axes.items()}
    found = {path: begin.reshape((1,) * n) for path, n in ranks.items()}
    for name, given in values.items():
        for member in graph.groups[name].members:
            shape = [1] * ranks[member.path]
            shape[member.axis] = -1
            for indices in entry_indices(graph.groups[name], member):
                each = jnp.asarray(given)[np.maximum(indices, 0)]
                each = jnp.where(indices >= 0, each, begin.astype(each.dtype))
                found[member.path] = join(found[member.path], each.reshape(shape))
    return jax.tree.unflatten(
        jax.tree.structure(graph.params), [found[path] for path in graph.axes]
    )


def checked_leaves(graph: Graph, like_params: Any) -> dict[str, Any]:
    """Returns the leaves by path of a tree that is the params' or a part of it.

    Args:
      graph: the recorded function.
      like_params: arrays, such as params or scores of weights.

    Raises:
      PruningError: if a leaf is not one of the params, has another shape, or is a
        shape without values; names the leaf.
    """
    found = tree.by_path(like_params)
    for path, leaf in found.items():
        if path not in graph.axes:
            raise base.PruningError(f"The params that were traced have no leaf {path}.")
        shape = tuple(d.size for d in graph.axes[path])
        if np.shape(leaf) != shape:
            raise base.PruningError(
                f"The params that were traced have the shape {shape} at {path}; got "
                f"{np.shape(leaf)}."
            )
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise base.PruningError(
                f"{path!r} is a ShapeDtypeStruct, which has no values to score. Score "
                "arrays; the plan that comes of it also shrinks shapes."
            )
    return found
