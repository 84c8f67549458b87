"""Search for the boundary of a budget among ordered keys, by counting.

Entries have keys; those with the highest keys are kept, as long as their total weight
is within a budget. The search holds a bracket of keys around the boundary and narrows
it: each pass counts how many entries reach each of seven pivots. Pivots are placed by
interpolation between the counts at both ends, because keys are spread smoothly over a
narrow bracket. After a poor guess, the next pass divides the bracket evenly, which
bounds the number of passes for every distribution.

A turn holds a few numbers for each leaf. In a trace they are traced; on the host they
are arrays of NumPy, so that nothing is compiled for them, whatever the tree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counting

PIVOTS = 7  # about as many as a CPU counts while it reads the entries


class Task(NamedTuple):
    """The problem of a search, for G groups of L leaves.

    A group is all leaves (G = 1), or one leaf each (G = L).

    Attributes:
      budget: (G,) `Total`, the largest weight that may be kept.
      sizes: (L,) uint32, numbers of entries.
      floors: (L,) uint32, numbers of entries that are kept anyway; or None.
      costs: (L,) uint32 in [1, 2^16], weight of an entry; or None for 1.
      rates: (L,), factors of the scores, the inverses of the costs; or None for 1.
    """

    budget: counting.Total
    sizes: jax.Array
    floors: jax.Array | None = None
    costs: jax.Array | None = None
    rates: jax.Array | None = None


class Bracket(NamedTuple):
    """Unsigned keys around the boundary, with the counts at both ends.

    Attributes:
      low: (G,) keys; entries at or above `low` exceed the budget (or `low == last`).
      last: (G,) keys; entries above `last` are within the budget.
      at_low: (L,) uint32, numbers of entries at or above `low`.
      above: (L,) uint32, numbers of entries above `last`.
      evenly: (G,) bool, whether the next pass divides the bracket evenly.
    """

    low: jax.Array
    last: jax.Array
    at_low: jax.Array
    above: jax.Array
    evenly: jax.Array


class Turn(NamedTuple):
    """A bracket, and the pivots of the next pass.

    Attributes:
      bracket: the bracket.
      pivots: (G, 7) unsigned keys, at which entries are counted.
      open: (G,) bool, whether the search goes on.
    """

    bracket: Bracket
    pivots: jax.Array
    open: jax.Array


def boundary(
    first: Turn, task: Task, count: Callable[[jax.Array, Any], Any], on_host: bool
) -> Bracket:
    """Searches until the boundary of every group is found.

    Args:
      first: first turn, from `begin`.
      task: the problem.
      count: `(pivots, open) -> (L, 7)` uint32, the number of entries of each leaf with
        a key at or above each pivot; may be anything for closed groups.
      on_host: run a Python loop, whose turns are of NumPy, and which waits for the
        counts of each pass. Otherwise the search is one `lax.while_loop`.

    Returns:
      A bracket. In each group, the entries above `last` have exactly the weight of the
      budget, or `low == last` is the key of entries of which only some are kept.
    """
    if not on_host:
        return lax.while_loop(
            lambda turn: jnp.any(turn.open),
            lambda turn: narrow(turn, task, count(turn.pivots, turn.open)),
            first,
        ).bracket
    turn = first
    while turn.open.any():
        turn = narrow(turn, task, count(turn.pivots, turn.open))
    return turn.bracket


def begin(around: Bracket, task: Task) -> Turn:
    """Returns the first turn of a search within a bracket.

    Args:
      around: bracket with `low` at most the smallest key, and `last` at least the
        largest key.
      task: the problem.

    Returns:
      A turn.
    """
    everything = counting.gap(weight(around.at_low, task), task.budget) <= 0
    # If all entries fit: at key 0 all of them tie, and all are kept.
    xp = around.low.__array_namespace__()
    zero = xp.zeros_like(around.low)
    empty = everything | (around.low > around.last)
    low = xp.where(empty, zero, around.low)
    last = xp.where(empty, zero, around.last)
    return _ask(around._replace(low=low, last=last), task)


def narrow(turn: Turn, task: Task, counts: jax.Array) -> Turn:
    """Returns the next turn, given the counts at the pivots of this one.

    Args:
      turn: current turn.
      task: the problem.
      counts: (L, 7) uint32, numbers of entries at or above each pivot.

    Returns:
      A turn with a narrower bracket in each open group.
    """
    old = turn.bracket
    fits = counting.gap(weight(counts, task), _column(task.budget)) <= 0  # (G, 7)
    xp = counts.__array_namespace__()
    pivots, fits = (xp.broadcast_to(x, counts.shape) for x in (turn.pivots, fits))
    # The smallest pivot that fits and the largest that does not, with their counts:
    # counts fall as pivots rise, so the ends of one are the ends of the other. All in
    # one reduction, which compiles in half of the time of an argmin and a gather.
    least, above, most, at_low, number = counting.reduced(
        [
            (xp.where(fits, pivots, _greatest(pivots)), lax.min),
            (xp.where(fits, counts, xp.zeros_like(counts)), lax.max),
            (xp.where(fits, xp.zeros_like(pivots), pivots), lax.max),
            (xp.where(fits, _greatest(counts), counts), lax.min),
            (fits.astype(np.int32), lax.add),
        ],
        axes=(1,),
    )
    groups = slice(0, len(turn.open))
    falls = turn.open & (number[groups] > 0)
    rises = turn.open & (number[groups] < PIVOTS)
    last = xp.where(falls, least[groups] - 1, old.last)
    low = xp.where(rises, most[groups], old.low)
    poor = (last - low) > ((old.last - old.low) >> 3)
    new = Bracket(
        low=low,
        last=last,
        at_low=xp.where(rises, at_low, old.at_low),
        above=xp.where(falls, above, old.above),
        evenly=poor & ~old.evenly,
    )
    return _ask(new, task)


def weight(counts: jax.Array, task: Task) -> counting.Total:
    """Returns the weight of the best entries of the leaves, floors included, per group.

    Args:
      counts: (L, ...) uint32, numbers of entries of each leaf.
      task: the problem, of which floors, costs and the number of groups are used.

    Returns:
      (G, ...) `Total`.
    """
    xp = counts.__array_namespace__()
    across = (-1,) + (1,) * (counts.ndim - 1)
    if task.floors is not None:
        counts = xp.maximum(counts, task.floors.reshape(across))
    modular, rough = counts, counts.astype(np.float32)
    if task.costs is not None:
        costs = task.costs.reshape(across)
        modular, rough = modular * costs, rough * costs.astype(np.float32)
    if task.budget.modular.shape[0] == 1:
        modular = xp.sum(modular, axis=0, keepdims=True, dtype=np.uint32)
        rough = xp.sum(rough, axis=0, keepdims=True)
    return counting.Total(modular, rough)


def _ask(around: Bracket, task: Task) -> Turn:
    """The turn of a bracket: pivots in (low, last], and which groups are open."""
    xp = around.low.__array_namespace__()
    at_low, above = weight(around.at_low, task), weight(around.above, task)
    exact = counting.gap(above, task.budget) == 0
    many = counting.gap(at_low, above)
    part = counting.gap(at_low, task.budget) / xp.where(many > 0, many, 1)
    width = (around.last - around.low)[:, None]
    guessed = _guess(width, xp.clip(part, 0, 1)[:, None], many[:, None])
    plain = around.evenly[:, None] | (width <= PIVOTS)
    offsets = xp.where(plain, _even(width), guessed)
    offsets = xp.minimum(xp.maximum(offsets, xp.ones_like(offsets)), width)
    pivots = around.low[:, None] + offsets
    return Turn(around, pivots, (around.low < around.last) & ~exact)


def _even(width: jax.Array) -> jax.Array:
    """Seven offsets that divide a width into eight; all offsets of a small width."""
    xp = width.__array_namespace__()
    steps = xp.arange(1, PIVOTS + 1, dtype=width.dtype)[None]
    eighth, rest = width >> 3, width & 7
    return xp.where(width <= PIVOTS, steps, eighth * steps + (rest * steps >> 3))


def _guess(width: jax.Array, part: jax.Array, many: jax.Array) -> jax.Array:
    """Seven offsets around the boundary that evenly spread keys would have.

    One at the boundary, two at two standard deviations of a sample of that size, two
    much further away, and two in the middle of the rest on either side.
    """
    xp = width.__array_namespace__()
    total = width.astype(np.float32)
    centre = part * total
    near = 2 * xp.sqrt(part * (1 - part) / xp.maximum(many, 1)) * total
    far = xp.sqrt(xp.maximum(near, 0.5) * total / 8)
    offsets = xp.concatenate(
        [
            (centre - far) / 2,
            centre - far,
            centre - near,
            centre,
            centre + near,
            centre + far,
            (centre + far + total) / 2,
        ],
        axis=-1,
    )
    # Floats of 2^24 and more may be rounded up: clip before the conversion.
    most = total * (1 - 2.0**-22)
    return xp.clip(xp.round(offsets), 0, most).astype(width.dtype)


def _column(x: counting.Total) -> counting.Total:
    return jax.tree.map(lambda a: a[:, None], x)


def _greatest(x: jax.Array) -> jax.Array:
    return x.__array_namespace__().full_like(x, np.iinfo(x.dtype).max)


def bracket(low: jax.Array, last: jax.Array, sizes: jax.Array, evenly: bool) -> Bracket:
    """Returns the bracket from the smallest to the largest key.

    Args:
      low: (G,) unsigned keys.
      last: (G,) unsigned keys.
      sizes: (L,) uint32, numbers of entries at or above `low`.
      evenly: whether the first pass divides the bracket evenly.

    Returns:
      A bracket.
    """
    flags = np.full(low.shape, evenly)
    return Bracket(
        low, last, sizes, sizes.__array_namespace__().zeros_like(sizes), flags
    )
