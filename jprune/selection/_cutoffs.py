"""Cutoffs of a selection: for each leaf a key, and among entries with that key a rank.

Every selection keeps the best entries of each leaf, so one key and one rank per leaf
describe it. Only those are exchanged between leaves, and between devices.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import counting
from jprune.selection import _boundary, _kernels
from jprune.selection._batching import Batch
from jprune.selection._boundary import Bracket, Task


class Cutoffs(NamedTuple):
    """What is kept of each of L leaves.

    Attributes:
      counts: (L,) uint32, numbers of entries kept.
      keys: (L,) unsigned; entries with a higher key are kept.
      ranks: (L,) uint32; entries with that key and a higher rank are kept as well.
      greatest: (L,) unsigned, the largest key of each leaf.
    """

    counts: jax.Array
    keys: jax.Array
    ranks: jax.Array
    greatest: jax.Array


def cutoffs(
    batches: Sequence[Batch], dtype: jnp.dtype, task: Task, on_host: bool
) -> Cutoffs:
    """Finds the cutoffs of all leaves.

    Args:
      batches: batches of all leaves.
      dtype: dtype in which scores are compared.
      task: the budget, floors and costs.
      on_host: run the search from the host; see `_boundary.boundary`.

    Returns:
      The cutoffs.
    """
    order = np.argsort(np.concatenate([b.leaves for b in batches]))
    ranges = _in_order(
        [_kernels.key_range(b, dtype, task.rates) for b in batches], order, on_host
    )

    def count_keys(pivots: Any, is_open: Any) -> jax.Array:
        return _in_order(
            [
                _kernels.key_counts(b, dtype, task.rates, pivots)
                if _any_open(b, is_open, on_host)
                else np.zeros((len(b.leaves), _boundary.PIVOTS), np.uint32)
                for b in batches
            ],
            order,
            on_host,
        )

    found = _boundary.boundary(_first(ranges, task), task, count_keys, on_host)
    least = None
    if task.floors is not None:
        each = Task(counting.total(task.floors), task.sizes)
        first = _first(_where_floors_bind(ranges, found, task.floors), each)
        least = _boundary.boundary(first, each, count_keys, on_host)
    counts, keys, take, ties = _divide(found, least, task)

    def count_ties(pivots: Any, is_open: Any) -> jax.Array:
        return _in_order(
            [
                _kernels.tie_counts(b, dtype, task.rates, keys, pivots)
                if _any_open(b, is_open, on_host)
                else np.zeros((len(b.leaves), _boundary.PIVOTS), np.uint32)
                for b in batches
            ],
            order,
            on_host,
        )

    each = Task(counting.total(take), task.sizes)
    ranked = _boundary.boundary(_first_rank(ties, each), each, count_ties, on_host)
    return Cutoffs(counts, keys, _ranks(ranked, take), ranges[:, 1])


def _any_open(b: Batch, is_open: Any, on_host: bool) -> bool:
    """Whether a batch has to be counted; always True in a trace."""
    if not on_host:
        return True
    return bool(is_open[b.leaves if len(is_open) > 1 else 0].any())


def _in_order(rows: list[Any], order: np.ndarray, on_host: bool) -> Any:
    """The rows of all batches, in the order of the leaves.

    Outside of a trace they are joined on the host, because leaves may be on different
    devices.
    """
    if on_host:
        return np.concatenate([np.atleast_2d(r) for r in jax.device_get(rows)])[order]
    return jnp.concatenate([jnp.atleast_2d(r) for r in rows])[order]


def _first(ranges: jax.Array, task: Task) -> _boundary.Turn:
    """The first turn of the search among keys."""
    low, last = ranges[:, 0], ranges[:, 1]
    if task.budget.modular.shape[0] == 1:
        low, last = low.min(keepdims=True), last.max(keepdims=True)
    return _boundary.begin(_boundary.bracket(low, last, task.sizes, evenly=True), task)


def _where_floors_bind(ranges: jax.Array, found: Bracket, floors: jax.Array):
    """The ranges of keys, empty for leaves that keep more than their floor anyway.

    Floors seldom bind; where none does, they cost no pass.
    """
    xp = ranges.__array_namespace__()
    tied = xp.broadcast_to(found.low == found.last, found.above.shape)
    binds = floors > xp.where(tied, found.at_low, found.above)
    low, last = ranges[:, 0], ranges[:, 1]
    return xp.stack([xp.where(binds, low, last), last], axis=1)


def _first_rank(ties: jax.Array, task: Task) -> _boundary.Turn:
    """The first turn of the search among the ranks of tied entries."""
    low = _kernels.least_rank(task.sizes)
    last = ties.__array_namespace__().full_like(low, 2**32 - 1)
    return _boundary.begin(_boundary.bracket(low, last, ties, evenly=False), task)


def _ranks(found: Bracket, take: jax.Array) -> jax.Array:
    xp = take.__array_namespace__()
    return xp.where(take == 0, xp.full_like(found.last, 2**32 - 1), found.last)


def _divide(found: Bracket, least: Bracket | None, task: Task) -> tuple[jax.Array, ...]:
    """Divides the rest of the budget among tied entries, in tree order.

    Returns:
      (L,) arrays: the number of entries kept, the key of the cutoff, the number of
      entries with that key that are kept, and the number of entries with that key.
    """
    above = found.above
    xp = above.__array_namespace__()
    zero, one = xp.zeros_like(above), xp.ones_like(above)
    tied = xp.broadcast_to(found.low == found.last, above.shape)
    ties = xp.where(tied, found.at_low - above, zero)
    floors = zero if task.floors is None else task.floors
    costs = one if task.costs is None else task.costs
    sure = xp.maximum(floors, above)
    more = xp.maximum(floors, above + ties) - sure

    rest = counting.minus(task.budget, _boundary.weight(above, task))
    price = counting.Total(
        more * costs, more.astype(np.float32) * costs.astype(np.float32)
    )
    if task.budget.modular.shape[0] == 1:  # leaves are served in tree order
        before = counting.Total(
            xp.cumsum(price.modular, dtype=np.uint32) - price.modular,
            xp.cumsum(price.rough) - price.rough,
        )
        rest = counting.minus(rest, before)
    share = xp.minimum(counting.how_often(rest, costs), more)
    share = xp.where(counting.gap(rest, price) >= 0, more, share)
    share = xp.where(counting.gap(rest, _NOTHING) <= 0, zero, share)
    counts = sure + share

    keys = xp.broadcast_to(found.last, above.shape)
    if least is not None:
        floor_binds = counts > above + ties
        keys = xp.where(floor_binds, least.last, keys)
        ties = xp.where(floor_binds, least.at_low - least.above, ties)
        above = xp.where(floor_binds, least.above, above)
    return counts, keys, counts - above, ties


_NOTHING = counting.total(np.zeros(1, np.int64))
