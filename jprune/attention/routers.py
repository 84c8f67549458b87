"""Token routing: tokens that skip a block and return; predicted masks.

In a cascade a pruned token is gone. A router only decides which tokens go through a
block:

    ids = top_indices(logits, count)     the best, a static number of them
    x = through(block, x, ids)           they go through the block, the others skip it

`factors` and `route` are FTP's router on four features of each token; `guide_loss`,
`sparsity_loss` and `distillation_loss` train it. `mass_mask` with `guide_loss` is
FTWT's self-supervised mask of channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jprune import gates
from jprune.attention import _choose


class Router(NamedTuple):
    """A two-layer network from four features of a token to one logit.

    Attributes:
      weight: (4, hidden).
      bias: (hidden,).
      out: (hidden,).
      out_bias: ().
    """

    weight: jax.Array
    bias: jax.Array
    out: jax.Array
    out_bias: jax.Array


def init_router(key: jax.Array, hidden: int = 16) -> Router:
    """Returns a router with random weights.

    Args:
      key: a `jax.random.key`.
      hidden: width of the hidden layer.

    Returns:
      A `Router`.

    Example:
      >>> import jax
      >>> router = init_router(jax.random.key(0), hidden=8)
      >>> router.weight.shape, router.out.shape
      ((4, 8), (8,))
    """
    first, second = jax.random.split(key)
    weight = jax.random.normal(first, (4, hidden)) / 2
    out = jax.random.normal(second, (hidden,)) / jnp.sqrt(jnp.float32(hidden))
    return Router(weight, jnp.zeros(hidden), out, jnp.zeros(()))


def factors(
    importance: jax.Array, sparsity: Any, valid: jax.Array | None = None
) -> jax.Array:
    """Returns the router's input: four features of each token, in [0, 1].

    The token's position, its importance relative to the largest, the rank of its
    importance (1 for the largest; the earlier of equals ranks higher), and the sparsity
    of the block.

    Args:
      importance: (..., tokens), from `token_importance`.
      sparsity: target sparsity of the block, in [0, 1]; broadcasts to the leading axes,
        may be traced.
      valid: (..., tokens) booleans, False for padding, which ranks last.

    Returns:
      (..., tokens, 4) float32.

    Example:
      >>> import jax.numpy as jnp
      >>> factors(jnp.array([1.0, 4.0]), 0.5).tolist()
      [[0.0, 0.25, 0.0, 0.5], [1.0, 1.0, 1.0, 0.5]]

    References:
      Li et al., FTP: A Fine-grained Token-wise Pruner for Large Language Models via
      Token Routing, 2024, arXiv:2412.11494. Its scaling of the features is not copied:
      here all four are scaled to [0, 1].
    """
    n = importance.shape[-1]
    score = importance.astype(jnp.float32)
    score = score if valid is None else jnp.where(valid, score, 0)
    top = jnp.max(score, axis=-1, keepdims=True, initial=0)
    keys = _choose.sort_keys(score, valid=valid)
    order = jnp.argsort(jnp.argsort(~keys, axis=-1, stable=True), axis=-1)
    last = max(1, n - 1)
    place = lax.broadcasted_iota(jnp.float32, score.shape, score.ndim - 1) / last
    rank = 1 - order.astype(jnp.float32) / last
    wanted = jnp.asarray(sparsity, jnp.float32)
    wanted = jnp.broadcast_to(wanted[..., None], score.shape)
    share = score / jnp.where(top > 0, top, 1)
    return lax.stop_gradient(jnp.stack([place, share, rank, wanted], axis=-1))


def route(router: Router, known: jax.Array) -> jax.Array:
    """Returns a logit for each token: how much it gains from being computed.

    Args:
      router: router of the block.
      known: (..., tokens, 4), from `factors`.

    Returns:
      (..., tokens) float32.

    Example:
      A router that lets a token through if its importance is large:

      >>> import jax.numpy as jnp
      >>> weight = jnp.array([[0.0], [10.0], [0.0], [0.0]])
      >>> router = Router(weight, jnp.zeros(1), jnp.ones(1), jnp.array(-5.0))
      >>> known = jnp.array([[0.0, 0.0, 0.0, 0.5], [1.0, 1.0, 1.0, 0.5]])
      >>> route(router, known).tolist()
      [-5.0, 5.0]
    """
    bias = router.bias.reshape((1,) * (known.ndim - 1) + (-1,))
    hidden = jax.nn.gelu(known @ router.weight + bias)
    return hidden @ router.out + router.out_bias


def through(block: Callable[[jax.Array], jax.Array], x: jax.Array, ids: Any) -> Any:
    """Passes the chosen tokens through a block; the others skip it.

    Args:
      block: (..., count, hidden) -> the same shape, including its residual sum.
      x: (..., tokens, hidden).
      ids: (..., count) int32, indices of the tokens that go through; the others are
        returned unchanged.

    Returns:
      (..., tokens, hidden).

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0], [2.0], [3.0]])
      >>> through(lambda x: 10 * x, x, jnp.array([0, 2]))[:, 0].tolist()
      [10.0, 2.0, 30.0]

    References:
      Raposo et al., Mixture-of-Depths, 2024, arXiv:2404.02258. Where the block has
      attention, FTP keeps the keys and values of tokens that skip it: compute those of
      all tokens outside, and let `block` close over them.
    """
    return _choose.put(x, ids, block(_choose.take(x, ids)))


def gated_through(
    block: Callable[[jax.Array], jax.Array], x: jax.Array, logits: jax.Array
) -> jax.Array:
    """Passes tokens with a positive logit through a block; differentiable.

    All tokens are computed; the decision has the derivative of a sigmoid, for training.

    Args:
      block: (..., tokens, hidden) -> the same shape.
      x: (..., tokens, hidden).
      logits: (..., tokens).

    Returns:
      (..., tokens, hidden).

    Example:
      >>> import jax.numpy as jnp
      >>> x, logits = jnp.array([[1.0], [2.0]]), jnp.array([3.0, -3.0])
      >>> gated_through(lambda x: 10 * x, x, logits).tolist()
      [[10.0], [2.0]]
    """
    gate = gates.straight_through(logits > 0, jax.nn.sigmoid(logits))
    gate = gate[..., None].astype(x.dtype)
    return gate * block(x) + (1 - gate) * x


def guide_loss(
    logits: jax.Array, target: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """Returns the cross-entropy of a router's decisions to a static router's.

    -(y log sigma(l) + (1 - y) log(1 - sigma(l))), averaged.

    Args:
      logits: (..., n).
      target: (..., n) booleans, True for what goes through: the tokens of the largest
        importance for FTP, the channels of the largest mass for FTWT.
      valid: (..., n) booleans, False for entries that do not count.

    Returns:
      A float32 scalar, the mean over valid entries.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(guide_loss(jnp.zeros(3), jnp.array([True, False, True]))), 4)
      0.6931
    """
    wide, goal = logits.astype(jnp.float32), target.astype(jnp.float32)
    each = optax.losses.sigmoid_binary_cross_entropy(wide, goal)
    real = jnp.ones(each.shape, bool) if valid is None else valid
    total = jnp.sum(jnp.where(real, each, 0))
    return total / jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1)


def sparsity_loss(
    logits: jax.Array, sparsity: Any, valid: jax.Array | None = None
) -> jax.Array:
    """Returns the squared error of the fraction of tokens that go through.

    (mean_i [l_i > 0] - (1 - sparsity))^2, with the derivative of sigma(l) for the step.

    Args:
      logits: (..., tokens).
      sparsity: target fraction of tokens that skip, in [0, 1]; broadcasts to the
        leading axes.
      valid: (..., tokens) booleans, False for padding.

    Returns:
      A float32 scalar, the mean over leading axes.

    Example:
      Three of four tokens go through, where half of them should:

      >>> import jax.numpy as jnp
      >>> float(sparsity_loss(jnp.array([2.0, 1.0, -1.0, 3.0]), 0.5))
      0.0625
    """
    wide = logits.astype(jnp.float32)
    gate = gates.straight_through(wide > 0, jax.nn.sigmoid(wide))
    real = jnp.ones(gate.shape, bool) if valid is None else valid
    count = jnp.maximum(jnp.sum(real, axis=-1, dtype=jnp.float32), 1)
    share = jnp.sum(jnp.where(real, gate, 0), axis=-1) / count
    return jnp.mean(jnp.square(share - (1 - jnp.asarray(sparsity, jnp.float32))))


def distillation_loss(
    logits: jax.Array, teacher: jax.Array, temperature: Any = 1.0
) -> jax.Array:
    """Returns the divergence of the routed model's predictions from the full model's.

    T^2 mean KL(softmax(teacher / T) || softmax(logits / T))

    Args:
      logits: (..., classes), of the model with routers.
      teacher: (..., classes), of the full model; no gradient flows into it.
      temperature: T, positive, may be traced.

    Returns:
      A float32 scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> float(distillation_loss(jnp.ones((2, 3)), jnp.zeros((2, 3))))
      0.0

    References:
      Hinton et al., Distilling the Knowledge in a Neural Network, 2015,
      arXiv:1503.02531.
    """
    t = jnp.asarray(temperature, jnp.float32)
    fixed = lax.stop_gradient(teacher).astype(jnp.float32)
    goal = jax.nn.log_softmax(fixed / t, axis=-1)
    found = jax.nn.log_softmax(logits.astype(jnp.float32) / t, axis=-1)
    each = optax.losses.kl_divergence_with_log_targets(found, goal)
    return t**2 * jnp.mean(each)


def mass_mask(scores: jax.Array, share: Any) -> jax.Array:
    """Returns the mask of the fewest units that hold a given fraction of the mass.

    The k largest, with the least k for which they sum to at least `share` of the total.

    Args:
      scores: (..., n), not negative, such as the largest activation of each channel.
      share: fraction of the total, in (0, 1]; may be traced.

    Returns:
      (..., n) booleans, the earlier of equals first.

    Raises:
      PruningError: if scores are not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> mass_mask(jnp.array([1.0, 5.0, 0.0, 4.0]), 0.9).tolist()
      [False, True, False, True]

    References:
      Elkerdawy et al., Fire Together Wire Together: A Dynamic Pruning Approach with
      Self-Supervised Mask Prediction, 2022, arXiv:2110.08232.
    """
    falling = -jnp.sort(-scores.astype(jnp.float32), axis=-1)
    before = jnp.cumsum(falling, axis=-1) - falling
    total = jnp.sum(falling, axis=-1, keepdims=True)
    short = before < jnp.asarray(share, jnp.float32) * total * (1 - 1e-6)
    count = jnp.sum(short & (falling > 0), axis=-1, dtype=jnp.int32)
    return _choose.top_mask(_choose.sort_keys(scores), count)
