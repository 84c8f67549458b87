"""A link that masks whole entries of groups, and groups back from masks."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import tree
from jprune._core import base, compat
from jprune.graph._budget import is_width
from jprune.graph._groups import Group
from jprune.graph._obstacles import shrinkable
from jprune.graph._scores import entry_sums, group_scores, param_masks
from jprune.graph._trace import Graph
from jprune.links import keep_top

GroupScore = Callable[[Graph, base.Scores], Mapping[str, Any]]
"""`(graph, scores of weights) -> {group name: scores (size,)}`."""


def keep_groups(
    graph: Graph,
    sparsity: base.Sparsity,
    *,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
    score: GroupScore = group_scores,
    where: Callable[[Group], bool] = is_width,
) -> base.Pruner:
    """Keeps whole entries of groups: channels, heads, hidden units.

    A link like `jprune.keep_top`, so that schedules, `jprune.sparsify` and gradual
    pruning work on structures as on single weights. Afterwards,
    `shrink(graph, params, keep=kept_by(graph, masks))` removes what is masked.

    Args:
      graph: the recorded function.
      sparsity: fraction of entries removed, in [0, 1]; may be traced, or a schedule.
      scope: "global": the entries of all groups compete; "leaf": those of each group.
      min_kept: least number of entries that a group keeps.
      score: turns scores of weights into scores of entries; bind the options of
        `group_scores` by `functools.partial`.
      where: predicate of the groups that may shrink.

    Returns:
      A link: scores of weights -> masks of weights.

    Raises:
      PruningError: as `jprune.keep_top`; if no group may shrink; at `update`, if the
        params or the scores of a group are missing.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[3.0, 1.0]]), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> pruned, masks = jp.prune(params, jg.keep_groups(graph, 0.5))
      >>> pruned["in"], pruned["out"][:, 0]
      (Array([[3., 0.]], dtype=float32), Array([1., 0.], dtype=float32))
    """
    link = keep_top(sparsity, scope=scope, min_kept=min_kept)
    chosen = list(shrinkable(graph, where))

    def scored(scores: base.Scores) -> dict[str, jax.Array]:
        found = score(graph, scores)
        for name in chosen:
            if name not in found:
                raise base.PruningError(f"There is no score for the group {name}.")
        return {name: jnp.asarray(found[name]) for name in chosen}

    def init(params: base.Params) -> Any:
        return link.init({n: jnp.zeros(graph.groups[n].size) for n in chosen})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError(
                "keep_groups needs the params: update(scores, state, params)."
            )
        scores = scored(updates if updates is not None else params)
        found, state = link.update(scores, state, scores, **extra)
        keep: Any = found
        by_path = tree.by_path(param_masks(graph, keep))
        # On explicit meshes, the masks take the sharding of their weights.
        return tree.map_with_path(
            lambda path, w: compat.auto_partition(lambda m: m, by_path[path], like=w),
            params,
        ), state

    return optax.GradientTransformationExtraArgs(init, update)


def kept_by(graph: Graph, found: base.Masks) -> dict[str, np.ndarray]:
    """Returns the entries of groups that masks of params keep.

    An entry is removed if its whole slice of any member of the group is masked.

    Args:
      graph: the recorded function.
      found: masks of the params, as from `keep_groups`, or `w != 0` of sparse weights.

    Returns:
      Group name -> bools `(size,)`, for the groups that lose entries.

    Raises:
      PruningError: if two leaves have the same path.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> shapes = {"in": jnp.ones((1, 2)), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, shapes, jnp.ones((5, 1)))
      >>> masks = {"in": jnp.array([[True, False]]), "out": jnp.array(True)}
      >>> jg.kept_by(graph, masks)
      {'in[1]': array([ True, False])}
    """
    by_path = tree.by_path(found)
    keep = {}
    for name, group in graph.groups.items():
        mask = np.ones(group.size, bool)
        for member in group.members:
            shape = tuple(d.size for d in graph.axes[member.path])
            full = np.broadcast_to(np.asarray(by_path[member.path]), shape)
            mask &= np.asarray(entry_sums(group, member, full.astype(np.float32))) > 0
        if not mask.all():
            keep[name] = mask
    return keep
