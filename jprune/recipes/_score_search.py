"""Methods that learn a mask over frozen weights by training scores."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import learned, links, tree
from jprune._core import base, precision
from jprune.learned import effective


def hydra(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    learning_rate: float = 0.1,
    layout: tree.KernelLayout = tree.kernel_axes,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """HYDRA: learns the mask of a trained network for any loss, such as a robust one.

    The weights are frozen. Scores s start at sqrt(6 / fan-in) w / max |w| and follow
    the straight-through gradient sign(s) w g; each layer keeps the highest |s|.
    Fine-tune what `finish` returns under its masks, with `jprune.sparsify`.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of each layer to remove, in [0, 1], or a schedule.
      steps: total number of training steps, at which the cosine learning rate ends.
      learning_rate: initial learning rate of the scores.
      layout: `(path, leaf) -> KernelAxes`, which gives the fan-in.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if the sparsity is outside [0, 1], or steps < 1.

    Example:
      The loss falls with the two smallest weights, so their scores grow:

      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.hydra(loss, 0.5, steps=1)
      >>> params = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> state = method.init(params, jax.random.key(0))
      >>> state, info = method.step(state, jnp.array([[0.0], [0.0], [-90.0], [-90.0]]))
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, False, True, True]

    References:
      Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, 2020,
      arXiv:2002.10509, section 3. Robustness comes from the loss: pass a robust one.
    """
    scores = _sgd(learning_rate, steps, 1e-4)
    init = functools.partial(_scaled_weights, layout=layout)
    return _search(loss, sparsity, scores, where, init=init)


def edge_popup(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    learning_rate: float = 0.1,
    layout: tree.KernelLayout = tree.kernel_axes,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """edge-popup: finds a subnetwork of frozen random weights, a supermask.

    The weights are never trained. Scores s start uniform and follow the
    straight-through gradient sign(s) w g; each layer keeps the highest |s|.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of each layer to remove, in [0, 1], or a schedule; values near
        0.5 are best in the paper.
      steps: total number of training steps, at which the cosine learning rate ends.
      learning_rate: initial learning rate of the scores.
      layout: `(path, leaf) -> KernelAxes`, which gives the fan-in.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if the sparsity is outside [0, 1], or steps < 1.

    Example:
      The loss falls with the second and the fourth weight, so their scores grow:

      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.edge_popup(loss, 0.5, steps=1)
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(0))
      >>> state, info = method.step(state, jnp.array([[0.0], [-90.0], [0.0], [-90.0]]))
      >>> method.finish(state)[0]["kernel"][:, 0].tolist()
      [0.0, 1.0, 0.0, 1.0]

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299, algorithm 1. The paper's weights are plus or minus the standard
      deviation of a Kaiming normal: pass such params.
    """
    scores = _sgd(learning_rate, steps, 1e-4)
    init = functools.partial(_uniform, layout=layout)
    return _search(loss, sparsity, scores, where, init=init)


def sign_supermask(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    learning_rate: float = 0.1,
    layout: tree.KernelLayout = tree.kernel_axes,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Signed supermask: keeps, hides or inverts each of the frozen random weights.

    z = w sign(s) for the highest |s| of each layer, else 0: a mask with the values -1,
    0 and 1. The scores s follow the straight-through gradient w g.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of each layer to hide, in [0, 1], or a schedule.
      steps: total number of training steps, at which the cosine learning rate ends.
      learning_rate: initial learning rate of the scores.
      layout: `(path, leaf) -> KernelAxes`, which gives the fan-in.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`. The weights that `finish`
      returns include the signs.

    Raises:
      PruningError: if the sparsity is outside [0, 1], or steps < 1.

    Example:
      The first weight is inverted, the last one kept:

      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.sign_supermask(loss, 0.5, steps=1)
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(0))
      >>> state, info = method.step(state, jnp.array([[90.0], [0.0], [0.0], [-90.0]]))
      >>> method.finish(state)[0]["kernel"][:, 0].tolist()
      [-1.0, 0.0, 0.0, 1.0]

    References:
      Koster et al., Signing the Supermask: Keep, Hide, Invert, 2022,
      arXiv:2201.13361. The paper cuts s at fixed thresholds; here the cut follows from
      the sparsity.
    """
    scores = _sgd(learning_rate, steps, 1e-4)
    signed = effective.sign_masked
    init = functools.partial(_positive, layout=layout)
    return _search(loss, sparsity, scores, where, init=init, masked=signed)


def lottery_jackpots(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    *,
    steps: int,
    learning_rate: float = 0.1,
    restriction: float | None = 4.0,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Lottery jackpots: improves the magnitude mask of a trained network by swaps.

    The weights are frozen. The mask starts as that of global magnitude pruning; scores
    start at 1 where it keeps and 0.99 where it prunes, and follow w g. Pruned scores
    that exceed kept ones of their layer are candidates for a swap. The short
    restriction makes only the fraction (1 - t / steps)^4 of these swaps, highest and
    lowest scores first, so that the mask comes to rest.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of all weights to remove, in [0, 1]; each layer keeps the
        count of its first mask.
      steps: total number of training steps.
      learning_rate: initial learning rate of the scores.
      restriction: exponent of the restriction, >= 0; None for none.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if the sparsity is outside [0, 1], steps < 1, or restriction < 0.

    Example:
      The first mask keeps 4 and 3; the gradient swaps 4 for 1:

      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.lottery_jackpots(loss, 0.5, steps=2)
      >>> params = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> state = method.init(params, jax.random.key(0))
      >>> state, info = method.step(state, jnp.array([[1.0], [0.0], [0.0], [-1.0]]))
      >>> state.masks["kernel"][:, 0].tolist()
      [False, True, False, True]

    References:
      Zhang et al., Lottery Jackpots Exist in Pre-trained Models, 2021,
      arXiv:2104.08700. The released code rounds the fraction up to 1, which disables
      the restriction; here the number of swaps is rounded up.
    """
    share = _falling_share(0.0 if restriction is None else restriction, steps)
    best = links.keep_top(sparsity, scope="global")
    return learned.learn_masks(
        loss,
        learned.swapped(learned.score_ranked(best, init=_kept_first(best)), share),
        weights=optax.set_to_zero(),
        scores=_sgd(learning_rate, steps, 5e-4),
        where=where,
    )


def _search(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    scores: optax.GradientTransformation,
    where: tree.Where,
    *,
    init: Callable[..., base.Scores],
    masked: Callable[..., jax.Array] = effective.size_masked,
) -> base.Algorithm:
    """Trains scores over frozen weights; each layer keeps the highest |s|."""
    largest = optax.chain(links.score_by_magnitude(), links.keep_top(sparsity))
    return learned.learn_masks(
        loss,
        learned.score_ranked(largest, init=init, masked=masked),
        weights=optax.set_to_zero(),
        scores=scores,
        where=where,
    )


def _sgd(rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    if steps < 1:
        raise base.PruningError(f"steps must be at least 1; got {steps}.")
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9),
    )


def _scaled_weights(
    params: base.Params, key: jax.Array, *, layout: tree.KernelLayout
) -> base.Scores:
    """sqrt(6 / fan-in) w / max |w|."""
    del key

    def leaf(path: str, w: jax.Array) -> jax.Array:
        scale, w = math.sqrt(6 / _fan_in(layout(path, w), w)), precision.wide(w)
        top = jnp.max(jnp.abs(w), initial=0)
        return scale * w / jnp.where(top > 0, top, 1)

    return tree.map_with_path(leaf, params)


def _uniform(
    params: base.Params, key: jax.Array, *, layout: tree.KernelLayout
) -> base.Scores:
    """Kaiming-uniform scores with a = sqrt(5): bounds of 1 / sqrt(fan-in)."""

    def leaf(path: str, w: jax.Array, key: jax.Array) -> jax.Array:
        bound = 1 / math.sqrt(_fan_in(layout(path, w), w))
        drawn = jax.random.uniform(key, w.shape, jnp.float32, -bound, bound)
        return drawn + jnp.zeros_like(w, jnp.float32)  # on the leaf's sharding

    return tree.map_with_path(leaf, params, optax.tree.split_key_like(key, params))


def _positive(
    params: base.Params, key: jax.Array, *, layout: tree.KernelLayout
) -> base.Scores:
    """Uniform scores of one sign: at first no weight is inverted."""
    return jax.tree.map(jnp.abs, _uniform(params, key, layout=layout))


def _kept_first(best: base.Pruner) -> Callable[..., base.Scores]:
    """An `init`: 1 for the largest weights, which the pruner keeps, 0.99 for others."""
    largest = optax.chain(links.score_by_magnitude(), best)

    def init(params: base.Params, key: jax.Array) -> base.Scores:
        del key
        kept, _ = largest.update(params, largest.init(params), params)
        one, less = jnp.float32(1), jnp.float32(0.99)
        return jax.tree.map(lambda m: jnp.where(m, one, less), kept)

    return init


def _falling_share(power: float, steps: int) -> optax.Schedule:
    """(1 - t / steps)^power; 1 throughout for a power of 0."""
    if power < 0:
        raise base.PruningError(f"restriction must be >= 0 or None; got {power}.")

    def share(step: base.Scalar) -> jax.Array:
        # Subtracted in integers, so that it ends at 0: 1e-30 would be rounded up to a
        # swap. XLA makes t / steps a product, and 1 - 41 * (1 / 41) is not 0.
        left = jnp.maximum(steps - jnp.asarray(step, jnp.int32), 0)
        return (left.astype(jnp.float32) / steps) ** power

    return share


def _fan_in(roles: tree.KernelAxes, w: Any) -> int:
    return np.size(w) // max(1, math.prod(np.shape(w)[i] for i in roles.output))
