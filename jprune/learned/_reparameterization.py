"""What a method plugs into `learn_masks`: z = R(w, aux), and masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._core import base


def no_penalty(params: base.Params, aux: Any, step: base.Scalar) -> jax.Array:
    """Returns 0: nothing is added to the loss."""
    del params, aux, step
    return jnp.zeros((), jnp.float32)


def no_projection(params: base.Params, aux: Any, step: base.Scalar) -> Any:
    """Returns aux unchanged."""
    del params, step
    return aux


class Reparameterization(NamedTuple):
    """A method for `learn_masks`, as functions: z = R(w, aux), masks, and the rest.

    In every tree, leaves that are never pruned are an `optax.MaskedNode`, which
    `jax.tree.map` skips. `score_ranked`, `gated` and `thresholded` return one;
    `method._replace(penalty=...)` replaces a part.

    Attributes:
      init: `(params, key) -> aux`: initial scores, gates or thresholds, which are
        trained.
      masks: `(params, aux, masks, step) -> masks`: the masks in force until the next
        step, from those of the previous step (None at first). Not differentiated.
      effective: `(params, aux, masks, key) -> z`: the effective weights,
        differentiable in params and aux. `key` is new at each step.
      finish: `(params, aux, masks, step) -> (z, masks)`: the final network, at the
        sparsity that was asked for.
      penalty: `(params, aux, step) -> scalar`: a term added to the loss,
        differentiable in aux.
      settle: `(params, aux, step) -> aux`: a projection, applied after each update.
    """

    init: Callable[..., Any]
    masks: Callable[..., base.Masks]
    effective: Callable[..., base.Params]
    finish: Callable[..., tuple[base.Params, base.Masks]]
    penalty: Callable[..., jax.Array] = no_penalty
    settle: Callable[..., Any] = no_projection


def masks_by(pruner: base.Pruner, scores: Any, step: base.Scalar) -> base.Masks:
    """Returns a pruner's masks of scores.

    Args:
      pruner: links from scores to masks, run from their initial state.
      scores: the scores, which the pruner also sees as params.
      step: training step, for schedules.

    Returns:
      The scores' tree of masks.
    """
    return pruner.update(scores, pruner.init(scores), scores, step=step)[0]
