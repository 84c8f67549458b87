"""Which entries of groups to keep: by share, or as many as a budget allows."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from jprune._core import base
from jprune.graph._cost import Cost
from jprune.graph._groups import Group, check_known
from jprune.graph._trace import Graph

Scope = Callable[[Group], Hashable]
"""Groups with the same key compete for what is kept."""


def all_groups(group: Group) -> Hashable:
    """The scope in which all groups compete; their scores have to be of one scale."""
    del group
    return None


def each_group(group: Group) -> Hashable:
    """The scope in which entries compete within their group only."""
    return group.name


def same_kind(group: Group) -> Hashable:
    """The scope in which heads compete with heads, channels with channels."""
    return group.kind


def isomorphic(group: Group) -> Hashable:
    """The scope in which groups of the same form compete, as layers of a stack.

    Args:
      group: a group.

    Returns:
      Its kind, its size, and the names and axes of its members.

    References:
      Fang et al., Isomorphic Pruning for Vision Models, 2024, arXiv:2407.04616.
    """
    ends = [(m.path.rsplit("/", 1)[-1], m.axis, m.dim.size) for m in group.members]
    return group.kind, group.size, tuple(sorted(ends))


def is_width(group: Group) -> bool:
    """Returns True for all groups but stacked layers: what `select` prunes."""
    return group.kind != "layer"


def select(
    graph: Graph,
    scores: Mapping[str, Any],
    sparsity: float,
    *,
    scope: Scope = all_groups,
    cost: Cost | None = None,
    multiple_of: int = 1,
    min_kept: int = 1,
    most: float = 1.0,
    where: Callable[[Group], bool] = is_width,
) -> dict[str, np.ndarray]:
    """Returns the entries to keep: the highest scores of each scope.

    With a cost as few entries are removed as

        cost(sizes) <= (1 - sparsity) * cost(all)

    asks for, the lowest of every scope first: the same share of each, up to an entry.
    How many is found by bisection on exact polynomials: nothing is pruned to be
    measured.

    Args:
      graph: the recorded function.
      scores: group name -> `(size,)`, as from `group_scores`.
      sparsity: in [0, 1): the share of entries to remove, or, with a cost, of the
        cost.
      scope: what competes.
      cost: such as `multiply_adds` or `parameters`; None counts entries.
      multiple_of: sizes become multiples of it, where a group is large enough. They
        are rounded down for a cost, so that it holds, else to the nearest.
      min_kept: the least that a group keeps.
      most: the largest share of a group that may go.
      where: which groups may shrink.

    Returns:
      Group name -> bools, of the groups that shrink.

    Raises:
      PruningError: if the sparsity is outside [0, 1), a score is missing, of another
        shape or NaN, nothing may shrink, or floors make the budget impossible.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> select(graph, {"in[1]": jnp.array([3.0, 1.0, 2.0, 4.0])}, 0.5)
      {'in[1]': array([ True, False, False,  True])}
    """
    if not 0 <= sparsity < 1:
        raise base.PruningError(f"A share to remove is in [0, 1); got {sparsity}.")
    groups = {n: g for n, g in graph.groups.items() if where(g)}
    if not groups:
        raise base.PruningError("No group may shrink.")
    given = {n: _checked(g, scores) for n, g in groups.items()}
    floors = {
        n: min(g.size, max(min_kept, int(np.ceil(g.size * (1 - most) - 1e-9))))
        for n, g in groups.items()
    }
    ranked = _ranks(groups, given, scope)

    def rounded(left: Mapping[str, Any]) -> dict[str, int]:
        return {
            n: _rounded(int(left[n]), g.size, floors[n], multiple_of, cost)
            for n, g in groups.items()
        }

    if cost is None:
        left = {n: (ranks >= sparsity - 1e-12).sum() for n, ranks in ranked.items()}
        return _best(given, rounded(left))

    # Of scopes that compete apart, entries of one rank go one after the other.
    order = np.argsort(np.concatenate(list(ranked.values())), kind="stable")
    each = [g.size for g in groups.values()]
    owners = np.repeat(np.arange(len(each)), each)[order]

    def without(first: int) -> dict[str, int]:
        gone = np.bincount(owners[:first], minlength=len(each))
        return rounded(dict(zip(groups, each - gone, strict=True)))

    budget = (1 - sparsity) * cost(graph, {})
    low, high = 0, len(owners)  # what `high` removes fits
    if cost(graph, without(high)) > budget:
        raise base.PruningError(
            f"Even the least sizes cost {cost(graph, without(high))}, more than "
            f"{budget}: {without(high)}"
        )
    while low < high:
        middle = (low + high) // 2
        if cost(graph, without(middle)) <= budget:
            high = middle
        else:
            low = middle + 1
    return _best(given, without(high))


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
    groups: dict[str, Group], scores: dict[str, np.ndarray], scope: Scope
) -> dict[str, np.ndarray]:
    """For each entry the share of its scope that scores less, ties by place."""
    scopes: dict[Hashable, list[str]] = {}
    for n, group in groups.items():
        scopes.setdefault(scope(group), []).append(n)
    found: dict[str, np.ndarray] = {}
    for names in scopes.values():
        together = np.concatenate([scores[n] for n in names])
        # The lower place wins a tie, as everywhere in jprune.
        order = np.lexsort((-np.arange(together.size), together))
        ranks = np.empty(together.size)
        ranks[order] = np.arange(together.size) / together.size
        ends = np.cumsum([scores[n].size for n in names])[:-1]
        found |= dict(zip(names, np.split(ranks, ends), strict=True))
    return {n: found[n] for n in groups}


def _rounded(left: int, size: int, floor: int, multiple: int, cost: Any) -> int:
    if size < multiple:
        return max(left, floor)
    down = left // multiple * multiple
    up = min(-(-left // multiple) * multiple, size)
    near = down if cost is not None or left - down < up - left else up
    least = -(-floor // multiple) * multiple
    return min(max(near, least if least <= size else floor), size)


def _best(
    scores: dict[str, np.ndarray], counts: dict[str, int]
) -> dict[str, np.ndarray]:
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
    """Returns the sizes of groups for a choice of entries, as a cost takes them.

    Args:
      graph: the recorded function.
      keep: group name -> bools, or soft gates in [0, 1], perhaps traced.

    Returns:
      Group name -> the sum of what is kept.

    Raises:
      PruningError: if there is no such group.
    """
    check_known(graph.groups, keep)
    return {name: each.sum() for name, each in keep.items()}
