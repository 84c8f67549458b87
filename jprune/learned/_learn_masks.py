"""Masks that are learned: scores, gates or thresholds trained by gradient descent.

The methods share one loop: effective weights z = R(w, aux), the gradient g at z pulled
back to weights and aux, an optimizer for each, and a projection. They differ in their
`Reparameterization`; `jprune.recipes` has the published ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.learned import effective
from jprune.learned._common import copied, descend, everywhere, prunable
from jprune.learned._reparameterization import Reparameterization


class LearnedState(NamedTuple):
    """State of `learn_masks`.

    Attributes:
      count: int32 scalar, steps so far.
      params: the weights w.
      aux: the scores, gates or thresholds that the method learns.
      masks: the masks in force.
      weights: state of the optimizer of the weights.
      scores: state of the optimizer of aux.
      key: key for the next step's noise.
      model: state that the loss carries from batch to batch, or None.
    """

    count: base.Scalar
    params: base.Params
    aux: Any
    masks: base.Masks
    weights: Any
    scores: Any
    key: jax.Array
    model: Any


class LearnedInfo(NamedTuple):
    """Diagnostics of a step of `learn_masks`.

    Attributes:
      loss: scalar loss before the update, without the penalty.
      penalty: scalar penalty before the update.
      sparsity: scalar sparsity of the new masks.
    """

    loss: jax.Array
    penalty: jax.Array
    sparsity: jax.Array


def learn_masks(
    loss: Callable[..., Any],
    method: Reparameterization,
    *,
    weights: optax.GradientTransformation,
    scores: optax.GradientTransformation,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Trains weights and masks on the same batches, through a reparameterization.

        z = R(w, aux),   g = dL/dz

    Each step pulls g back through R to w and to aux, adds the gradient of the penalty
    to aux, steps both optimizers, projects aux, and derives the new masks from it.

    Args:
      loss: `(params, batch) -> scalar`; with a `model` at `init`,
        `(params, model, batch) -> (scalar, model)`.
      method: the `Reparameterization`, as from `score_ranked`, `gated` or
        `thresholded`.
      weights: optimizer of all params; `optax.set_to_zero()` freezes them.
      scores: optimizer of aux.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`: `init(params, key, model=None)`;
      `step(state, batch) -> (state, LearnedInfo)`, jitted, which donates its state;
      `finish(state) -> (params, masks)`.

    Raises:
      PruningError: at `init`, if the predicate or the masks do not fit the params.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - 2 * x[:, 3:]) ** 2)
      >>> method = jp.recipes.edge_popup(loss, 0.75, steps=20)
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(1))
      >>> for _ in range(20):
      ...   state, info = method.step(state, x)
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, False, False, True]
    """
    where = tree.check_where(where)

    def init(params: base.Params, key: jax.Array, model: Any = None) -> LearnedState:
        first, following = jax.random.split(key)
        count = jnp.zeros((), jnp.int32)
        aux = method.init(prunable(where, params)(params), first)
        aux, masks = _project(method, where, params, aux, None, count)
        masks_lib.check(params, masks)
        memories = weights.init(params), scores.init(aux)
        state = LearnedState(count, params, aux, masks, *memories, following, model)
        return copied(state)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: LearnedState, batch: Any) -> tuple[LearnedState, LearnedInfo]:
        now, following = jax.random.split(state.key)
        found, penalty, grads = _gradients(loss, method, where, state, batch, now)
        params, memory = descend(weights, grads[0], state.weights, state.params)
        aux, aux_memory = descend(scores, grads[1], state.scores, state.aux)
        count = optax.safe_increment(state.count)
        aux, masks = _project(method, where, params, aux, state.masks, count)
        info = LearnedInfo(found.value, penalty, masks_lib.sparsity(params, masks))
        memories = memory, aux_memory
        new = LearnedState(count, params, aux, masks, *memories, following, found.aux)
        return new, info

    def finish(state: LearnedState) -> tuple[base.Params, base.Masks]:
        only = prunable(where, state.params)
        z, masks = method.finish(
            only(state.params), state.aux, only(state.masks), state.count
        )
        masks = everywhere(where, state.params, masks)
        return masks_lib.apply(tree.merged(z, state.params), masks), masks

    return base.Algorithm(init, step, finish)


def _gradients(
    loss: Callable[..., Any],
    method: Reparameterization,
    where: tree.Where,
    state: LearnedState,
    batch: Any,
    key: jax.Array,
) -> tuple[effective.Effective, jax.Array, tuple[base.Params, Any]]:
    """The loss at z = R(w, aux), the penalty, and their gradients in w and in aux."""
    only = prunable(where, state.params)
    masks = only(state.masks)

    def reparameterize(params: base.Params, aux: Any) -> base.Params:
        return tree.merged(method.effective(only(params), aux, masks, key), params)

    args = (batch,) if state.model is None else (state.model, batch)
    found = effective.gradient_at_effective(
        loss,
        reparameterize,
        (state.params, state.aux),
        *args,
        has_aux=state.model is not None,
    )
    to_params, to_aux = found.pullback(found.grads)
    charge = functools.partial(method.penalty, only(state.params))
    penalty, extra = jax.value_and_grad(charge)(state.aux, state.count)
    return found, penalty, (to_params, jax.tree.map(jnp.add, to_aux, extra))


def _project(
    method: Reparameterization,
    where: tree.Where,
    params: base.Params,
    aux: Any,
    before: base.Masks | None,
    count: base.Scalar,
) -> tuple[Any, base.Masks]:
    """The projected aux, and the masks that follow from it."""
    only = prunable(where, params)
    aux = method.settle(only(params), aux, count)
    masks = method.masks(only(params), aux, only(before), count)
    return aux, everywhere(where, params, masks)
