"""Schedules: how many tokens, heads and values each layer keeps.

Counts are tuples of Python integers, one per layer, made by `ramp`, `ltp_ramp` or
`from_ratios` and combined by `schedule`. They never grow from layer to layer: what is
pruned stays pruned. A `Schedule` is hashable, so it can be a static argument of
`jax.jit`; each different schedule compiles anew.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jprune._core import base
from jprune._core.deprecation import renamed_arguments

Counts = tuple[int, ...]


class Schedule(NamedTuple):
    """Keep counts of each layer.

    Attributes:
      length: tokens of the input.
      tokens: tokens that leave the attention of each layer: those for which its output
        projection, its feed-forward part and all later layers are computed.
      heads: query heads that each layer computes; the first layer computes all.
      values: rows of V that each query of each head multiplies by.
    """

    length: int
    tokens: Counts
    heads: Counts
    values: Counts

    @property
    def entering(self) -> Counts:
        """Tokens that enter each layer: its queries and its keys."""
        return (self.length, *self.tokens[:-1])


def schedule(
    length: int,
    tokens: Sequence[int],
    heads: Sequence[int],
    values: Sequence[int] | None = None,
) -> Schedule:
    """Returns a schedule from counts of each layer, after checking them.

    Args:
      length: tokens of the input.
      tokens: for each layer, tokens that leave its attention, in [1, length].
      heads: for each layer, query heads that it computes; the first layer computes all.
      values: for each layer, rows of V that each query multiplies by; those of all its
        keys by default.

    Returns:
      A `Schedule`.

    Raises:
      PruningError: if the numbers of counts differ, if tokens or heads grow from layer
        to layer, or if there are more values than keys.

    Example:
      >>> s = schedule(128, tokens=(128, 96, 64), heads=(12, 12, 10))
      >>> s.entering, s.values
      ((128, 128, 96), (128, 128, 96))
    """
    keys = (length, *tokens[:-1])
    made = Schedule(
        length, tuple(tokens), tuple(heads), tuple(keys if values is None else values)
    )
    if not len(tokens) or len({len(counts) for counts in made[1:]}) > 1:
        raise base.PruningError(
            "A schedule has one count of tokens, heads and values for each layer; got "
            f"{made}."
        )
    for name, counts in (("tokens", (length, *tokens)), ("heads", made.heads)):
        if min(counts) < 1 or _grows(counts):
            raise base.PruningError(
                f"Counts of {name} have to be positive and must not grow from layer to "
                f"layer, as what is pruned stays pruned; got {counts}."
            )
    if any(not 0 <= v <= n for v, n in zip(made.values, keys, strict=True)):
        raise base.PruningError(
            f"Counts of values have to be between 0 and those of keys, {keys}; got "
            f"{made.values}."
        )
    return made


def dense(layers: int, length: int, heads: int) -> Schedule:
    """Returns the schedule that keeps everything.

    Args:
      layers: number of layers.
      length: tokens of the input.
      heads: query heads of each layer.

    Returns:
      A `Schedule`.

    Raises:
      PruningError: if a number is not positive.

    Example:
      >>> plan = dense(layers=3, length=10, heads=4)
      >>> plan.tokens, plan.heads
      ((10, 10, 10), (4, 4, 4))
    """
    return schedule(length, (length,) * layers, (heads,) * layers)


def from_ratios(ratios: Sequence[float], total: int, multiple: int = 1) -> Counts:
    """Converts keep ratios to counts.

    max(multiple, multiple floor(ratio total / multiple)), and `total` where the
    ratio is 1.

    Args:
      ratios: for each layer the fraction of `total` that it keeps, in (0, 1].
      total: count at ratio 1: the length, or the number of heads.
      multiple: counts are rounded down to a multiple of this. On a CPU or GPU a few
        tokens up to the next multiple of 8 or 16 are free, and fewer different counts
        mean fewer compilations.

    Returns:
      One count per layer.

    Raises:
      PruningError: if a ratio is not in (0, 1], or ratios grow from layer to layer.

    Example:
      >>> from_ratios([1.0, 0.9, 0.7, 0.2], 1024)
      (1024, 921, 716, 204)
      >>> from_ratios([1.0, 0.9, 0.7, 0.2], 1024, multiple=8)
      (1024, 920, 712, 200)
    """
    if not all(0 < r <= 1 for r in ratios):
        raise base.PruningError(
            f"Keep ratios have to be in (0, 1]; got {list(ratios)}."
        )
    if _grows(ratios, 1e-9):
        raise base.PruningError(
            f"Keep ratios must not grow from layer to layer; got {list(ratios)}."
        )
    # The slack keeps 0.29 of 100 at 29, although the floats multiply to slightly less.
    floors = (multiple * math.floor(r * total / multiple + 1e-9) for r in ratios)
    each = zip(floors, ratios, strict=True)
    return tuple(
        total if r == 1 else min(total, max(multiple, count)) for count, r in each
    )


def ramp(
    layers: int,
    total: int,
    average: float,
    *,
    start: float = 1.0,
    front: float = 0.15,
    multiple: int = 8,
) -> Counts:
    """Returns counts that fall linearly over the layers, as SpAtten's do.

    The first ceil(front layers) layers keep all. Over the others the keep ratio falls
    linearly from `start` to `end`, with start + end = 2 average.

    Args:
      layers: number of layers.
      total: count at ratio 1: the length, or the number of heads.
      average: mean keep ratio of the layers that prune, in (0, 1].
      start: keep ratio of the first layer that prunes, in [average, 2 average).
      front: fraction of the layers, at the front, that prune nothing: 0.15 for tokens,
        0.3 for heads.
      multiple: counts are rounded down to a multiple of this; 1 for heads.

    Returns:
      One count per layer.

    Raises:
      PruningError: if the ratios would grow, or end at 0 or below.

    Example:
      >>> ramp(8, 128, 0.6, multiple=1)
      (128, 128, 128, 107, 87, 66, 46, 25)
      >>> ramp(8, 12, 0.9, front=0.3, multiple=1)
      (12, 12, 12, 12, 11, 10, 10, 9)

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section V.A: the front and
      the interpolation. The paper does not say what a ratio is a fraction of; here
      it is the input, as in the authors' published schedules.
    """
    end = 2 * average - start
    if not 0 < end <= start <= 1 or not 0 <= front < 1:
        raise base.PruningError(
            f"Keep ratios from start={start} to 2 average - start = {end} with "
            f"front={front}: they have to fall within (0, 1]; give a start in "
            f"[{average}, {min(1.0, 2 * average)})."
        )
    whole = min(layers, math.ceil(front * layers - 1e-9))
    steps = max(1, layers - whole - 1)
    falling = (start + (end - start) * i / steps for i in range(layers - whole))
    return from_ratios((1.0,) * whole + tuple(falling), total, multiple)


def ltp_ramp(layers: int, total: int, last: float, *, multiple: int = 8) -> Counts:
    """Returns counts that fall linearly to the keep ratio of the last layer.

    With n0 = max(3, ceil(0.15 layers)) layers that keep all, layer i = n0, ... keeps
    1 + (last - 1) (i - n0 + 1) / (layers - n0).

    Args:
      layers: number of layers, more than 3.
      total: count at ratio 1: the length, or the number of heads.
      last: keep ratio of the last layer, in (0, 1].
      multiple: counts are rounded down to a multiple of this.

    Returns:
      One count per layer.

    Raises:
      PruningError: if there are too few layers, or `last` is not in (0, 1].

    Example:
      >>> ltp_ramp(6, 128, 0.25, multiple=1)
      (128, 128, 128, 96, 64, 32)

    References:
      Kim et al., Learned Token Pruning for Transformers, 2022, arXiv:2107.00910:
      SpAtten's rule as its code implements it.
    """
    whole = max(3, math.ceil(0.15 * layers - 1e-9))
    if layers <= whole or not 0 < last <= 1:
        raise base.PruningError(
            f"A ramp needs more layers than the {whole} that keep all, and its last "
            f"layer a keep ratio in (0, 1]; got {layers} layers and {last}."
        )
    falling = (
        1 + (last - 1) * (i - whole + 1) / (layers - whole)
        for i in range(whole, layers)
    )
    return from_ratios((1.0,) * whole + tuple(falling), total, multiple)


class LayerCost(NamedTuple):
    """Multiply-adds of one layer or a sum of layers; integers, or real if counts are.

    Attributes:
      projections: from the input to queries, keys and values.
      scores: Q K^T.
      values: P V.
      output: the output projection.
      feed_forward: both of its products.
    """

    projections: Any
    scores: Any
    values: Any
    output: Any
    feed_forward: Any


@renamed_arguments(kv_groups="heads_per_kv")
def multiply_adds(
    plan: Schedule, hidden: int, feed_forward: int, *, heads_per_kv: int = 1
) -> LayerCost:
    """Returns the multiply-adds of an encoder under a schedule, for one sample.

    With n tokens that enter a layer, m that leave its attention, h heads of d dims,
    and v rows of V for each query,

        projections  n hidden h d (1 + 2 / heads_per_kv)
        scores       h n^2 d
        values       h n v d
        output       m h d hidden
        feed-forward 2 m hidden feed_forward

    Args:
      plan: the schedule; its first layer has all heads, of hidden / heads dims. For
        soft counts, a `Schedule` of sequences of real numbers, traced or not, except
        for the first number of heads.
      hidden: width of the model.
      feed_forward: width of the feed-forward part.
      heads_per_kv: query heads that share a KV head, a divisor of all numbers of heads.

    Returns:
      `LayerCost`, the sums over all layers; `sum(...)` of it is the total. Divide by
      that of `dense` for the fraction left. Exact integers for integers.

    Raises:
      PruningError: if `hidden` is not a multiple of the number of heads.

    Example:
      >>> full = sum(multiply_adds(dense(12, 128, 12), 768, 3072))
      >>> tokens = from_ratios([1.0] * 6 + [0.5] * 6, 128)
      >>> half = sum(multiply_adds(schedule(128, tokens, (12,) * 12), 768, 3072))
      >>> full, round(full / half, 3)
      (11173625856, 1.318)
    """
    if hidden % plan.heads[0]:
        raise base.PruningError(
            f"A hidden width of {hidden} is not a multiple of {plan.heads[0]} heads."
        )
    dim = hidden // plan.heads[0]
    each = [
        LayerCost(
            projections=_quotient(
                n * hidden * dim * h * (heads_per_kv + 2), heads_per_kv
            ),
            scores=h * n * n * dim,
            values=h * n * v * dim,
            output=m * h * dim * hidden,
            feed_forward=2 * m * hidden * feed_forward,
        )
        for n, m, h, v in zip(
            plan.entering, plan.tokens, plan.heads, plan.values, strict=True
        )
    ]
    return LayerCost(*map(sum, zip(*each, strict=True)))


def _quotient(a: Any, b: int) -> Any:
    return a // b if isinstance(a, int) else a / b


def _grows(numbers: Sequence[float], slack: float = 0) -> bool:
    return any(b > a + slack for a, b in itertools.pairwise(numbers))
