"""Masks that are learned: scores, gates or thresholds trained by gradient descent.

What the methods have in common is a loop: effective weights z = R(w, aux), the gradient
g at z pulled back to weights and aux, an optimizer for each, and a projection. What
they differ in is a `Reparameterization`; `jprune.recipes` has the published ones.
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


def _nothing(params: base.Params, aux: Any, step: base.Scalar) -> jax.Array:
    del params, aux, step
    return jnp.zeros((), jnp.float32)


def _as_it_is(params: base.Params, aux: Any, step: base.Scalar) -> Any:
    del params, step
    return aux


class Reparameterization(NamedTuple):
    """How a method makes effective weights, and masks, from weights and what it learns.

    Every tree has the params' structure, with `optax.MaskedNode` for leaves that are
    never pruned: `jax.tree.map` does not see them.

    Attributes:
      init: `(params, key) -> aux`: scores, gates, thresholds; what is trained.
      masks: `(params, aux, masks, step) -> masks`: those in force from now on, from
        those that were (None at first). Not differentiated.
      effective: `(params, aux, masks, key) -> z`: differentiable in params and aux.
        `key` is new at each step.
      finish: `(params, aux, masks, step) -> (z, masks)`: the network that is left,
        at the sparsity that was asked for.
      penalty: `(params, aux, step) -> scalar` to add to the loss, differentiable in
        aux.
      settle: `(params, aux, step) -> aux` after each update: a projection.
    """

    init: Callable[..., Any]
    masks: Callable[..., base.Masks]
    effective: Callable[..., base.Params]
    finish: Callable[..., tuple[base.Params, base.Masks]]
    penalty: Callable[..., jax.Array] = _nothing
    settle: Callable[..., Any] = _as_it_is


class LearnedState(NamedTuple):
    """State of `learn_masks`.

    Attributes:
      count: int32 scalar, steps so far.
      params: the weights w.
      aux: what the method learns.
      masks: the masks in force.
      weights: the state of the weights' optimizer.
      scores: the state of aux's optimizer.
      key: of the next step's noise.
      model: what the loss carries from batch to batch, or None.
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
    """What a step of `learn_masks` was like.

    Attributes:
      loss: scalar, before the update, without the penalty.
      penalty: scalar, before the update.
      sparsity: scalar, of the new masks.
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
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Trains weights, and what decides on their masks, on the same batches.

    One step: z = R(w, aux); g = dL/dz; both optimizers step along g pulled back
    through R (and aux along the penalty's gradient); then aux is projected and the
    masks follow from it.

    Args:
      loss: `(params, batch) -> scalar`; with a `model` at `init`,
        `(params, model, batch) -> (scalar, model)`.
      method: R, and what goes with it.
      weights: the optimizer of all params; `optax.set_to_zero()` freezes them.
      scores: the optimizer of aux.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`. `init(params, key, model=None)`;
      `step(state, batch) -> (state, LearnedInfo)` is jitted and donates its state;
      `finish(state) -> (params, masks)`.

    Raises:
      PruningError: at `init`, if the predicate does not fit the params.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - 2 * x[:, :1]) ** 2)
      >>> method = jp.recipes.edge_popup(loss, 0.75, steps=20)
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(1))
      >>> for _ in range(20):
      ...   state, info = method.step(state, x)
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [True, False, False, False]
    """

    def init(params: base.Params, key: jax.Array, model: Any = None) -> LearnedState:
        meant = tree.flags(where, params)
        visible = tree.only(meant, params)
        first, following = jax.random.split(key)
        aux = method.init(visible, first)
        count = jnp.zeros((), jnp.int32)
        aux = method.settle(visible, aux, count)
        masks = _everywhere(meant, method.masks(visible, aux, None, count))
        masks_lib.check(params, masks)
        state = LearnedState(
            count=count,
            params=params,
            aux=aux,
            masks=masks,
            weights=weights.init(params),
            scores=scores.init(aux),
            key=following,
            model=model,
        )
        # Copies: a step donates the state, and must not take the caller's arrays;
        # nor one array twice, of which some optimizers keep what they are given.
        return jax.tree.map(jnp.copy, state)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: LearnedState, batch: Any) -> tuple[LearnedState, LearnedInfo]:
        meant = tree.flags(where, state.params)
        hidden = functools.partial(tree.only, meant)
        now, following = jax.random.split(state.key)
        masks = hidden(state.masks)

        def reparameterize(params: base.Params, aux: Any) -> base.Params:
            z = method.effective(hidden(params), aux, masks, now)
            return tree.merged(z, params)

        args = (batch,) if state.model is None else (state.model, batch)
        found = effective.gradient_at_effective(
            loss,
            reparameterize,
            (state.params, state.aux),
            *args,
            has_aux=state.model is not None,
        )
        to_params, to_aux = found.pullback(found.grads)
        charge = functools.partial(method.penalty, hidden(state.params))
        penalty, extra = jax.value_and_grad(charge)(state.aux, state.count)
        to_aux = jax.tree.map(jnp.add, to_aux, extra)

        updates, memory = weights.update(to_params, state.weights, state.params)
        params = optax.apply_updates(state.params, updates)
        updates, aux_memory = scores.update(to_aux, state.scores, state.aux)
        aux = optax.apply_updates(state.aux, updates)
        count = optax.safe_increment(state.count)
        aux = method.settle(hidden(params), aux, count)
        masks = _everywhere(meant, method.masks(hidden(params), aux, masks, count))
        sparsity = masks_lib.sparsity(params, masks)
        new = LearnedState(
            count, params, aux, masks, memory, aux_memory, following, found.aux
        )
        return new, LearnedInfo(found.value, penalty, sparsity)

    def finish(state: LearnedState) -> tuple[base.Params, base.Masks]:
        meant = tree.flags(where, state.params)
        hidden = functools.partial(tree.only, meant)
        z, masks = method.finish(
            hidden(state.params), state.aux, hidden(state.masks), state.count
        )
        masks = _everywhere(meant, masks)
        return masks_lib.apply(tree.merged(z, state.params), masks), masks

    return base.Algorithm(init, step, finish)


def _everywhere(meant: Any, masks: Any) -> base.Masks:
    """The masks, and a scalar True for leaves that are never pruned."""
    return jax.tree.map(lambda c, m: m if c else jnp.ones((), bool), meant, masks)


def score_masked(
    params: base.Params, aux: base.Scores, masks: base.Masks, key: jax.Array
) -> base.Params:
    """Returns masked weights whose gradient reaches the scores straight through.

    The `effective` of a `Reparameterization` with a score for each weight.

    Args:
      params: the weights.
      aux: their scores.
      masks: their masks.
      key: not used.

    Returns:
      The params' tree; see `jprune.effective.score_masked`.
    """
    del key
    return jax.tree.map(effective.score_masked, params, masks, aux)
