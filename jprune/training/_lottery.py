"""Lottery tickets: iterative magnitude pruning with rewinding, round by round.

    rewind to step k > 0     anchor = the params after k steps of training
    rewind to init           anchor = the initial params
    one-shot ticket          one round at the final sparsity
    random reinitialization  `train(other_params, masks)` with the ticket's masks
    random ticket            `train(anchor, jprune.masks.shuffle(masks, key))`

The last two are the controls of the papers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.links import select
from jprune.training._initial import all_kept

_NO_GRADS: Any = None


class TicketState(NamedTuple):
    """State of `lottery_ticket`.

    Attributes:
      count: int32 scalar, rounds so far; the step of the pruner's schedule.
      anchor: the dense params to rewind to.
      masks: masks of the ticket: what all rounds so far have kept.
      trained: the weights at the end of the last round, zero where the masks of that
        training are False (those of the round before); the anchor at first.
      pruner: state of the pruner.
    """

    count: base.Scalar
    anchor: base.Params
    masks: base.Masks
    trained: base.Params
    pruner: Any


class TicketInfo(NamedTuple):
    """Diagnostics of a round of `lottery_ticket`.

    Attributes:
      sparsity: sparsity of the prunable leaves after the round, a float32 scalar.
      kept: number of weights kept in each leaf, as from `jprune.masks.kept`.
    """

    sparsity: jax.Array
    kept: base.Counts


def lottery_ticket(
    train: Callable[..., base.Params],
    pruner: base.Pruner,
    *,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Finds a winning ticket by iterative pruning with rewinding (IMP).

    With anchor a, m_0 = 1 and T the training of a masked network, round r is

        w_r = T(a where m_r, m_r)
        m_{r+1} = m_r and (the pruner's masks of w_r, at step r of its schedule)

    and the ticket is (a where m_R, m_R). Pruned weights never return, and the counts
    are those of the schedule: every surviving weight ranks above all pruned ones, even
    if training left it at exactly 0. (The pruner sees survivors below the smallest
    normal number as that number.)

    To rewind to step k, let `train` be a pure function that starts there: with the
    anchor's weights, the optimizer's state at step k, whose count drives a learning
    rate schedule, and the batches from k on. With masks that keep everything it is
    then the rest of the dense run.

    `step` is not jitted, so that `train` may be a loop on the host. If `train` can be
    traced, rounds can run under `lax.scan` and seeds under `vmap`.

    Args:
      train: `(params, masks, *batches) -> params`, from the anchor to the end of
        training. Its params are zero where the masks are False; of its result, only
        what the masks keep is used. `jprune.sparsify` with `every=None` keeps the
        masks that are placed in its state.
      pruner: links from weights to masks; it gets no gradients. The step of its
        schedule is the round, from 0 on: `jprune.recipes.magnitude(
        jprune.geometric(s, steps=R, rounds=R), scope="global")` removes the same
        fraction of the survivors in each of R rounds, 20 % with
        R = ln(1 - s) / ln 0.8.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`: `init(anchor)`, `step(state, *batches) -> (state, info)` with a
      `TicketState` and a `TicketInfo`, and `finish(state) -> (params, masks)`, which
      returns the ticket: the anchor with zeros, ready for `train`.

    Raises:
      PruningError: at `init`, if the pruner or the predicate does not fit the params.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> sparsity = jp.geometric(0.75, steps=2, rounds=2)
      >>> pruner = jp.recipes.magnitude(sparsity, scope="global")
      >>> tx = jp.sparsify(optax.sgd(0.5), pruner, every=None)  # holds its masks
      >>> def train(params, masks):
      ...     state = tx.init(params)._replace(masks=masks)
      ...     grads = {"kernel": params["kernel"] - jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates)
      >>> algorithm = lottery_ticket(train, pruner)
      >>> state = algorithm.init({"kernel": jnp.array([[0.1, 0.2, 0.3, 0.4]])})
      >>> state, info = jax.lax.scan(
      ...     lambda state, _: algorithm.step(state), state, length=2)
      >>> info.sparsity.tolist()
      [0.5, 0.75]
      >>> ticket, masks = algorithm.finish(state)
      >>> masks["kernel"].tolist()
      [[True, False, False, False]]

    References:
      Frankle and Carbin, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
      Neural Networks, 2019, arXiv:1803.03635 (rewinding to init). Frankle et al.,
      Stabilizing the Lottery Ticket Hypothesis, 2019, arXiv:1903.01611 (to step
      k). Frankle et al., Linear Mode Connectivity and the Lottery Ticket
      Hypothesis, 2020, arXiv:1912.05671. Their code rewinds the weights and the step
      count but not the momentum: for that, start `train` from an optimizer state with
      zero momentum.
    """
    chosen = select(pruner, where)

    def init(anchor: base.Params) -> TicketState:
        count, memory = jnp.zeros((), jnp.int32), chosen.init(anchor)

        def first(params: base.Params) -> base.Masks:
            return chosen.update(_NO_GRADS, memory, params, step=count)[0]

        # Copies: a donating step must not take the caller's arrays, nor one twice.
        own, trained = (jax.tree.map(jnp.copy, anchor) for _ in range(2))
        return TicketState(count, own, all_kept(first, anchor), trained, memory)

    def step(state: TicketState, *batches: Any) -> tuple[TicketState, TicketInfo]:
        start = masks_lib.apply(state.anchor, state.masks)
        trained = train(start, state.masks, *batches)
        trained = masks_lib.apply(trained, state.masks)
        seen = jax.tree.map(_above_zero, trained, state.masks)
        found, memory = chosen.update(_NO_GRADS, state.pruner, seen, step=state.count)
        masks = masks_lib.intersect(state.masks, found)
        info = TicketInfo(
            masks_lib.sparsity(trained, masks), masks_lib.kept(trained, masks)
        )
        count = optax.safe_increment(state.count)
        return TicketState(count, state.anchor, masks, trained, memory), info

    def finish(state: TicketState) -> tuple[base.Params, base.Masks]:
        return masks_lib.apply(state.anchor, state.masks), state.masks

    return base.Algorithm(init, step, finish)


def _above_zero(w: jax.Array, m: jax.Array) -> jax.Array:
    """The weight; survivors are at least the smallest normal number in magnitude."""
    if not jnp.issubdtype(w.dtype, jnp.floating):
        return w
    least = jnp.full_like(w, jnp.finfo(w.dtype).tiny)
    return jnp.where(m & (jnp.abs(w) < least), jnp.copysign(least, w), w)
