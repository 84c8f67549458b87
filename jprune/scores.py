"""Criteria: the first link of a pruner, from gradients and params to scores.

With w a weight, g the gradient of the loss with respect to it:

    score_by_magnitude     |w|
    score_by_gradient      |g|                 (growth in RigL)
    score_by_taylor        |w g|               (SNIP where no weight is pruned yet)
    score_by_movement      -sum over steps of w g
    score_by_random        a uniform number

Scores are real, one for each weight, higher = keep. Links act on the leaves
they are given: `jprune.select` gives them kernels only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import base, links


def score_by_magnitude() -> base.Pruner:
    """Scores a weight by its absolute value, |w|.

    Returns:
      A link: params -> scores, in the params' dtype. Gradients are not used.

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
        return jax.tree.map(jnp.abs, links.floating(params))

    return links.stateless(score, needs_grads=False)


def score_by_gradient() -> base.Pruner:
    """Scores a weight by the size of its gradient, |g|.

    Returns:
      A link: gradients -> scores, in the gradients' dtype.

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      arXiv:1911.11134, the growth criterion of section 3.
    """

    def score(grads: Any, params: base.Params) -> base.Scores:
        return jax.tree.map(jnp.abs, links.floating(grads))

    return links.stateless(score, needs_grads=True)


def score_by_taylor() -> base.Pruner:
    """Scores a weight by the first-order change of the loss if it goes, |w g|.

    At weights of which none is pruned this is SNIP's connection sensitivity:
    the gradient with respect to the mask at mask one.

    Returns:
      A link: params and gradients -> scores in float32 (products of bfloat16
      numbers, rounded to bfloat16, would tie in large numbers).

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
        return jax.tree.map(
            lambda w, g: jnp.abs(links.wide(w) * links.wide(g)),
            links.floating(params),
            grads,
        )

    return links.stateless(score, needs_grads=True)


class MovementState(NamedTuple):
    """State of `score_by_movement`: the sum so far, float32, shaped as params."""

    total: base.Scores


def score_by_movement() -> base.Pruner:
    """Scores a weight by how far it moved away from zero, -sum of w g over steps.

    The score is signed: a weight that shrinks has a negative one. The sum has
    to see each step's gradient, so this link belongs into `sparsify`'s `track`,
    or into a pruner that refreshes every step.

    Returns:
      A link: params and gradients -> accumulated scores in float32.

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
                lambda w: jnp.zeros_like(links.wide(w)), links.floating(params)
            )
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        links.require(updates, params, needs_grads=True)
        total = jax.tree.map(
            lambda t, w, g: t - links.wide(w) * links.wide(g),
            state.total,
            params,
            updates,
        )
        return total, MovementState(total)

    return optax.GradientTransformationExtraArgs(init, update)


class RandomState(NamedTuple):
    """State of `score_by_random`: the key of the next draw."""

    key: jax.Array


def score_by_random(key: jax.Array) -> base.Pruner:
    """Scores a weight by a random number, independently of everything.

    Args:
      key: a `jax.random.key`; each update draws anew from a key split off it.

    Returns:
      A link: nothing but shapes -> scores, uniform 32-bit integers (a float32
      in [0, 1) has only 2^23 values, which tie in large models).
    """

    def init(params: base.Params) -> RandomState:
        links.floating(params)
        return RandomState(key)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        links.require(updates, params, needs_grads=False)
        following, now = jax.random.split(state.key)
        leaves, treedef = jax.tree.flatten(params)
        # Added to zeros like the leaf, so that the scores take on its sharding.
        scores = [
            jax.random.bits(jax.random.fold_in(now, i), jnp.shape(w), jnp.uint32)
            + jnp.zeros_like(w, jnp.uint32)
            for i, w in enumerate(leaves)
        ]
        return treedef.unflatten(scores), RandomState(following)

    return optax.GradientTransformationExtraArgs(init, update)
