"""Criteria: the first link of a pruner, from gradients and params to scores.

With w a weight, g the gradient of the loss with respect to it:

    score_by_magnitude     |w|
    score_by_gradient      |g|                 (growth in RigL)
    score_by_taylor        |w g|               (SNIP where no weight is pruned yet)
    score_by_movement      -sum over steps of w g
    score_by_random        a uniform random number

Per-weight terms that are summed into group scores (by `pool_over_axes` or
`jprune.graph`). They have signs, so effects that cancel within a group cancel in the
sum:

    score_by_weight        w^p
    score_by_gate          w g: d loss / d gate, for a gate on w at 1
    score_by_fisher        w^2 E[g^2]: diagonal of the Fisher information of that gate

Scores are real numbers, one for each weight, higher = keep. A link scores all leaves
that it is given; `jprune.select` gives it kernels only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._core import base, precision
from jprune._core.products import mask_gradient
from jprune.links import _common


def score_by_magnitude() -> base.Pruner:
    """Scores a weight by its absolute value, |w|.

    Returns:
      A link: params -> scores, with the shapes and dtypes of the params. Gradients are
      not used.

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_magnitude()
      >>> params = {"w": jnp.array([-2.0, 1.0])}
      >>> link.update(None, link.init(params), params)[0]
      {'w': Array([2., 1.], dtype=float32)}

    References:
      LeCun et al. and Han et al., Learning both Weights and Connections for
      Efficient Neural Networks, 2015, arXiv:1506.02626.
    """

    def score(grads: Any, params: base.Params) -> base.Scores:
        del grads
        return jax.tree.map(jnp.abs, _common.floating(params))

    return _common.stateless(score, needs_grads=False)


def score_by_gradient() -> base.Pruner:
    """Scores a weight by the absolute value of its gradient, |g|.

    Returns:
      A link: gradients -> scores, with the shapes and dtypes of the gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_gradient()
      >>> params, grads = {"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, -3.0])}
      >>> link.update(grads, link.init(params), params)[0]
      {'w': Array([1., 3.], dtype=float32)}

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      arXiv:1911.11134, the growth criterion of section 3.
    """

    def score(grads: Any, params: base.Params) -> base.Scores:
        return jax.tree.map(jnp.abs, _common.floating(grads))

    return _common.stateless(score, needs_grads=True)


def score_by_taylor() -> base.Pruner:
    """Scores a weight by |w g|, the first-order change of the loss if it is removed.

    While no weight is pruned, this is SNIP's connection sensitivity: the gradient with
    respect to the mask, where the mask is all ones.

    Returns:
      A link: params and gradients -> scores in float32 or wider (many products of
      bfloat16 numbers, rounded to bfloat16, would tie).

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_taylor()
      >>> params, grads = {"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, 3.0])}
      >>> link.update(grads, link.init(params), params)[0]
      {'w': Array([2., 3.], dtype=float32)}

    References:
      Lee et al., SNIP: Single-shot Network Pruning based on Connection
      Sensitivity, 2019, arXiv:1810.02340, equation 4. Molchanov et al., Pruning
      Convolutional Neural Networks for Resource Efficient Inference, 2017,
      arXiv:1611.06440, equation 7.
    """

    def score(grads: Any, params: base.Params) -> base.Scores:
        found = mask_gradient(_common.floating(params), grads)
        return jax.tree.map(jnp.abs, found)

    return _common.stateless(score, needs_grads=True)


class MovementState(NamedTuple):
    """State of `score_by_movement`.

    Attributes:
      total: the params' tree, -sum of w g over the steps so far, float32 or wider.
    """

    total: base.Scores


def score_by_movement() -> base.Pruner:
    """Scores a weight by its movement away from zero, -sum over steps of w g.

    Scores are signed: weights that shrink have negative ones. The sum needs the
    gradient of every step, so use this link as the `track` of `sparsify`, or in a
    pruner that is refreshed at every step.

    Returns:
      A link: params and gradients -> scores summed over all updates, in float32 or
      wider.

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_movement()
      >>> params, grads = {"w": jnp.array([2.0])}, {"w": jnp.array([1.0])}
      >>> _, state = link.update(grads, link.init(params), params)
      >>> link.update(grads, state, params)[0]
      {'w': Array([-4.], dtype=float32)}

    References:
      Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
      arXiv:2005.07683, equation 4 (up to the learning rate).
    """

    def init(params: base.Params) -> MovementState:
        return MovementState(
            jax.tree.map(
                lambda w: jnp.zeros_like(precision.wide(w)), _common.floating(params)
            )
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        _common.require(updates, params, needs_grads=True)
        slopes = mask_gradient(params, updates)
        total = jax.tree.map(jnp.subtract, state.total, slopes)
        return total, MovementState(total)

    return optax.GradientTransformationExtraArgs(init, update)


class RandomState(NamedTuple):
    """State of `score_by_random`.

    Attributes:
      key: the key that the scores are drawn from at the next update.
    """

    key: jax.Array


def score_by_random(key: jax.Array, *, redraw: bool = False) -> base.Pruner:
    """Scores each weight by a random number, independent of its value.

    The numbers are drawn once: every update returns the same scores, so masks that
    are refreshed at a constant sparsity stay as they are, and masks under a rising
    schedule are nested. Scores that are drawn anew prune other weights at each
    refresh, and since a pruned weight is zero, few nonzero weights are left after
    some refreshes.

    Args:
      key: a `jax.random.key`.
      redraw: draw new scores at each update, from a key split off the last one, as
        random regrowth needs them.

    Returns:
      A link: params -> scores in the params' shapes, uniform uint32 (a float32 in
      [0, 1) has only 2^23 values, which tie in large models). Gradients and the
      values of the params are not used.

    Raises:
      PruningError: if the key is not one.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> link = score_by_random(jax.random.key(0))
      >>> params = {"w": jnp.zeros(4)}
      >>> first, state = link.update(None, link.init(params), params)
      >>> again, _ = link.update(None, state, params)
      >>> bool((first["w"] == again["w"]).all())
      True
    """
    _check_key(key)

    def init(params: base.Params) -> RandomState:
        _common.floating(params)
        return RandomState(key)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        _common.require(updates, params, needs_grads=False)
        following, now = jax.random.split(state.key)
        leaves, treedef = jax.tree.flatten(params)
        # Added to zeros like the leaf, so that the scores take on its sharding.
        scores = [
            jax.random.bits(jax.random.fold_in(now, i), jnp.shape(w), jnp.uint32)
            + jnp.zeros_like(w, jnp.uint32)
            for i, w in enumerate(leaves)
        ]
        return treedef.unflatten(scores), RandomState(following) if redraw else state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_key(key: Any) -> None:
    """Raises unless it is a key, new or old: uint32 words in a last axis."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (dtype == jnp.uint32 and jnp.ndim(key)):
        raise base.PruningError(
            f"A key is a jax.random.key; got {key!r:.80}: pass jax.random.key(0)."
        )


def score_by_weight(power: int = 1) -> base.Pruner:
    """Scores a weight by its p-th power, w^p, to be summed over a group.

    Args:
      power: p, a positive integer.

    Returns:
      A link: params -> scores in float32 or wider, signed for odd p. Gradients are not
      used.

    Raises:
      PruningError: if the power is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_weight(2)
      >>> params = {"w": jnp.array([-2.0, 1.0])}
      >>> link.update(None, link.init(params), params)[0]
      {'w': Array([4., 1.], dtype=float32)}
    """
    if power < 1:
        raise base.PruningError(f"power is a positive integer; got {power}.")

    def score(grads: Any, params: base.Params) -> base.Scores:
        del grads
        return jax.tree.map(lambda w: precision.wide(w) ** power, params)

    return _common.stateless(score, needs_grads=False)


def score_by_gate() -> base.Pruner:
    """Scores a weight by w g, the derivative of the loss with respect to a gate on it.

    The sum over a group is the derivative with respect to one gate on all of its
    weights. Its negative is the change of the loss if the group is removed, to first
    order.

    Returns:
      A link: params and gradients -> signed scores in float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_gate()
      >>> params, grads = {"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, 3.0])}
      >>> link.update(grads, link.init(params), params)[0]
      {'w': Array([-2.,  3.], dtype=float32)}

    References:
      Molchanov et al., Importance Estimation for Neural Network Pruning, 2019,
      arXiv:1906.10771, section 3, before it is squared.
    """

    def score(grads: Any, params: base.Params) -> base.Scores:
        return mask_gradient(params, grads)

    return _common.stateless(score, needs_grads=True)


class FisherState(NamedTuple):
    """State of `score_by_fisher`.

    Attributes:
      count: int32 scalar, number of updates so far.
      squares: the params' tree, running means of g^2, float32 or wider.
    """

    count: base.Scalar
    squares: Any


def score_by_fisher(decay: float = 0.99) -> base.Pruner:
    """Scores a weight by w^2 E[g^2], with a running mean of squared gradients.

        v <- decay v + (1 - decay) g^2,    score = w^2 v / (1 - decay^t)

    The mean needs the gradient of every step, so use this link as the `track` of
    `sparsify`, or in a pruner that is refreshed at every step.

    Args:
      decay: decay of the running mean per update, in [0, 1); with 0 only the last
        gradient counts.

    Returns:
      A link: params and gradients -> scores in float32 or wider, not negative.

    Raises:
      PruningError: if the decay is outside [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> link = score_by_fisher(0.5)
      >>> params, grads = {"w": jnp.array([2.0])}, {"w": jnp.array([3.0])}
      >>> _, state = link.update(grads, link.init(params), params)
      >>> link.update(grads, state, params)[0]
      {'w': Array([36.], dtype=float32)}

    References:
      Theis et al., Faster gaze prediction with dense networks and Fisher pruning,
      2018, arXiv:1801.05787, for one weight.
    """
    if not 0 <= decay < 1:
        raise base.PruningError(f"decay is in [0, 1); got {decay}.")

    def init(params: base.Params) -> FisherState:
        like = _common.floating(params)
        zeros = jax.tree.map(lambda w: jnp.zeros_like(precision.wide(w)), like)
        return FisherState(jnp.zeros((), jnp.int32), zeros)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        _common.require(updates, params, needs_grads=True)
        count = optax.safe_increment(state.count)
        squares = jax.tree.map(
            lambda v, g: decay * v + (1 - decay) * jnp.square(precision.wide(g)),
            state.squares,
            updates,
        )
        weight = 1 - jnp.power(jnp.float32(decay), jnp.asarray(count, jnp.float32))
        found = jax.tree.map(
            lambda w, v: jnp.square(precision.wide(w)) * (v / weight.astype(v.dtype)),
            params,
            squares,
        )
        return found, FisherState(count, squares)

    return optax.GradientTransformationExtraArgs(init, update)
