"""Sizes of groups from the desired sizes of leaves, and entries from sizes."""

from collections.abc import Callable, Mapping

import numpy as np

from jprune._core import base
from jprune.graph._budget import is_width
from jprune.graph._cost import measure
from jprune.graph._groups import Group, check_known
from jprune.graph._obstacles import shrinkable
from jprune.graph._trace import Graph

_ROUNDS = 20


def fit_widths(
    graph: Graph,
    shares: Mapping[str, float],
    *,
    min_kept: int = 1,
    where: Callable[[Group], bool] = is_width,
) -> dict[str, int]:
    """Fits the sizes of groups to given fractions of the leaves' sizes.

    With c_g the size of group g and n_l(c) the number of weights of leaf l,

        min over c of sum over l of (log n_l(c) - log(share_l n_l))^2

    A product of sizes is linear in their logarithms, so that a single least-squares
    problem solves it; sums, as of concatenated features, need a few Gauss-Newton
    steps. Among equally good solutions, the one nearest to the full sizes is taken.
    Sizes outside of [min_kept, full size] are clipped, and the others are solved for
    again.

    Args:
      graph: the recorded function.
      shares: path of a leaf -> fraction of its weights to keep, in (0, 1].
      min_kept: least size of a group.
      where: predicate of the groups that may shrink.

    Returns:
      Group name -> size, rounded to an integer.

    Raises:
      PruningError: if there is no such leaf, a fraction is outside (0, 1], `min_kept`
        is not positive, or no group may shrink.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.fit_widths(graph, {"in": 0.5, "out": 0.125})
      {'in[1]': 2}
    """
    groups = shrinkable(graph, where)
    _check(graph, shares, min_kept)
    full = np.array([float(g.size) for g in groups.values()])
    fewest = [min(g.size, max(min_kept, g.least)) for g in groups.values()]
    least = np.log(np.array(fewest) / full)
    logs, free = np.zeros(len(groups)), np.ones(len(groups), bool)
    while free.any():
        logs = _solve(graph, shares, list(groups), logs, free)
        outside = free & ((logs > 1e-9) | (logs < least - 1e-9))
        logs = np.clip(logs, least, 0.0)
        if not outside.any():
            break
        free &= ~outside
    counts = np.clip(np.round(full * np.exp(logs)), fewest, full)
    return dict(zip(groups, map(int, counts), strict=True))


def _solve(
    graph: Graph,
    shares: Mapping[str, float],
    names: list[str],
    logs: np.ndarray,
    free: np.ndarray,
) -> np.ndarray:
    """Solves for the logarithms of the free groups' kept fractions by Gauss-Newton."""
    full = np.array([float(graph.groups[n].size) for n in names])
    logs = np.where(free, 0.0, logs)
    for _ in range(_ROUNDS):
        sizes = dict(zip(names, full * np.exp(logs), strict=True))
        rows, rest = [], []
        for path, share in shares.items():
            have, slopes = _logarithm(graph, path, sizes)
            whole, _ = _logarithm(graph, path, {})
            rows.append([slopes.get(n, 0.0) for n in names])
            rest.append(np.log(share) + whole - have)
        slope, missing = np.array(rows)[:, free], np.array(rest)
        # The unknowns are 0 at the full sizes, and lstsq returns the least norm.
        at = logs[free]
        new = np.linalg.lstsq(slope, missing + slope @ at, rcond=1e-9)[0]
        logs = logs.copy()
        logs[free] = new
        if np.abs(new - at).max() < 1e-10:
            break
    return logs


def _logarithm(
    graph: Graph, path: str, sizes: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    """Returns the logarithm of a leaf's size, and its derivatives.

    The derivatives are with respect to the logarithms of the groups' sizes. An axis is
    a polynomial of degree one in each size, so its derivative is the fraction of the
    axis that is lost without the group.
    """
    size, axes = measure(graph, sizes), graph.axes[path]
    slopes = {}
    for name in sizes:
        if any(m.path == path for m in graph.groups[name].members):
            without = measure(graph, {**sizes, name: 0.0})
            slopes[name] = sum(float(1 - without(d) / size(d)) for d in axes)
    return sum(float(np.log(size(d))) for d in axes), slopes


def _check(graph: Graph, shares: Mapping[str, float], min_kept: int) -> None:
    if min_kept < 1:
        raise base.PruningError(f"min_kept must be at least 1; got {min_kept}.")
    for path, share in shares.items():
        if path not in graph.axes:
            raise base.PruningError(f"The params that were traced have no leaf {path}.")
        if not 0 < share <= 1:
            raise base.PruningError(
                f"The fraction to keep of {path} must be in (0, 1]; got {share}."
            )


def first_entries(graph: Graph, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Keeps the first entries of groups.

    At initialization all entries are equivalent, so it does not matter which are kept.

    Args:
      graph: the recorded function.
      sizes: group name -> number of kept entries.

    Returns:
      Group name -> bools `(size,)`, for the groups that lose entries.

    Raises:
      PruningError: if there is no such group, or if a size is not between 1 and the
        number of its entries.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.first_entries(graph, {"in[1]": 3})
      {'in[1]': array([ True,  True,  True, False])}
    """
    check_known(graph.groups, sizes)
    found = {}
    for name, count in sizes.items():
        size = graph.groups[name].size
        if not 1 <= count <= size:
            raise base.PruningError(
                f"The group {name} has {size} entries; got {count} to keep."
            )
        if count < size:
            found[name] = np.arange(size) < count
    return found
