"""Methods that train masks and weights together, by scores, gates or thresholds."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jprune import gates, learned, links, tree
from jprune._core import base


def movement(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    begin: int = 0,
    steps: int,
    learning_rate: float = 1e-2,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Movement pruning: what moves away from zero stays, in fine-tuning.

    Scores start at 0 and follow w g, so that s = -beta sum of w g; each layer keeps
    the highest s (signed), at a sparsity that climbs by the cubic schedule, while the
    weights are trained under the mask.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: the final fraction removed of each layer, in [0, 1]; may be traced.
      weights: the optimizer of the params; AdamW at 3e-5 in the paper.
      begin: the step at which pruning starts.
      steps: how long the climb takes.
      learning_rate: beta, of the scores.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of its range.

    References:
      Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
      arXiv:2005.07683, sections 4 and 5.
    """
    climb = links.cubic(sparsity, begin=begin, steps=steps)
    return learned.learn_masks(
        loss,
        learned.score_ranked(links.keep_top(climb), final=links.keep_top(sparsity)),
        weights=weights,
        scores=optax.sgd(learning_rate),
        where=where,
    )


def soft_movement(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    steps: int,
    threshold: float = 0.1,
    penalty: float = 400.0,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Soft movement pruning: movement scores against one threshold, and a penalty.

    A weight stays where sigmoid(s) > tau. tau climbs from 0 to `threshold` by the
    cubic schedule, and with it the penalty lambda tau_t / tau mean(sigmoid(s)). How
    much goes is an outcome: `finish` cuts at the best scores of all layers.

    Args:
      loss: as in `movement`.
      sparsity: the fraction removed of all weights by `finish`, in [0, 1].
      weights: the optimizer of the params.
      steps: how long the climb takes.
      threshold: the final tau, in (0, 1).
      penalty: the final lambda; the more, the sparser.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of its range.

    References:
      Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
      arXiv:2005.07683, section 4 (soft movement).
    """
    if not 0 < threshold < 1:
        raise base.PruningError(f"0 < threshold < 1; got {threshold}.")
    climb = links.cubic(1.0, begin=0, steps=steps)
    above = links.keep_above(lambda step: jnp.float32(threshold) * climb(step))

    def charge(params: base.Params, s: base.Scores, step: base.Scalar) -> jax.Array:
        share = 1 - gates.expected_sparsity(params, jax.tree.map(jax.nn.sigmoid, s))
        return jnp.float32(penalty) * climb(step) * share

    method = learned.score_ranked(
        optax.chain(links.stateless(_sigmoid_of_scores, needs_grads=True), above),
        final=links.keep_top(sparsity, scope="global"),
        penalty=charge,
    )
    sgd = optax.sgd(1e-2)
    return learned.learn_masks(loss, method, weights=weights, scores=sgd, where=where)


def soft_threshold(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    begin: int = 0,
    steps: int,
    learning_rate: float = 0.1,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """STR: each layer learns the threshold that its weights are shrunk by.

    z = sign(w) relu(|w| - sigmoid(s)), with one s for a layer. In the paper weight
    decay of s drives the sparsity, which is then an outcome. Here one constant added
    to all s after each step keeps the sparsity on the cubic schedule to the target;
    what is learned is how layers share it.

    Args:
      loss: as in `movement`.
      sparsity: the final fraction removed of all weights, in [0, 1]; may be traced.
      weights: the optimizer of the params.
      begin: the step at which pruning starts.
      steps: how long the climb takes.
      learning_rate: of s.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of its range.

    References:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
      Sparsity, 2020, arXiv:2002.03231, equations 3 and 4.
    """
    climb = links.cubic(sparsity, begin=begin, steps=steps)
    return learned.learn_masks(
        loss,
        learned.thresholded(climb, final=sparsity),
        weights=weights,
        scores=optax.sgd(learning_rate),
        where=where,
    )


def l0(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    steps: int,
    keep_axes: Literal["output", "input"] | None = None,
    learning_rate: float = 0.05,
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """L0 regularization: weights times hard-concrete gates, whose number is charged.

    z = w c with c drawn from a hard-concrete distribution, which is exactly 0 with a
    probability that has a gradient. A Lagrangian brings the expected sparsity to a
    target that climbs to `sparsity`; `finish` keeps the gates that are most likely
    open, at their mean value.

    Args:
      loss: as in `movement`.
      sparsity: the fraction of all gates that close, in [0, 1]; may be traced.
      weights: the optimizer of the params.
      steps: how long the target climbs.
      keep_axes: None for a gate for each weight; a role for a gate for each channel.
      learning_rate: Adam's, of the gates and of the multipliers.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number or, at `init`, `keep_axes` is out of its range.

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018,
      arXiv:1712.01312, equations 10 to 13. Wang et al., Structured Pruning of Large
      Language Models, 2019, arXiv:1910.04732 (the Lagrangian; the first paper has a
      fixed price for a gate).
    """
    gate = learned.gated(
        gates.hard_concrete,
        gates.hard_concrete_mean,
        logit=3.0,  # open with probability 0.99
        keep_axes=keep_axes,
        final=links.keep_top(sparsity, scope="global"),
    )
    climb = links.cubic(sparsity, begin=0, steps=steps)
    return learned.learn_masks(
        loss,
        learned.constrained(gate, _expected_sparsity_of_gates, climb),
        weights=weights,
        scores=optax.adam(learning_rate),
        where=where,
    )


def consensus(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    polarization: float = 1.0,
    learning_rate: float = 0.05,
    keep_axes: Literal["output", "input"] = "output",
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """Consensus subnetwork: binary channel gates that polarize, in one training.

    Each channel has a gate that is open with probability p, drawn anew at each step
    with a straight-through gradient. The loss gets lambda mean p (1 - p), which
    drives every gate to always or never, and |expected sparsity - target|.
    Experimental.

    Args:
      loss: as in `movement`.
      sparsity: the fraction of channels removed, in [0, 1]; may be traced.
      weights: the optimizer of the params.
      polarization: lambda.
      learning_rate: Adam's, of the gates.
      keep_axes: the role of the axes that have a gate for each index.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number or, at `init`, `keep_axes` is out of its range.

    References:
      Zhi et al., Learning a Consensus Sub-Network with Polarization Regularization
      and One Pass Training, 2023, arXiv:2302.10798. There a small module computes p
      from the input, and the penalty makes it forget the input; params alone do not
      show the input, so p is a constant here from the start. The full text was not
      at hand.
    """

    def charge(params: base.Params, logits: Any, step: base.Scalar) -> jax.Array:
        del params, step
        p = jax.tree.map(gates.sigmoid_gate, logits)
        gap = gates.expected_sparsity(logits, p) - jnp.asarray(sparsity, jnp.float32)
        return jnp.float32(polarization) * gates.polarization(p) + jnp.abs(gap)

    gate = learned.gated(
        functools.partial(gates.gumbel_gate, temperature=1.0, hard=True),
        logit=2.0,
        keep_axes=keep_axes,
        final=links.keep_top(sparsity, scope="global"),
        penalty=charge,
    )
    scores = optax.adam(learning_rate)
    return learned.learn_masks(loss, gate, weights=weights, scores=scores, where=where)


def _sigmoid_of_scores(s: base.Scores, params: base.Params) -> base.Scores:
    del params
    return jax.tree.map(jax.nn.sigmoid, s)


def _expected_sparsity_of_gates(params: base.Params, logits: Any) -> jax.Array:
    """Of hard-concrete gates, each of which counts as one."""
    del params
    open_ = jax.tree.map(gates.hard_concrete_nonzero, logits)
    return gates.expected_sparsity(logits, open_)
