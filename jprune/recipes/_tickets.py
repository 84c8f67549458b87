"""Iterative magnitude pruning, which finds winning tickets."""

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
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Iterative magnitude pruning with rewinding: finds a winning ticket in rounds.

    Each round trains from the anchor, prunes the smallest |w| of all layers together
    and rewinds the rest to the anchor. Every round removes the same fraction of the
    remaining weights.

    Args:
      train: `(params, masks, *batches) -> params`, from the anchor to the end of
        training: see `jprune.training.lottery_ticket`.
      sparsity: fraction of all weights removed after the last round, in [0, 1).
      rounds: number of rounds; None for ln(1 - sparsity) / ln 0.8, which removes
        about 20 % of the survivors in each.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`: `init(anchor)`, one `step(state, *batches)` per round, and
      `finish(state)`, which returns the ticket. The anchor is the initial params, or
      those after a few steps of training.

    Raises:
      PruningError: if a number is out of range.

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
        raise base.PruningError(
            f"sparsity is below 1, as every round keeps a fraction; got {sparsity}."
        )
    if rounds is None:
        rounds = max(1, round(math.log(1 - sparsity) / math.log(0.8)))
    schedule: Any = links.geometric(sparsity, steps=rounds, rounds=rounds)
    return training.lottery_ticket(
        train, magnitude(schedule, scope="global"), where=where
    )
