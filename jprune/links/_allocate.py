"""Allocations: how many entries each leaf keeps at a given sparsity of all leaves.

An allocation is a function `(scores, params, sparsity) -> counts`, whose counts sum to
the total exactly. Given the share a_l of each leaf,

    kept_l = clip(level * a_l, low_l, high_l)

with the level at which the total is reached.

    uniform              a_l = n_l: the same sparsity everywhere
    erdos_renyi          a_l = n_l (in + out) / (in out)
    erdos_renyi_kernel   a_l = n_l (sum of axes) / (product of axes)
    rescaled_global      the counts of a global selection, rescaled above a minimum
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import selection, tree
from jprune._core import base, counting
from jprune.links._common import axes_of_role

Allocation = Callable[[base.Scores, base.Params, jax.typing.ArrayLike], base.Counts]
"""`(scores, params, sparsity) -> counts`, the number of entries that each leaf
keeps."""

Pins = Sequence[tuple[str, float]]
"""Rules `(pattern, sparsity)` that fix the sparsity of leaves, by their paths. It holds
at every refresh: a schedule moves the other leaves only, which make up for the pins."""


def uniform(*, pins: Pins = ()) -> Allocation:
    """Allocates the same sparsity to every leaf.

    Args:
      pins: rules `(pattern, sparsity)` for leaves of fixed sparsity; the other leaves
        make up for them. Pins are fixed under a schedule, too: a leaf with the pin 0.5
        has this sparsity from the first refresh on. Uniform+ in the literature has a
        dense first layer and a last layer of sparsity 0.8 at most.

    Returns:
      An allocation.

    Raises:
      PruningError: if a pinned sparsity is outside [0, 1], a pattern is no regular
        expression, or (when used) a rule
        applies to no leaf, or the pins contradict a known sparsity.

    Example:
      >>> scores = {"a": jnp.ones(8), "b": jnp.ones(4)}
      >>> counts = uniform(pins=[("b", 0.0)])(scores, scores, 0.5)
      >>> int(counts["a"]), int(counts["b"])
      (2, 4)
    """
    return _by_shares(lambda path, w, size: float(size), pins)


def erdos_renyi(
    *, pins: Pins = (), layout: tree.KernelLayout = tree.kernel_axes
) -> Allocation:
    """Allocates Erdos-Renyi densities, proportional to (in + out) / (in * out).

    Args:
      pins: rules `(pattern, sparsity)` for leaves of fixed sparsity.
      layout: function `(path, leaf) -> KernelAxes`, the input and output axes.

    Returns:
      An allocation.

    Raises:
      PruningError: as `uniform`; or (when used) if a leaf has fewer than two axes, or
        none with a role.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 12))}  # 8/16 and 16/48
      >>> counts = erdos_renyi()(scores, scores, 0.75)  # 16 of 64 entries, as 8 : 16
      >>> int(counts["a"]), int(counts["b"])
      (5, 11)

    References:
      Mocanu et al., Scalable Training of Artificial Neural Networks with
      Adaptive Sparse Connectivity, 2018, arXiv:1707.04780, equation 3.
    """

    def share(path: str, w: Any, size: int) -> float:
        inputs = axes_of_role(layout, "input", path, w)
        outputs = axes_of_role(layout, "output", path, w)
        fan_in = math.prod(np.shape(w)[i] for i in inputs)
        fan_out = math.prod(np.shape(w)[i] for i in outputs)
        return size * (fan_in + fan_out) / (fan_in * fan_out)

    return _by_shares(share, pins)


def erdos_renyi_kernel(*, pins: Pins = ()) -> Allocation:
    """Allocates Erdos-Renyi-Kernel (ERK) densities, sum of axes over product of axes.

    Leaves whose density would exceed 1 are dense, and the others share the rest.

    Args:
      pins: rules `(pattern, sparsity)` for leaves of fixed sparsity. ERK+ in the
        literature has a dense last layer.

    Returns:
      An allocation.

    Raises:
      PruningError: as `uniform`.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"a": jnp.ones((4, 4)), "b": jnp.ones((2, 2, 4, 4))}  # 8 : 12
      >>> counts = erdos_renyi_kernel()(scores, scores, 0.75)  # 20 of 80 entries
      >>> int(counts["a"]), int(counts["b"])
      (8, 12)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      arXiv:1911.11134, section 3. Liu et al., The Unreasonable Effectiveness of
      Random Pruning, 2022, arXiv:2202.02643 (ERK+).
    """

    def share(path: str, w: Any, size: int) -> float:
        del path
        shape = np.shape(w)
        return size * sum(shape) / math.prod(shape)

    return _by_shares(share, pins)


def rescaled_global(min_fraction: float = 0.0005) -> Allocation:
    """Allocates the counts of a global selection, rescaled above a minimum per leaf.

    Leaves smaller than the minimum stay dense. In the others, the numbers of entries
    that the global selection removes are scaled by one factor and clipped at the
    minimum; the factor is the one that reaches the total. This is the fixed point of
    the paper's loop of rescaling and clamping, computed directly.

    Args:
      min_fraction: minimum number of entries that a leaf keeps, as a fraction of all
        entries, in [0, 1] (the paper's MT, 0.05 percent there).

    Returns:
      An allocation.

    Raises:
      PruningError: if the fraction is outside [0, 1], or (when used) the minimums sum
        to more than a known sparsity keeps. With a traced sparsity the minimums take
        precedence.

    Example:
      Of 8 entries, 4 are kept; a global selection keeps none in "b". With a minimum of
      25 %, "b" keeps two:

      >>> import jax.numpy as jnp
      >>> scores = {"a": jnp.array([5.0, 6.0, 7.0, 8.0]), "b": jnp.arange(4.0)}
      >>> counts = rescaled_global(0.25)(scores, scores, 0.5)
      >>> int(counts["a"]), int(counts["b"])
      (2, 2)

    References:
      Gupta et al., Is Complexity Required for Neural Network Pruning? A Case
      Study on Global Magnitude Pruning, 2022, arXiv:2209.14624, section 3.
    """
    if not 0 <= min_fraction <= 1:
        raise base.PruningError(f"min_fraction is in [0, 1]; got {min_fraction}.")

    def allocate(
        scores: base.Scores, params: base.Params, sparsity: jax.typing.ArrayLike
    ) -> base.Counts:
        del params
        leaves, treedef = jax.tree.flatten(scores)
        if not leaves:
            return scores
        sizes = np.array([np.size(x) for x in leaves], np.int64)
        total = int(sizes.sum())
        least = int(total * min_fraction)
        keep = selection.kept_count(total, sparsity)
        chosen = jax.tree.leaves(selection.count_top_k(scores, keep))
        most = np.where(sizes < least, 0, np.maximum(sizes - least, 0))
        if not isinstance(sparsity, jax.Array) and total - keep > most.sum():
            raise base.PruningError(
                f"A minimum of {least} entries in each leaf keeps at least "
                f"{total - most.sum()} of {total}, but sparsity {sparsity} keeps "
                f"{keep}: lower min_fraction or the sparsity."
            )
        gone: Any = counting.minus(counting.total(total), counting.total(keep))
        counts = _rescaled(jnp.stack(chosen), gone, tuple(sizes), tuple(most))
        return treedef.unflatten(counting.unstacked(counts))

    return allocate


@functools.partial(jax.jit, static_argnames=("sizes", "most"))  # one program, not forty
def _rescaled(
    chosen: jax.Array, gone: Any, sizes: tuple[int, ...], most: tuple[int, ...]
) -> jax.Array:
    """How many entries leaves keep, if as many go as a global selection removes."""
    whole = jnp.asarray(np.array(sizes), jnp.int32)
    shares = (whole - chosen.astype(jnp.int32)).astype(jnp.float32)
    low = np.zeros(len(sizes), np.int64)
    return whole - _fill(jnp, shares, low, np.array(most, np.int64), gone)


def _by_shares(share: Callable[[str, Any, int], float], pins: Pins) -> Allocation:
    """An allocation from the share of each leaf, which depends on shapes only."""
    for pattern, sparsity in pins:
        tree.check_pattern(pattern)
        selection.check_sparsity(sparsity)

    def allocate(
        scores: base.Scores, params: base.Params, sparsity: jax.typing.ArrayLike
    ) -> base.Counts:
        leaves, treedef = jax.tree.flatten(scores)
        paths = tree.leaf_paths(params)
        sizes = [int(np.size(x)) for x in leaves]
        fixed = tree.match_rules(pins, paths) if pins else {}
        low = np.array(
            [
                selection.kept_count(size, fixed[path]) if path in fixed else 0
                for path, size in zip(paths, sizes, strict=True)
            ],
            np.int64,
        )
        high = np.where([path in fixed for path in paths], low, sizes)
        shares = np.array(
            [
                share(path, w, size) if size else 0.0
                for path, w, size in zip(
                    paths, treedef.flatten_up_to(params), sizes, strict=True
                )
            ]
        )
        if isinstance(sparsity, jax.Array):
            keep = selection.kept_count(sum(sizes), sparsity)
            counts = _fill(jnp, jnp.asarray(shares, jnp.float32), low, high, keep)
        else:  # on the host in float64, because shapes and sparsity are known
            keep = selection.kept_count(sum(sizes), sparsity)
            if not low.sum() <= keep <= high.sum():
                raise base.PruningError(
                    f"With these pins, leaves keep between {low.sum()} and "
                    f"{high.sum()} of {sum(sizes)} entries, but sparsity {sparsity} "
                    f"keeps {keep}: change the pins or the sparsity."
                )
            counts = _fill(np, shares, low, high, keep)
        return treedef.unflatten(list(counts))

    return allocate


def _fill(xp: Any, shares: Any, low: Any, high: Any, total: Any) -> Any:
    """Integers near clip(level * shares, low, high) that sum to `total` exactly.

    Args:
      xp: `numpy` or `jax.numpy`, the module to compute with.
      shares: (leaves,) array, non-negative.
      low: (leaves,) integers, lower bounds.
      high: (leaves,) integers, upper bounds.
      total: sum of the result, an integer or (for `jax.numpy`) a `Total`; clipped to
        what the bounds allow.

    Returns:
      (leaves,) integers.
    """
    if not len(low):
        return xp.zeros((0,), np.int32)
    total = _clipped(xp, total, int(low.sum()), int(high.sum()))
    if xp is jnp:
        budget = counting.gap(total, counting.total(0))
    else:
        budget = total.astype(shares.dtype)
    lows, highs = (xp.asarray(x, shares.dtype) for x in (low, high))
    # level -> sum is piecewise linear. Its slope rises by a share where a leaf leaves
    # its lower bound, and falls by it where the leaf meets its upper bound.
    safe = xp.where(shares > 0, shares, 1)
    bends = xp.concatenate([lows / safe, highs / safe])
    slopes = xp.concatenate([xp.where(shares > 0, shares, 0)] * 2)
    order = xp.argsort(bends, stable=True)
    bends = bends[order]
    signed = xp.concatenate([slopes[: len(low)], -slopes[len(low) :]])[order]
    slope = xp.cumsum(signed)
    rises = slope[:-1] * (bends[1:] - bends[:-1])
    sums = lows.sum() + xp.concatenate([xp.zeros((1,), rises.dtype), xp.cumsum(rises)])
    at = xp.clip(xp.searchsorted(sums, budget, side="right") - 1, 0, len(bends) - 1)
    here = slope[at]
    step = (budget - sums[at]) / xp.where(here > 0, here, 1)
    level = bends[at] + xp.where(here > 0, xp.maximum(step, 0), 0)
    real = xp.clip(level * shares, lows, highs)
    return _round_to_total(xp, real, low, high, total)


def _clipped(xp: Any, total: Any, least: int, most: int) -> Any:
    """The total within bounds: for `jax.numpy` a `Total`, which may exceed 2^31."""
    if xp is np:
        return np.clip(total, least, most)
    total, ends = counting.total(total), (counting.total(least), counting.total(most))
    for end, sign in zip(ends, (1, -1), strict=True):
        outside = sign * counting.gap(total, end) < 0
        total = jax.tree.map(functools.partial(jnp.where, outside), end, total)
    return total


def _missing(xp: Any, total: Any, whole: Any) -> Any:
    """Returns total - sum(whole), which is small: for `jax.numpy` modulo 2^32."""
    if xp is np:
        return total - whole.sum()
    rest = total.modular - whole.sum().astype(jnp.uint32)
    return lax.bitcast_convert_type(rest, jnp.int32)


def _round_to_total(xp: Any, real: Any, low: Any, high: Any, total: Any) -> Any:
    """Integers next to `real`, within the bounds, that sum to `total`."""
    low, high = (
        xp.asarray(x, np.int32 if xp is jnp else np.int64) for x in (low, high)
    )
    whole = xp.clip(xp.floor(real).astype(low.dtype), low, high)
    # The largest remainders get the missing units, one each.
    missing = _missing(xp, total, whole)
    excess = whole.astype(real.dtype) - real
    rank = xp.argsort(xp.argsort(excess, stable=True), stable=True)
    whole = xp.clip(whole + (rank < missing).astype(low.dtype), low, high)
    # Units that remain because of bounds, or of float32, go where there is room.
    missing = _missing(xp, total, whole)
    room = xp.where(missing > 0, high - whole, whole - low)
    room = xp.minimum(room, xp.abs(missing))  # so that their sums do not overflow
    before = xp.cumsum(room) - room
    return whole + xp.sign(missing) * xp.clip(xp.abs(missing) - before, 0, room)
