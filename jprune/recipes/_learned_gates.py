"""Methods that train masks and weights together, by scores, gates or thresholds."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import gates, learned, links, selection, tree
from jprune._core import base, precision
from jprune.learned import controllers, effective


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
    pruner = links.keep_top(links.cubic(sparsity, begin=begin, steps=steps))

    def masks(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        del params, before
        return pruner.update(s, pruner.init(s), s, step=step)[0]

    def finish(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        del before, step
        return params, masks(params, s, None, begin + steps)

    return learned.learn_masks(
        loss,
        learned.Reparameterization(_zeros, masks, learned.score_masked, finish),
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
    selection.check_sparsity(sparsity)
    if not 0 < threshold < 1:
        raise base.PruningError(f"0 < threshold < 1; got {threshold}.")
    climb = links.cubic(1.0, begin=0, steps=steps)

    def masks(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        del params, before
        tau = jnp.float32(threshold) * climb(step)
        return jax.tree.map(lambda x: jax.nn.sigmoid(x) > tau, s)

    def charge(params: base.Params, s: base.Scores, step: base.Scalar) -> jax.Array:
        share = 1 - gates.expected_sparsity(params, jax.tree.map(jax.nn.sigmoid, s))
        return jnp.float32(penalty) * climb(step) * share

    return learned.learn_masks(
        loss,
        learned.Reparameterization(
            _zeros, masks, learned.score_masked, _best(sparsity), penalty=charge
        ),
        weights=weights,
        scores=optax.sgd(1e-2),
        where=where,
    )


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

    def first(params: base.Params, key: jax.Array) -> Any:
        del key
        return jax.tree.map(lambda w: jnp.zeros((), jnp.float32), params)

    def settle(params: base.Params, s: Any, step: base.Scalar) -> Any:
        n = sum(np.size(w) for w in jax.tree.leaves(params))
        kept = selection.kept_count(n, climb(step))
        return controllers.shift_thresholds(params, s, kept)

    def shrunk(params: base.Params, s: Any, m: Any = None, key: Any = None):
        del m, key
        return jax.tree.map(effective.soft_thresholded, params, s)

    def masks(params: base.Params, s: Any, before: Any, step: base.Scalar):
        del before, step
        return jax.tree.map(lambda z: z != 0, shrunk(params, s))

    def finish(params: base.Params, s: Any, m: Any, step: base.Scalar):
        s = settle(params, s, begin + steps)
        # Thresholds, which are below 1, cannot tell larger weights apart, nor equal
        # ones: what counts is by how far a weight passes.
        far = lambda w, x: jnp.abs(precision.wide(w)) - jax.nn.sigmoid(x)  # noqa: E731
        return _best(sparsity)(shrunk(params, s), jax.tree.map(far, params, s), m, step)

    return learned.learn_masks(
        loss,
        learned.Reparameterization(first, masks, shrunk, finish, settle=settle),
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
    climb = links.cubic(sparsity, begin=0, steps=steps)

    def first(params: base.Params, key: jax.Array) -> Any:
        del key
        logits = _gate_logits(params, keep_axes, 3.0)  # open with probability 0.99
        return logits, controllers.init_multipliers()

    def masks(params: base.Params, aux: Any, before: Any, step: base.Scalar):
        del params, before, step
        return jax.tree.map(lambda x: gates.hard_concrete_mean(x) > 0, aux[0])

    def sampled(params: base.Params, aux: Any, m: Any, key: jax.Array) -> base.Params:
        del m
        draw = _with_keys(gates.hard_concrete, aux[0], key)
        return jax.tree.map(effective.soft_masked, params, draw)

    def charge(params: base.Params, aux: Any, step: base.Scalar) -> jax.Array:
        del params
        logits, multipliers = aux
        open_ = jax.tree.map(gates.hard_concrete_nonzero, logits)
        expected = gates.expected_sparsity(logits, open_)  # each gate counts as one
        return controllers.lagrangian(expected, climb(step), multipliers)

    def finish(params: base.Params, aux: Any, m: Any, step: base.Scalar):
        z, found = _best(sparsity)(params, aux[0], m, step)
        means = jax.tree.map(gates.hard_concrete_mean, aux[0])
        return jax.tree.map(effective.soft_masked, z, means), found

    return learned.learn_masks(
        loss,
        learned.Reparameterization(first, masks, sampled, finish, penalty=charge),
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
    selection.check_sparsity(sparsity)

    def first(params: base.Params, key: jax.Array) -> Any:
        del key
        return _gate_logits(params, keep_axes, 2.0)

    def masks(params: base.Params, logits: Any, before: Any, step: base.Scalar):
        del params, before, step
        return jax.tree.map(lambda x: x > 0, logits)

    def sampled(params: base.Params, logits: Any, m: Any, key: jax.Array):
        del m
        draw = functools.partial(gates.gumbel_gate, temperature=1.0, hard=True)
        drawn = _with_keys(draw, logits, key)
        return jax.tree.map(effective.soft_masked, params, drawn)

    def charge(params: base.Params, logits: Any, step: base.Scalar) -> jax.Array:
        del params, step
        p = jax.tree.map(gates.sigmoid_gate, logits)
        gap = gates.expected_sparsity(logits, p) - jnp.asarray(sparsity, jnp.float32)
        return jnp.float32(polarization) * gates.polarization(p) + jnp.abs(gap)

    return learned.learn_masks(
        loss,
        learned.Reparameterization(
            first, masks, sampled, _best(sparsity), penalty=charge
        ),
        weights=weights,
        scores=optax.adam(learning_rate),
        where=where,
    )


def _best(sparsity: base.Scalar) -> Callable[..., tuple[base.Params, base.Masks]]:
    """A `finish` that keeps the best scores of all layers, as many as are asked for."""

    def finish(params: base.Params, s: base.Scores, m: Any, step: base.Scalar):
        del m, step
        n = sum(np.size(x) for x in jax.tree.leaves(s))
        masks = selection.top_k(s, selection.kept_count(n, sparsity))
        return params, jax.tree.map(lambda w, x: links.spread(x, w), params, masks)

    return finish


def _zeros(params: base.Params, key: jax.Array) -> base.Scores:
    del key
    return jax.tree.map(lambda w: jnp.zeros_like(precision.wide(w)), params)


def _gate_logits(params: base.Params, role: str | None, logit: float) -> Any:
    """Equal logits, for each weight or for each index of some axes."""
    if role not in (None, "output", "input"):
        raise base.PruningError(f"keep_axes is 'output' or 'input'; got {role!r}.")

    def leaf(path: str, w: jax.Array) -> jax.Array:
        if role is None:
            return jnp.full_like(w, logit, jnp.float32)
        stay = getattr(tree.kernel_axes(path, w), role)
        shape = [n if i in stay else 1 for i, n in enumerate(np.shape(w))]
        return jnp.full(shape, logit, jnp.float32)

    return tree.map_with_path(leaf, params)


def _with_keys(draw: Callable[..., jax.Array], logits: Any, key: jax.Array) -> Any:
    """Draws for each leaf, with a key of its own."""
    treedef = jax.tree.structure(logits)
    keys = treedef.unflatten(list(jax.random.split(key, treedef.num_leaves)))
    return jax.tree.map(draw, logits, keys)
