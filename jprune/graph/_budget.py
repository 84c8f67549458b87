"""Chooses the entries to keep: by a fraction, or as many as a budget allows."""

import bisect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune._core import base
from jprune._core.deprecation import renamed_arguments
from jprune.graph._cost import Cost
from jprune.graph._engine.sizes import known
from jprune.graph._groups import Group, check_known
from jprune.graph._obstacles import shrinkable, too_costly
from jprune.graph._trace import Graph

Compete = Callable[[Group], Hashable]
"""`group -> key`; the entries of groups with equal keys compete with each other."""


def all_groups(group: Group) -> Hashable:
    """Key for `choose`: all groups compete, so their scores must be on one scale.

    Args:
      group: a group.

    Returns:
      None, the same key for all groups.

    Example:
      Of four entries, the lowest-scoring one is removed:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> net = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
      >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones((2, 1))}
      >>> graph = jg.trace(net, params, jnp.ones((5, 3)))
      >>> scores = {"a[1]": jnp.array([1.0, 2.0]), "b[1]": jnp.array([3.0, 4.0])}
      >>> jg.choose(graph, scores, 0.25, compete=jg.all_groups)
      {'a[1]': array([False,  True])}
    """
    del group
    return None


def each_group(group: Group) -> Hashable:
    """Key for `choose`: entries compete within their own group only.

    Args:
      group: a group.

    Returns:
      Its name.

    Example:
      Each group loses half of its entries, although both scores of `b[1]` are higher:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> net = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
      >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2)), "c": jnp.ones((2, 1))}
      >>> graph = jg.trace(net, params, jnp.ones((5, 3)))
      >>> scores = {"a[1]": jnp.array([1.0, 2.0]), "b[1]": jnp.array([3.0, 4.0])}
      >>> jg.choose(graph, scores, 0.5, compete=jg.each_group)
      {'a[1]': array([False,  True]), 'b[1]': array([False,  True])}
    """
    return group.name


def same_kind(group: Group) -> Hashable:
    """Key for `choose`: heads compete with heads, channels with channels.

    Args:
      group: a group.

    Returns:
      Its kind; see `Group`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.same_kind(graph.groups["in[1]"])
      'hidden'
    """
    return group.kind


def isomorphic(group: Group) -> Hashable:
    """Key for `choose`: groups of the same form compete, such as repeated layers.

    Args:
      group: a group.

    Returns:
      Its kind, its size, and for each member the name of the leaf without its module,
      the axis, and the size of the axis.

    Example:
      The groups of two layers have the same key:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> layer = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> net = lambda p, x: layer(p["b"], layer(p["a"], x))
      >>> shapes = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 3))}
      >>> graph = jg.trace(net, {"a": shapes, "b": shapes}, jnp.ones((5, 3)))
      >>> jg.isomorphic(graph.groups["a/in[1]"])
      ('hidden', 8, (('in', 1, 8), ('out', 0, 8)))
      >>> jg.isomorphic(graph.groups["b/in[1]"])
      ('hidden', 8, (('in', 1, 8), ('out', 0, 8)))

    References:
      Fang et al., Isomorphic Pruning for Vision Models, 2024, arXiv:2407.04616.
    """
    ends = [(m.path.rsplit("/", 1)[-1], m.axis, m.dim.size) for m in group.members]
    return group.kind, group.size, tuple(sorted(ends))


def is_width(group: Group) -> bool:
    """Returns True for widths, which `choose` prunes: no layers, and no tables.

    Args:
      group: a group.

    Returns:
      Whether its kind is neither "layer" (stacked layers) nor "table" (tokens or
      positions, without which a table does not know some of its inputs).

    Example:
      Three layers of four hidden units, stacked for `lax.scan`:

      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> layer = lambda x, p: (x + jnp.tanh(x @ p["in"]) @ p["out"], None)
      >>> net = lambda p, x: jax.lax.scan(layer, x, p)[0]
      >>> params = {"in": jnp.ones((3, 2, 4)), "out": jnp.ones((3, 4, 2))}
      >>> graph = jg.trace(net, params, jnp.ones((5, 2)))
      >>> {name: jg.is_width(group) for name, group in graph.groups.items()}
      {'in[0]': False, 'in[2]': True}
    """
    return group.kind not in ("layer", "table")


@renamed_arguments(scope="compete")
def choose(
    graph: Graph,
    scores: Mapping[str, Any],
    sparsity: float,
    *,
    compete: Compete = all_groups,
    cost: Cost | None = None,
    multiple_of: int | Callable[[Group], int] = 1,
    min_kept: int = 1,
    most: float | Callable[[Group], float] = 1.0,
    where: Callable[[Group], bool] = is_width,
) -> dict[str, np.ndarray]:
    """Chooses the entries to keep: those with the highest scores.

    With a cost, the entries with the lowest scores are removed until

        cost(sizes) <= (1 - sparsity) * cost(full sizes)

    and no more. Where groups do not all compete, each competition loses the same
    fraction of its entries, up to one entry. The number of entries is found by
    bisection on exact polynomials; nothing is pruned in order to be measured.

    Args:
      graph: the recorded function.
      scores: group name -> scores `(size,)`, as from `group_scores`.
      sparsity: fraction to remove, in [0, 1): of the entries, or of the cost.
      compete: `group -> key`; groups with equal keys compete with each other.
      cost: cost to reduce, such as `multiply_adds` or `parameters`; None counts
        entries.
      multiple_of: sizes become multiples of this number in groups that are at least
        as large. With a cost they are rounded down, so that the budget holds, else to
        the nearest multiple. A function `group -> number` gives each group its own.
        `compress` has 8 by default, and says which numbers devices prefer.
      min_kept: least number of entries that a group keeps; `Group.least`, too, holds.
      most: greatest fraction of a group's entries that is removed, in [0, 1]. A
        function `group -> fraction` gives each group its own: a ratio per layer.
      where: predicate of the groups that may shrink.

    Returns:
      Group name -> bools `(size,)`, True = keep, for the groups that shrink.

    Raises:
      PruningError: if the sparsity is outside [0, 1), if a score is missing, has
        another shape or is NaN, or if no group may shrink or the minimum sizes cost
        more than the budget: the error says what stands in the way.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.choose(graph, {"in[1]": jnp.array([3.0, 1.0, 2.0, 4.0])}, 0.5)
      {'in[1]': array([ True, False, False,  True])}
    """
    if not 0 <= sparsity < 1:
        raise base.PruningError(f"The sparsity must be in [0, 1); got {sparsity}.")
    groups = shrinkable(graph, where)
    given = {n: _checked(g, scores) for n, g in groups.items()}
    ranked = _ranks(groups, given, compete)
    rounded = _rounding(groups, multiple_of, min_kept, most, down=cost is not None)
    if cost is None:
        kept = {n: (ranks >= sparsity - 1e-12).sum() for n, ranks in ranked.items()}
        return _best(given, rounded(kept))
    left = _removal(ranked)
    # A sparsity such as 0.9 is rounded: the budget is not to be a hair below its own.
    budget = (1 - sparsity) * known(cost(graph, {})) * (1 + 1e-12)
    total = sum(g.size for g in groups.values())
    least = rounded(left(total))
    if cost(graph, least) > budget:
        raise too_costly(graph, cost, least, budget)

    def fits(count: int) -> bool:
        return cost(graph, rounded(left(count))) <= budget

    count = bisect.bisect_left(range(total), True, key=fits)
    return _best(given, rounded(left(count)))


def _checked(group: Group, scores: Mapping[str, Any]) -> np.ndarray:
    if group.name not in scores:
        raise base.PruningError(f"There is no score for the group {group.name}.")
    found = np.asarray(scores[group.name], np.float64)
    if found.shape != (group.size,):
        raise base.PruningError(
            f"The group {group.name} has {group.size} entries; got scores of shape "
            f"{found.shape}."
        )
    if np.isnan(found).any():
        raise base.NonFiniteScoreError(f"A score of the group {group.name} is NaN.")
    return found


def _ranks(
    groups: dict[str, Group], scores: dict[str, np.ndarray], compete: Compete
) -> dict[str, np.ndarray]:
    """Returns for each entry the fraction of its competitors that score less."""
    keys: dict[Hashable, list[str]] = {}
    for n, group in groups.items():
        keys.setdefault(compete(group), []).append(n)
    found: dict[str, np.ndarray] = {}
    for names in keys.values():
        together = np.concatenate([scores[n] for n in names])
        # The lower index wins a tie, as everywhere in jprune.
        order = np.lexsort((-np.arange(together.size), together))
        ranks = np.empty(together.size)
        ranks[order] = np.arange(together.size) / together.size
        ends = np.cumsum([scores[n].size for n in names])[:-1]
        found |= dict(zip(names, np.split(ranks, ends), strict=True))
    return {n: found[n] for n in groups}


def _removal(ranked: dict[str, np.ndarray]) -> Callable[[int], dict[str, int]]:
    """Returns `count -> sizes` after the removal of the lowest-ranked entries."""
    each = [ranks.size for ranks in ranked.values()]
    # Entries of equal rank, of groups that do not compete, are removed one by one.
    order = np.argsort(np.concatenate(list(ranked.values())), kind="stable")
    owners = np.repeat(np.arange(len(each)), each)[order]

    def left(count: int) -> dict[str, int]:
        gone = np.bincount(owners[:count], minlength=len(each))
        return dict(zip(ranked, each - gone, strict=True))

    return left


def _rounding(
    groups: dict[str, Group],
    multiple_of: int | Callable[[Group], int],
    min_kept: int,
    most: float | Callable[[Group], float],
    down: bool,
) -> Callable[[Mapping[str, Any]], dict[str, int]]:
    """Returns the function that rounds sizes to multiples within their limits."""
    shares = {n: most(g) if callable(most) else most for n, g in groups.items()}
    for n, share in shares.items():
        if not 0 <= share <= 1:
            raise base.PruningError(f"most is in [0, 1]; got {share} for {n}.")
    floors = {
        n: min(g.size, max(min_kept, g.least, _rest(g.size, shares[n])))
        for n, g in groups.items()
    }
    multiples = {
        n: multiple_of(g) if callable(multiple_of) else multiple_of
        for n, g in groups.items()
    }

    def rounded(left: Mapping[str, Any]) -> dict[str, int]:
        return {
            n: _rounded(int(left[n]), g.size, floors[n], multiples[n], down)
            for n, g in groups.items()
        }

    return rounded


def _rest(size: int, share: float) -> int:
    """Returns the size after a share of the entries has been removed, at most."""
    return int(np.ceil(size * (1 - share) - 1e-9))


def _rounded(left: int, size: int, floor: int, multiple: int, down: bool) -> int:
    if size < multiple:
        return max(left, floor)
    below = left // multiple * multiple
    above = min(-(-left // multiple) * multiple, size)
    near = below if down or left - below < above - left else above
    least = -(-floor // multiple) * multiple
    return min(max(near, least if least <= size else floor), size)


def _best(
    scores: dict[str, np.ndarray], counts: dict[str, int]
) -> dict[str, np.ndarray]:
    """Returns masks of the highest scores of the groups that shrink."""
    found = {}
    for n, each in scores.items():
        if counts[n] == each.size:
            continue
        order = np.lexsort((np.arange(each.size), -each))
        mask = np.zeros(each.size, bool)
        mask[order[: counts[n]]] = True
        found[n] = mask
    return found


def sizes(graph: Graph, keep: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes of groups after a choice of entries, as a cost takes them.

    Args:
      graph: the recorded function.
      keep: group name -> kept entries, as bools `(size,)` or as indices; or soft
        gates `(size,)` in [0, 1], perhaps traced.

    Returns:
      Group name -> number of kept entries, or the sum of the gates.

    Raises:
      PruningError: if there is no such group.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.sizes(graph, {"in[1]": [0, 2, 5]})
      {'in[1]': 3}
    """
    check_known(graph.groups, keep)
    return {name: _count(each) for name, each in keep.items()}


def _count(entries: Any) -> Any:
    found = entries if hasattr(entries, "dtype") else np.asarray(entries)
    if jnp.issubdtype(found.dtype, jnp.integer):
        return np.unique(found).size
    concrete = isinstance(found, np.ndarray) and found.dtype == bool
    return int(found.sum()) if concrete else found.sum()
