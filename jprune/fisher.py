"""Terms that the scores of groups are sums of: of weights, gates and their Fisher.

    score_by_weight     w^p, with its sign
    score_by_gate       w g, with its sign: d loss / d gate for a gate on w, at 1
    score_by_fisher     w^2 E[g^2], the diagonal of that gate's Fisher information

With a sign, the terms of an entry cancel where what they do cancels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import base, links


def score_by_weight(power: int = 1) -> base.Pruner:
    """Scores a weight by a power of itself, w^p.

    Args:
      power: p, a positive integer; static.

    Returns:
      A link: params -> scores in float32 or wider. Gradients are not used.

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
        raise base.PruningError(f"A power is a positive integer; got {power}.")

    def score(grads: Any, params: base.Params) -> base.Scores:
        del grads
        return jax.tree.map(lambda w: links.wide(w) ** power, params)

    return links.stateless(score, needs_grads=False)


def score_by_gate() -> base.Pruner:
    """Scores a weight by w g: the derivative of the loss for a gate on it.

    Its sum over an entry is the derivative for one gate on all of the entry's
    weights; minus that is, to first order, what removing the entry changes.

    Returns:
      A link: params and gradients -> scores in float32 or wider, with their sign.

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
        return jax.tree.map(lambda w, g: links.wide(w) * links.wide(g), params, grads)

    return links.stateless(score, needs_grads=True)


class FisherState(NamedTuple):
    """State of `score_by_fisher`.

    Attributes:
      count: int32 scalar, updates so far.
      squares: the params' tree, decayed means of g^2, float32 or wider.
    """

    count: base.Scalar
    squares: Any


def score_by_fisher(decay: float = 0.99) -> base.Pruner:
    """Scores a weight by w^2 E[g^2], with a running mean of squared gradients.

        v <- decay v + (1 - decay) g^2,    score = w^2 v / (1 - decay^t)

    The mean has to see each step's gradient, so this link belongs into `sparsify`'s
    `track`, or into a pruner that refreshes every step.

    Args:
      decay: in [0, 1); 0 is the last gradient alone.

    Returns:
      A link: params and gradients -> scores in float32 or wider.

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
        raise base.PruningError(f"A decay is in [0, 1); got {decay}.")

    def init(params: base.Params) -> FisherState:
        like = links.floating(params)
        zeros = jax.tree.map(lambda w: jnp.zeros_like(links.wide(w)), like)
        return FisherState(jnp.zeros((), jnp.int32), zeros)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        links.require(updates, params, needs_grads=True)
        count = optax.safe_increment(state.count)
        squares = jax.tree.map(
            lambda v, g: decay * v + (1 - decay) * jnp.square(links.wide(g)),
            state.squares,
            updates,
        )
        weight = 1 - jnp.power(jnp.float32(decay), jnp.asarray(count, jnp.float32))
        found = jax.tree.map(
            lambda w, v: jnp.square(links.wide(w)) * (v / weight.astype(v.dtype)),
            params,
            squares,
        )
        return found, FisherState(count, squares)

    return optax.GradientTransformationExtraArgs(init, update)
