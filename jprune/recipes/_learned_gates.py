"""Methods that train masks and weights together: scores, gates or thresholds."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jprune import gates, learned, links, tree
from jprune._core import base
from jprune._core.deprecation import renamed_arguments


def movement(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    begin: int = 0,
    steps: int,
    learning_rate: float = 1e-2,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Movement pruning: keeps the weights that fine-tuning moves away from zero.

        s = -beta sum over steps of w g

    Each layer keeps its highest signed scores s while the weights are trained under
    the mask. The sparsity rises along the cubic schedule.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: final fraction of each layer to remove, in [0, 1]; may be traced.
      weights: optimizer of the params; AdamW at 3e-5 in the paper.
      begin: step at which pruning starts.
      steps: number of steps from sparsity 0 to the final sparsity.
      learning_rate: learning rate beta of the scores.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of range.

    Example:
      Descent moves the second and the fourth weight away from zero:

      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.movement(loss, 0.5, optax.sgd(0.1), steps=1)
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(0))
      >>> state, info = method.step(state, jnp.array([[3.0], [-1.0], [2.0], [-2.0]]))
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, True, False, True]

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
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Soft movement pruning: keeps movement scores above a threshold, with a penalty.

    A weight is kept where sigmoid(s) > tau. Along the cubic schedule, tau rises from 0
    to `threshold`, and with it the penalty lambda tau_t / tau mean(sigmoid(s)). The
    sparsity during training is an outcome; `finish` keeps the best scores of all
    layers at `sparsity`.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of all weights that `finish` removes, in [0, 1].
      weights: optimizer of the params.
      steps: number of steps until tau and the penalty reach their final values.
      threshold: final tau, in (0, 1).
      penalty: final lambda; larger values give sparser networks.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of range.

    Example:
      Descent moves the second and the fourth weight away from zero:

      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.soft_movement(loss, 0.5, optax.sgd(0.1), steps=1)
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(0))
      >>> state, info = method.step(state, jnp.array([[3.0], [-1.0], [2.0], [-2.0]]))
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, True, False, True]

    References:
      Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
      arXiv:2005.07683, section 4 (soft movement).
    """
    if not 0 < threshold < 1:
        raise base.PruningError(f"threshold is in (0, 1); got {threshold}.")
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
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """STR: soft-thresholds the weights of each layer with a learned threshold.

        z = sign(w) relu(|w| - sigmoid(s))    with one s per layer

    In the paper, weight decay of s drives the sparsity, which is then an outcome. Here
    one constant, added to all s after each step, keeps the sparsity on the cubic
    schedule: the method learns how the layers share it.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: final fraction of all weights to remove, in [0, 1]; may be traced.
      weights: optimizer of the params.
      begin: step at which pruning starts.
      steps: number of steps from sparsity 0 to the final sparsity.
      learning_rate: learning rate of s.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of range.

    Example:
      One threshold is learned for the layer:

      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.soft_threshold(loss, 0.5, optax.sgd(0.1), steps=100)
      >>> params = {"kernel": jnp.ones((4, 3))}
      >>> jax.eval_shape(method.init, params, jax.random.key(0)).aux["kernel"].shape
      ()

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


@renamed_arguments(keep_axes="units")
def l0(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    steps: int,
    units: Literal["output", "input"] | None = None,
    learning_rate: float = 0.05,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """L0 regularization: weights times hard-concrete gates, with a price for open ones.

        z = w c,   c ~ hard concrete(log alpha)

    A gate c is exactly 0 with a probability that is differentiable in log alpha. A
    Lagrangian brings the expected sparsity to a target that rises to `sparsity` along
    the cubic schedule. `finish` keeps the gates that are most likely open, at their
    mean value.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of all gates to close, in [0, 1]; may be traced.
      weights: optimizer of the params.
      steps: number of steps until the target reaches `sparsity`.
      units: what has one gate: None for each weight, "output" or "input" for each
        output or input channel, by the names of `jprune.kernel_axes`. For another
        layout, compose `jprune.learned.gated(layout=...)` as this recipe does.
      learning_rate: learning rate of Adam for the gates and the multipliers.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of range, or `units` is not one of its values.

    Example:
      One gate for each of 3 output channels, beside the multipliers:

      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.l0(loss, 0.5, optax.sgd(0.1), steps=100, units="output")
      >>> params = {"kernel": jnp.ones((4, 3))}
      >>> jax.eval_shape(method.init, params, jax.random.key(0)).aux[0]["kernel"].shape
      (1, 3)

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
        units=units,
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


@renamed_arguments(keep_axes="units")
def consensus(
    loss: Callable[..., Any],
    sparsity: base.Scalar,
    weights: optax.GradientTransformation,
    *,
    polarization: float = 1.0,
    learning_rate: float = 0.05,
    units: Literal["output", "input"] = "output",
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Consensus subnetwork: learns channel gates that polarize to open or closed.

    Each channel has a gate that is open with probability p, sampled at each step with
    a straight-through gradient. The loss gains lambda mean p (1 - p), which drives
    every p to 0 or 1, and |expected sparsity - target|. Experimental.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.learn_masks`.
      sparsity: fraction of channels to remove, in [0, 1]; may be traced.
      weights: optimizer of the params.
      polarization: weight lambda of the polarization term.
      learning_rate: learning rate of Adam for the gates.
      units: what has one gate: "output" for each output channel, "input" for each
        input channel, by the names of `jprune.kernel_axes`. For another layout, compose
        `jprune.learned.gated(layout=...)` as this recipe does.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.learn_masks`.

    Raises:
      PruningError: if a number is out of range, or `units` is not one of its values.

    Example:
      One gate for each of 3 output channels:

      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> loss = lambda p, g: jnp.sum(p["kernel"] * g)  # the gradient is g
      >>> method = jp.recipes.consensus(loss, 0.5, optax.sgd(0.1))
      >>> params = {"kernel": jnp.ones((4, 3))}
      >>> jax.eval_shape(method.init, params, jax.random.key(0)).aux["kernel"].shape
      (1, 3)

    References:
      Zhi et al., Learning a Consensus Sub-Network with Polarization Regularization
      and One Pass Training, 2023, arXiv:2302.10798. There a small module computes p
      from the input, and the penalty makes p independent of it. A function of the
      params alone does not see the input, so here p does not depend on it from the
      start. The full text was not available.
    """

    def charge(params: base.Params, logits: Any, step: base.Scalar) -> jax.Array:
        del params, step
        p = jax.tree.map(gates.sigmoid_gate, logits)
        gap = gates.expected_sparsity(logits, p) - jnp.asarray(sparsity, jnp.float32)
        return jnp.float32(polarization) * gates.polarization(p) + jnp.abs(gap)

    gate = learned.gated(
        functools.partial(gates.gumbel_gate, temperature=1.0, hard=True),
        logit=2.0,
        units=units,
        final=links.keep_top(sparsity, scope="global"),
        penalty=charge,
    )
    scores = optax.adam(learning_rate)
    return learned.learn_masks(loss, gate, weights=weights, scores=scores, where=where)


def _sigmoid_of_scores(s: base.Scores, params: base.Params) -> base.Scores:
    del params
    return jax.tree.map(jax.nn.sigmoid, s)


def _expected_sparsity_of_gates(params: base.Params, logits: Any) -> jax.Array:
    """Expected fraction of closed hard-concrete gates, whatever they stand for."""
    del params
    open_ = jax.tree.map(gates.hard_concrete_nonzero, logits)
    return gates.expected_sparsity(logits, open_)
