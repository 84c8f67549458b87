"""Methods that search for a mask over frozen weights, by training scores."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import learned, links, selection, tree
from jprune._core import base, precision
from jprune.learned import effective


def hydra(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    learning_rate: float = 0.1,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """HYDRA: the best mask of a trained network, for any loss, a robust one say.

    The weights are frozen. Scores start at sqrt(6 / fan-in) w / max |w|; each layer
    keeps the highest |s|, and s follows the straight-through gradient sign(s) w g.
    Fine-tune what `finish` returns under its masks, with `jprune.sparsify`.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: the fraction removed of each layer, in [0, 1], or a schedule.
      steps: how many steps are to come; the learning rate's cosine ends there.
      learning_rate: of the scores.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if the sparsity is outside [0, 1].

    References:
      Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, 2020,
      arXiv:2002.10509, section 3. Give it a robust loss for what its title says.
    """

    def first(params: base.Params, key: jax.Array) -> base.Scores:
        del key

        def leaf(path: str, w: jax.Array) -> jax.Array:
            scale, w = math.sqrt(6 / _fan_in(path, w)), precision.wide(w)
            top = jnp.max(jnp.abs(w), initial=0)
            return scale * w / jnp.where(top > 0, top, 1)

        return tree.map_with_path(leaf, params)

    return _search(loss, sparsity, first, steps, learning_rate, 1e-4, where)


def edge_popup(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    learning_rate: float = 0.1,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """edge-popup: a supermask, that is a subnetwork of random weights that works.

    The weights are never trained. Scores start uniform; each layer keeps the
    highest |s|, and s follows the straight-through gradient sign(s) w g.

    Args:
      loss: as in `hydra`.
      sparsity: the fraction removed of each layer, in [0, 1], or a schedule; the
        paper's best are near 0.5.
      steps: as in `hydra`.
      learning_rate: of the scores.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if the sparsity is outside [0, 1].

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299, algorithm 1. It draws weights from two values, plus and minus
      the standard deviation of a Kaiming normal: pass such params.
    """
    return _search(loss, sparsity, _uniform, steps, learning_rate, 1e-4, where)


def sign_supermask(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    learning_rate: float = 0.1,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Signed supermask: each random weight is kept, hidden or inverted.

    z = w sign(s) for the highest |s| of each layer, else 0, and s follows the
    straight-through gradient w g: so the mask has the values -1, 0 and 1.

    Args:
      loss: as in `hydra`.
      sparsity: the fraction hidden of each layer, in [0, 1], or a schedule.
      steps: as in `hydra`.
      learning_rate: of the scores.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`. What `finish` returns has the
      signs in its weights.

    Raises:
      PruningError: if the sparsity is outside [0, 1].

    References:
      Koster et al., Signing the Supermask: Keep, Hide, Invert, 2022,
      arXiv:2201.13361. The paper cuts s at fixed thresholds; here at what leaves the
      sparsity that is asked for.
    """
    # Scores of one sign to begin with: at first no weight is inverted.
    first = lambda params, key: jax.tree.map(jnp.abs, _uniform(params, key))  # noqa: E731
    signed = functools.partial(jax.tree.map, effective.sign_masked)
    return _search(loss, sparsity, first, steps, learning_rate, 1e-4, where, signed)


def lottery_jackpots(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    *,
    steps: int,
    learning_rate: float = 0.1,
    restriction: float | None = 4.0,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Lottery jackpots: swaps weights of a trained network in and out of its mask.

    The weights are frozen. The mask starts as that of global magnitude, scores as 1
    where it keeps and 0.99 where not, and follow w g. Where pruned scores pass kept
    ones of their layer, both would swap; the short restriction lets only the
    fraction (1 - t / steps)^4 of them, the most decided first, so that the mask
    comes to rest.

    Args:
      loss: as in `hydra`.
      sparsity: the fraction removed of all weights, in [0, 1]; layers keep the
        counts of the first mask.
      steps: how many steps are to come.
      learning_rate: of the scores.
      restriction: the exponent; None for no restriction.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if the sparsity is outside [0, 1].

    References:
      Zhang et al., Lottery Jackpots Exist in Pre-trained Models, 2021,
      arXiv:2104.08700. The released code rounds the fraction up to 1, which lifts
      the restriction; here the number of swaps is rounded up.
    """
    selection.check_sparsity(sparsity)
    magnitude = optax.chain(
        links.score_by_magnitude(), links.keep_top(sparsity, scope="global")
    )

    def first(params: base.Params, key: jax.Array) -> base.Scores:
        del key
        kept = _run(magnitude, params, 0)
        one, less = jnp.float32(1), jnp.float32(0.99)
        return jax.tree.map(lambda m: jnp.where(m, one, less), kept)

    def masks(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        del params
        if before is None:
            return jax.tree.map(lambda x: x > jnp.float32(0.995), s)
        share: Any = 1
        if restriction is not None:
            left = 1 - jnp.asarray(step, jnp.float32) / steps
            share = jnp.clip(left, 0, 1) ** restriction
        return swap(before, s, share)

    return learned.learn_masks(
        loss,
        learned.Reparameterization(first, masks, learned.score_masked, _frozen_finish),
        weights=optax.set_to_zero(),
        scores=_sgd(learning_rate, steps, 5e-4),
        where=where,
    )


def swap(masks: base.Masks, s: base.Scores, share: base.Scalar) -> base.Masks:
    """Swaps a share of the pruned scores that pass kept ones of their leaf.

    Args:
      masks: a tree of masks in the shapes of the scores.
      s: the scores.
      share: the fraction of possible swaps to make, in [0, 1], rounded up; those with
        the highest scores come in and those with the lowest go.

    Returns:
      Masks that keep as many of each leaf.
    """
    count = functools.partial(jnp.sum, dtype=jnp.int32)
    best = selection.top_k_per_leaf(s, jax.tree.map(count, masks))
    comes = jax.tree.map(lambda b, m: b & ~m, best, masks)
    goes = jax.tree.map(lambda b, m: m & ~b, best, masks)
    swaps = jax.tree.map(lambda c: _ceil_share(count(c), share), comes)
    among = lambda x, c: jnp.where(c, x, -jnp.inf)  # noqa: E731
    comes = selection.top_k_per_leaf(jax.tree.map(among, s, comes), swaps)
    least = jax.tree.map(jnp.negative, s)
    goes = selection.top_k_per_leaf(jax.tree.map(among, least, goes), swaps)
    return jax.tree.map(lambda m, c, g: (m & ~g) | c, masks, comes, goes)


def _ceil_share(n: jax.Array, share: base.Scalar) -> jax.Array:
    part = n.astype(jnp.float32) * jnp.asarray(share, jnp.float32)
    return jnp.minimum(jnp.ceil(part).astype(jnp.int32), n)


def _search(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    first: Callable[..., base.Scores],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    where: base.Predicate,
    effective_weights: Callable[..., base.Params] | None = None,
) -> base.Algorithm:
    """Scores over frozen weights; each layer keeps the highest |s|."""
    pruner = optax.chain(links.score_by_magnitude(), links.keep_top(sparsity))
    signed = effective_weights

    def masks(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        del params, before
        return _run(pruner, s, step)

    def weights(params: base.Params, s: base.Scores, m: base.Masks, key: Any):
        del key
        if signed is not None:
            return signed(params, m, s)
        return jax.tree.map(effective.score_masked, params, m, jax.tree.map(jnp.abs, s))

    def finish(params: base.Params, s: base.Scores, m: base.Masks, step: base.Scalar):
        del step
        return weights(params, s, m, None), m

    return learned.learn_masks(
        loss,
        learned.Reparameterization(first, masks, weights, finish),
        weights=optax.set_to_zero(),
        scores=_sgd(learning_rate, steps, weight_decay),
        where=where,
    )


def _frozen_finish(params: base.Params, s: Any, m: base.Masks, step: base.Scalar):
    del s, step
    return params, m


def _run(pruner: base.Pruner, ranked: Any, step: base.Scalar) -> base.Masks:
    return pruner.update(ranked, pruner.init(ranked), ranked, step=step)[0]


def _sgd(rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9),
    )


def _uniform(params: base.Params, key: jax.Array) -> base.Scores:
    """Kaiming-uniform scores with a = sqrt(5): bounds of 1 / sqrt(fan-in)."""
    leaves, treedef = jax.tree.flatten(params)
    keys = treedef.unflatten(list(jax.random.split(key, len(leaves))))

    def leaf(path: str, w: jax.Array, key: jax.Array) -> jax.Array:
        bound = 1 / math.sqrt(_fan_in(path, w))
        drawn = jax.random.uniform(key, w.shape, jnp.float32, -bound, bound)
        return drawn + jnp.zeros_like(w, jnp.float32)  # on the leaf's sharding

    return tree.map_with_path(leaf, params, keys)


def _fan_in(path: str, w: Any) -> int:
    outputs = tree.kernel_axes(path, w).output
    return np.size(w) // max(1, math.prod(np.shape(w)[i] for i in outputs))
