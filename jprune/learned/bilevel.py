"""Pruning as bi-level optimization: masks at the upper level, weights at the lower.

    upper   min over m with k ones of   L(m w*(m))
    lower   w*(m) = argmin over w of    L(m w) + gamma / 2 |w|^2

Mask and weights enter only through their product z = m w. Without the Hessian, the
gradient of the upper level is therefore a closed form: with g = dL/dz

    dL/dm = w g + (dw*/dm)^T m g,   dw*/dm ~ -diag(g) / gamma,
          ~ (w - m g / gamma) g

which costs one gradient, like a training step. `jprune.learned.implicit` has the
versions with the Hessian, for comparison.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base, precision
from jprune.learned import effective
from jprune.learned._common import copied, descend, prunable
from jprune.links import select

Hypergradient = Callable[[base.Params, base.Masks, base.Params], base.Scores]
"""`(params, masks, grads) -> gradient of the upper loss in the masks`, in float32."""


def implicit_gradient(
    params: base.Params, masks: base.Masks, grads: base.Params, *, gamma: float = 1.0
) -> base.Scores:
    """Returns BiP's hypergradient, (w - m g / gamma) g.

    The second term, -m g^2 / gamma, is the response of the weights to the mask: a bonus
    for kept weights with a gradient, and zero for pruned ones. Where the lower level is
    solved, m g = -gamma w, so that the hypergradient is 2 w g. Far from there, and on
    small batches, g is mostly noise, and the term favours weights that are kept
    already: with gamma 1 and batches of 128 it cost a short run two points of accuracy.
    A gamma of 1e4 practically removes it.

    Args:
      params: the weights w.
      masks: their masks m.
      grads: g, the gradient at the effective weights m w.
      gamma: regularization strength of the lower level, positive; may be traced.

    Returns:
      The params' tree, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> w, g, m = jnp.array([2.0]), jnp.array([3.0]), jnp.array([True])
      >>> implicit_gradient(w, m, g, gamma=1.0)
      Array([-3.], dtype=float32)

    References:
      Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022,
      arXiv:2210.04092, proposition 1.
    """

    def leaf(w: jax.Array, m: jax.Array, g: jax.Array) -> jax.Array:
        w, g = precision.wide(w), precision.wide(g)
        return (w - effective.masked(g, m) / jnp.asarray(gamma, g.dtype)) * g

    return jax.tree.map(leaf, params, masks, grads)


def direct_gradient(
    params: base.Params, masks: base.Masks, grads: base.Params
) -> base.Scores:
    """Returns w g: the hypergradient if the weights did not respond to the mask.

    Args:
      params: the weights w.
      masks: not used.
      grads: g, the gradient at the effective weights.

    Returns:
      The params' tree, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> w, g, m = jnp.array([2.0]), jnp.array([3.0]), jnp.array([True])
      >>> direct_gradient(w, m, g)
      Array([6.], dtype=float32)
    """
    del masks
    return effective.mask_gradient(params, grads)


def reference_gradient(
    params: base.Params, masks: base.Masks, grads: base.Params, *, gamma: float = 1e4
) -> base.Scores:
    """Returns w g - (w g)^2 / gamma, the hypergradient of BiP's released code.

    There the implicit term is the square of the scores' gradient, for pruned weights
    too; with that code's gamma it is some millionths of the total.

    Args:
      params: the weights w.
      masks: not used.
      grads: g, the gradient at the effective weights.
      gamma: 1 / `lr2` in that code.

    Returns:
      The params' tree, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> w, g, m = jnp.array([2.0]), jnp.array([3.0]), jnp.array([True])
      >>> reference_gradient(w, m, g, gamma=12.0)  # 6 - 36 / 12
      Array([3.], dtype=float32)

    References:
      Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022,
      arXiv:2210.04092 (the repository OPTML-Group/BiP).
    """
    direct = direct_gradient(params, masks, grads)
    return jax.tree.map(lambda d: d - d * d / jnp.asarray(gamma, d.dtype), direct)


class BipState(NamedTuple):
    """State of `bip`.

    Attributes:
      count: int32 scalar, steps so far.
      params: the weights w, including the pruned ones.
      scores: the scores that the pruner ranks, for prunable leaves only; None if the
        weights are their own scores.
      masks: the masks in force.
      pruner: state of the pruner.
      lower: state of the optimizer of the weights.
      upper: state of the optimizer of the scores.
      model: state that the loss carries from batch to batch, or None.
    """

    count: base.Scalar
    params: base.Params
    scores: Any
    masks: base.Masks
    pruner: Any
    lower: Any
    upper: Any
    model: Any


class BipInfo(NamedTuple):
    """Diagnostics of a step of `bip`.

    Attributes:
      lower_loss: losses of the lower steps, (N,), each before its update.
      upper_loss: scalar loss on the upper batch, before the scores' update.
      sparsity: scalar sparsity of the new masks.
      churn: fraction of mask entries that changed, a scalar.
      direct_norm: scalar |w g|.
      implicit_norm: scalar |hypergradient - w g|.
    """

    lower_loss: jax.Array
    upper_loss: jax.Array
    sparsity: jax.Array
    churn: jax.Array
    direct_norm: jax.Array
    implicit_norm: jax.Array


def bip(
    loss: Callable[..., Any],
    pruner: base.Pruner,
    *,
    lower: optax.GradientTransformation,
    upper: optax.GradientTransformation,
    hypergradient: Hypergradient = implicit_gradient,
    tied: bool = False,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """Bi-level pruning (BiP): optimizes weights and masks in turns.

        lower, N batches:   w <- w - alpha m g
        upper, one batch:   s <- s - beta (w - m g / gamma) g,   m = pruner(s)

    The masks are at the target sparsity from the start, without rounds. A pruned
    weight keeps its value and its score, and can return. The regularization
    gamma / 2 |w|^2 of the weights is the lower optimizer's weight decay.

    Scores start as |w|, a scale that lets a global pruner compare layers; the highest
    are kept. For channels, put `pool_over_axes(jnp.sum)` before the pruner, since the
    derivative of a channel's mask is the sum over its weights.

    Args:
      loss: `(params, batch) -> scalar`; with a `model` at `init`, such as batch
        statistics, `(params, model, batch) -> (scalar, model)`.
      pruner: links from scores to masks: `keep_*`, after `pool_over_*` for channels.
        It sees the scores as gradients and as params, so that magnitude recipes work
        as well. Its sparsity may be traced or a schedule of the step.
      lower: optimizer of the weights, including leaves that are never pruned.
      upper: optimizer of the scores; with `optax.set_to_zero()`, `bip` is training
        under a fixed mask.
      hypergradient: `(params, masks, grads) -> gradient` of the upper level:
        `implicit_gradient`, possibly with another gamma, or `direct_gradient`.
      tied: whether the weights are their own scores, as in the released code: both
        levels step the same tensor, and the pruner ranks |w|.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`. `init(params, model=None, scores=None)` takes other initial
      scores if given. `step(state, lower, upper) -> (state, BipInfo)` is jitted and
      donates its state; the leaves of `lower` have a leading axis of size N, those of
      `upper` do not. `finish(state) -> (params, masks)`.

    Raises:
      PruningError: at `init`, if the pruner or the predicate does not fit the
        params, or scores are given although `tied` is True.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (8, 16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - x[:, :1]) ** 2)
      >>> method = bip(loss, jp.keep_top(0.75), lower=optax.sgd(0.1),
      ...              upper=optax.sgd(0.1))
      >>> state = method.init({"kernel": jnp.ones((4, 1))})
      >>> for i in range(20):
      ...   state, info = method.step(state, x[:7], x[7])
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [True, False, False, False]

    References:
      Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022,
      arXiv:2210.04092, algorithm 1. The paper steps a mask relaxed to [0, 1]; here, as
      in the released code, the scores are not clipped to it.
    """
    chosen, where = select(pruner, where), tree.check_where(where)
    lower_tx, upper_tx = lower, upper  # `step` has batches of these names

    def init(params: base.Params, model: Any = None, scores: Any = None) -> BipState:
        if tied and scores is not None:
            raise base.PruningError("tied=True takes no scores: |w| is the score.")
        only = prunable(where, params)
        scores = only(_magnitudes(params) if scores is None else scores)
        count = jnp.zeros((), jnp.int32)
        masks, memory = _project(chosen, params, scores, chosen.init(params), count)
        masks_lib.check(params, masks)
        scores, stepped = (None, only(params)) if tied else (scores, scores)
        optimizers = lower_tx.init(params), upper_tx.init(stepped)
        return copied(
            BipState(count, params, scores, masks, memory, *optimizers, model)
        )

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state: BipState, lower: Any, upper: Any) -> tuple[BipState, BipInfo]:
        params, below, model, lower_loss = _lower_level(loss, lower_tx, state, lower)
        upper_loss, _, g = _gradient(loss, params, state.masks, model, upper)
        only = prunable(where, params)
        seen = only(params), only(state.masks), only(g)
        total, direct = hypergradient(*seen), direct_gradient(*seen)
        params, scores, above = _upper_level(upper_tx, state, total, params, only)
        ranked = only(_magnitudes(params)) if tied else scores
        count = optax.safe_increment(state.count)
        masks, memory = _project(chosen, params, ranked, state.pruner, count)
        change = only(state.masks), only(masks)
        info = _info(lower_loss, upper_loss, direct, total, *change)
        return BipState(count, params, scores, masks, memory, below, above, model), info

    def finish(state: BipState) -> tuple[base.Params, base.Masks]:
        return masks_lib.apply(state.params, state.masks), state.masks

    return base.Algorithm(init, step, finish)


def _gradient(
    loss: Callable[..., Any],
    params: base.Params,
    masks: base.Masks,
    model: Any,
    batch: Any,
) -> tuple[jax.Array, Any, base.Params]:
    """The loss at m w, the model after it, and g = dL/d(m w)."""
    masked = functools.partial(masks_lib.apply, masks=masks)
    args = (batch,) if model is None else (model, batch)
    found = effective.gradient_at_effective(
        loss, masked, (params,), *args, has_aux=model is not None
    )
    return found.value, found.aux, found.grads


def _lower_level(
    loss: Callable[..., Any],
    tx: optax.GradientTransformation,
    state: BipState,
    batches: Any,
) -> tuple[base.Params, Any, Any, jax.Array]:
    """A step of the weights for each batch, under fixed masks: w <- w - alpha m g."""

    def descent(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, memory, model = carry
        value, model, g = _gradient(loss, params, state.masks, model, batch)
        g = effective.masked_gradient(g, state.masks)
        return (*descend(tx, g, memory, params), model), value

    begin = (state.params, state.lower, state.model)
    (params, memory, model), losses = lax.scan(descent, begin, batches)
    return params, memory, model, losses


def _upper_level(
    tx: optax.GradientTransformation,
    state: BipState,
    gradient: base.Scores,
    params: base.Params,
    only: Callable[[Any], Any],
) -> tuple[base.Params, Any, Any]:
    """A step of the scores, or, where they are tied to the weights, of the weights."""
    if state.scores is not None:
        scores, memory = descend(tx, gradient, state.upper, state.scores)
        return params, scores, memory
    weights = only(params)
    along = jax.tree.map(_along_sign, gradient, weights)
    moved, memory = descend(tx, along, state.upper, weights)
    return tree.merged(moved, params), None, memory


def _project(
    pruner: base.Pruner,
    params: base.Params,
    scores: base.Scores,
    memory: Any,
    count: base.Scalar,
) -> tuple[base.Masks, Any]:
    """The pruner's masks of the scores, which it sees as gradients and as params."""
    ranked = tree.merged(scores, params)
    return pruner.update(ranked, memory, ranked, step=count)


def _magnitudes(params: base.Params) -> base.Scores:
    """The scores |w|, whose scale a global ranking can compare between layers."""
    return jax.tree.map(lambda w: jnp.abs(precision.wide(w)), params)


def _along_sign(gradient: jax.Array, w: jax.Array) -> jax.Array:
    """The gradient in |w| as a gradient in w."""
    return (gradient * jnp.sign(w).astype(gradient.dtype)).astype(w.dtype)


def _info(
    lower_loss: jax.Array,
    upper_loss: jax.Array,
    direct: base.Scores,
    total: base.Scores,
    before: base.Masks,
    after: base.Masks,
) -> BipInfo:
    """Computes all sums in one pass over each leaf, which costs as much as one sum."""

    def leaf(d: jax.Array, t: jax.Array, old: jax.Array, new: jax.Array):
        changed, pruned = (jnp.broadcast_to(m, t.shape) for m in (old != new, ~new))
        counted = [x.astype(jnp.int32) for x in (changed, pruned)]
        each = [d * d, (t - d) * (t - d), *counted]
        add = lambda a, b: tuple(map(jnp.add, a, b))  # noqa: E731
        zeros = [np.zeros((), x.dtype) for x in each]
        # Along rows, then over them: one long float32 sum would stop growing.
        rows = lax.reduce(each, zeros, add, tuple(range(t.ndim))[-1:])
        one, other, *counts = (jnp.sum(x, dtype=x.dtype) for x in rows)
        counts = [lax.bitcast_convert_type(n, jnp.uint32) for n in counts]  # to 2^32
        return jnp.stack([x.astype(jnp.float32) for x in (one, other, *counts)])

    trees = [jax.tree.leaves(x) for x in (direct, total, before, after)]
    sums = jnp.sum(jnp.stack([leaf(*each) for each in zip(*trees, strict=True)]), 0)
    one, other, changed, pruned = sums
    size = float(max(1, sum(np.size(d) for d in jax.tree.leaves(direct))))
    return BipInfo(
        lower_loss,
        upper_loss,
        sparsity=pruned / size,
        churn=changed / size,
        direct_norm=jnp.sqrt(one),
        implicit_norm=jnp.sqrt(other),
    )
