"""Iterative magnitude pruning: the classical way to a winning ticket."""

import math
from collections.abc import Callable
from typing import Any

from jprune import links, selection, training, tree
from jprune._core import base
from jprune.recipes._magnitude import magnitude


def lottery_ticket(
    train: Callable[..., base.Params],
    sparsity: float,
    *,
    rounds: int | None = None,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Iterative magnitude pruning with rewinding: a winning ticket, in rounds.

    Train from the anchor, remove the smallest |w| of all layers together, go back
    to the anchor, train again. Each round removes the same share of what is left.

    Args:
      train: `(params, masks, *batches) -> params`, from the anchor to the end of
        training: see `jprune.training.lottery_ticket`.
      sparsity: the fraction removed of all weights after the last round, in [0, 1).
      rounds: how many; if None, as many as remove about 20 % of the survivors each,
        ln(1 - sparsity) / ln 0.8.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: `init(anchor)`, one `step(state, *batches)` a round, and
      `finish(state)`, the ticket. The anchor is the initial params, or those of an
      early step.

    Raises:
      PruningError: if a number is out of its range.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> more = lambda params: {"kernel": params["kernel"] + 1}
      >>> train = lambda params, masks: jp.apply(more(params), masks)
      >>> method = jp.recipes.lottery_ticket(train, 0.75, rounds=2)
      >>> state = method.init({"kernel": jnp.array([[0.1, 0.2], [0.3, 0.4]])})
      >>> for _ in range(2):
      ...   state, info = method.step(state)
      >>> method.finish(state)[1]["kernel"].tolist()
      [[False, False], [False, True]]

    References:
      Frankle and Carbin, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
      Neural Networks, 2019, arXiv:1803.03635. Frankle et al., Stabilizing the
      Lottery Ticket Hypothesis, 2019, arXiv:1903.01611 (rewinding).
    """
    selection.check_sparsity(sparsity)
    if sparsity >= 1:
        raise base.PruningError("Rounds that leave a share never reach sparsity 1.")
    if rounds is None:
        rounds = max(1, round(math.log(1 - sparsity) / math.log(0.8)))
    schedule: Any = links.geometric(sparsity, steps=rounds, rounds=rounds)
    return training.lottery_ticket(
        train, magnitude(schedule, scope="global"), where=where
    )
