"""Groups as the last link of a pruner: structure that is masked while it is trained."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import base, tree
from jprune.graph.budget import is_width
from jprune.graph.groups import Group
from jprune.graph.scores import by_mean, entry_sums, group_scores, masks
from jprune.graph.trace import Graph
from jprune.keep import keep_top


def keep_groups(
    graph: Graph,
    sparsity: base.Sparsity,
    *,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
    combine: Callable[..., jax.Array] = jnp.mean,
    normalize: Callable[[jax.Array], jax.Array] | None = by_mean,
    where: Callable[[Group], bool] = is_width,
) -> base.Pruner:
    """Keeps whole entries of groups: channels, heads, hidden units.

    A link like `jprune.keep_top`, so schedules, `jprune.sparsify` and gradual pruning
    work on structure as on weights. What is masked at the end is cut off by
    `make_plan(graph, kept_by(graph, masks))` and `shrink`.

    Args:
      graph: the recorded function.
      sparsity: the fraction of entries removed, in [0, 1]; may be traced or a
        schedule of the step.
      scope: "global" has all groups compete, "leaf" only the entries of each.
      min_kept: the least number of entries that a group keeps.
      combine: as in `group_scores`.
      normalize: as in `group_scores`.
      where: which groups may shrink.

    Returns:
      A link: scores of weights -> masks of weights.

    Raises:
      PruningError: as `jprune.keep_top`; or if no group may shrink.

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
    chosen = [name for name, group in graph.groups.items() if where(group)]
    if not chosen:
        raise base.PruningError("No group may shrink.")

    def scored(scores: base.Scores) -> dict[str, jax.Array]:
        found = group_scores(graph, scores, combine=combine, normalize=normalize)
        return {name: jnp.asarray(found[name]) for name in chosen}

    def init(params: base.Params) -> Any:
        return link.init({n: jnp.zeros(graph.groups[n].size) for n in chosen})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        scores = scored(updates if updates is not None else params)
        found, state = link.update(scores, state, scores, **extra)
        keep: Any = found
        by_path: dict[str, Any] = {}
        tree.map_with_path(by_path.__setitem__, masks(graph, keep))
        return tree.map_with_path(lambda path, w: by_path[path], params), state

    return optax.GradientTransformationExtraArgs(init, update)


def kept_by(graph: Graph, found: base.Masks) -> dict[str, np.ndarray]:
    """Returns the entries of groups of which masks keep any weight.

    Args:
      graph: the recorded function.
      found: masks of the params, as from `keep_groups`, or from weights that are 0.

    Returns:
      Group name -> bools, of the groups that lose entries. An entry goes if a member
      of its group is masked on all of the entry's slice.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> shapes = {"in": jnp.ones((1, 2)), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, shapes, jnp.ones((5, 1)))
      >>> masks = {"in": jnp.array([[True, False]]), "out": jnp.array(True)}
      >>> kept_by(graph, masks)
      {'in[1]': array([ True, False])}
    """
    by_path: dict[str, Any] = {}
    tree.map_with_path(by_path.__setitem__, found)
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
