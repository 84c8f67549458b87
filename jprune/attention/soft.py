"""Learned token and head pruning: soft and straight-through versions of the selection.

A token's gate is a number in [0, 1]. A key with gate g enters the softmax with weight
g, so gates of zeros and ones give exactly the pruning that gathers, and gates in
between are differentiable:

    soft_keep        gates that sum to a count, which may itself be learned
    straight_keep    the mask of the top scores, with the derivatives of `soft_keep`
    threshold_keep   gates of scores above a learned threshold (LTP)

Train with `soft_layer`, penalize the cost of the gates with `over_budget`, then round
the counts to a `Schedule` and gather.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import gates as gates_lib
from jprune import selection
from jprune.attention import _choose, _heads
from jprune.attention._attend import scores as scores_of
from jprune.attention._attend import weigh

_FAR = 30.0  # in temperatures; the sigmoid of 30 is 1 to rounding


def soft_keep(
    scores: jax.Array,
    count: Any,
    temperature: Any,
    *,
    valid: jax.Array | None = None,
    protected: jax.Array | None = None,
) -> jax.Array:
    """Returns gates of tokens, or heads, that sum to a count in each row.

    g_i = sigma((s_i - tau) / T), tau such that sum_i g_i = count.

    Args:
      scores: (..., n) floating, in the unit of T.
      count: real, broadcasts to the leading axes; may be traced and learned.
      temperature: T, positive, may be traced.
      valid: (..., n) booleans; gates of padding are 0.
      protected: (..., n) booleans; gates of protected entries are 1, within the count.

    Returns:
      (..., n) gates in the type of the scores. Where the count exceeds the number of
      real tokens, all of their gates are near 1.

    Example:
      >>> import jax.numpy as jnp
      >>> gates = soft_keep(jnp.array([0.1, 0.9, 0.5, 0.2]), 2.0, 0.1)
      >>> [round(float(g), 2) for g in gates], round(float(gates.sum()), 3)
      ([0.06, 1.0, 0.79, 0.16], 2.0)
    """
    t = jnp.asarray(temperature, scores.dtype)
    real = jnp.ones(scores.shape, bool) if valid is None else valid
    placed = _aside(scores, real, protected, _FAR * jax.lax.stop_gradient(t))
    k = jnp.broadcast_to(jnp.asarray(count, jnp.float32), scores.shape[:-1])
    rows = lambda s, k: selection.soft_top_k(s, k, t)  # noqa: E731
    for _ in range(scores.ndim - 1):
        rows = jax.vmap(rows)
    return jnp.where(real, rows(placed, k), jnp.zeros((), scores.dtype))


def straight_keep(
    scores: jax.Array,
    count: Any,
    temperature: Any,
    *,
    valid: jax.Array | None = None,
    protected: jax.Array | None = None,
) -> jax.Array:
    """Returns the mask of the top scores as zeros and ones, straight-through.

    The forward value is the mask of the round(count) top scores, as `top_indices` keeps
    them; the derivatives by the scores and by the count are those of `soft_keep`.

    Args:
      scores: as in `soft_keep`.
      count: as in `soft_keep`.
      temperature: as in `soft_keep`.
      valid: as in `soft_keep`.
      protected: as in `soft_keep`.

    Returns:
      (..., n) zeros and ones in the type of the scores.

    Raises:
      PruningError: if scores are not floating.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> s = jnp.array([0.1, 0.9, 0.5, 0.2])
      >>> straight_keep(s, 2.0, 0.1).tolist()
      [0.0, 1.0, 1.0, 0.0]
      >>> round(float(jax.grad(lambda k: straight_keep(s, k, 0.1).sum())(2.0)), 3)
      1.0
    """
    soft = soft_keep(scores, count, temperature, valid=valid, protected=protected)
    keys = _choose.sort_keys(scores, valid=valid, protected=protected)
    whole = jnp.round(jnp.asarray(count, jnp.float32)).astype(jnp.int32)
    hard = _choose.top_mask(keys, whole)
    hard = hard if valid is None else hard & valid
    return gates_lib.straight_through(hard, soft)


def threshold_keep(
    scores: jax.Array,
    threshold: Any,
    temperature: Any,
    *,
    hard: bool = False,
    protected: jax.Array | None = None,
) -> jax.Array:
    """Returns gates of tokens whose mean attention exceeds a learned threshold.

    g_j = sigma((s_j - theta) / T), or [s_j > theta] with its derivative.

    Args:
      scores: (..., tokens), from `mean_importance`.
      threshold: theta of the layer, the learned parameter; may be traced.
      temperature: T, positive; LTP uses 1e-5 to 1e-3.
      hard: static; False in the first stage of training, True in the second, where the
        thresholds are fixed.
      protected: (..., tokens) booleans; gates of protected tokens are 1.

    Returns:
      (..., tokens) gates in the type of the scores.

    Example:
      >>> import jax.numpy as jnp
      >>> threshold_keep(jnp.array([0.1, 0.3]), 0.2, 0.1, hard=True).tolist()
      [0.0, 1.0]

    References:
      Kim et al., Learned Token Pruning for Transformers, 2022, arXiv:2107.00910,
      equations 2 to 5.
    """
    threshold = jnp.asarray(threshold, scores.dtype)
    if hard:
        gates = gates_lib.threshold_gate(scores, threshold, temperature)
    else:
        gates = gates_lib.sigmoid_gate(scores - threshold, temperature)
    one = jnp.ones((), scores.dtype)
    return gates if protected is None else jnp.where(protected, one, gates)


def gated_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: jax.Array,
    *,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns attention in which each key enters with the weight of its gate.

    P_ij = g_j exp(s_ij) / sum_l g_l exp(s_il)

    With gates of zeros and ones it is the attention over the tokens that are kept.

    Args:
      q: (..., heads, queries, dim).
      k: (..., kv heads, keys, dim).
      v: (..., kv heads, keys, dim).
      gates: (..., keys), not negative.
      scale: factor of the logits, 1 / sqrt(dim) by default.

    Returns:
      `(outputs, probs)`, as `attend` returns.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.eye(2)[None]
      >>> gated_attend(x, x, x, jnp.array([1.0, 0.0]))[1].tolist()
      [[[1.0, 0.0], [1.0, 0.0]]]

    References:
      Rao et al., DynamicViT, 2021, arXiv:2106.02034, equation 11, where a token always
      sees itself too; here a pruned token is seen by none.
    """
    logits = scores_of(q, k, scale)
    g = gates.astype(jnp.float32)[..., None, None, :]
    # The maximum is over keys with a gate above 0 only: a far larger logit of a pruned
    # key would make the others underflow.
    part = jnp.where(g > 0, logits, jnp.finfo(jnp.float32).min)
    top = jax.lax.stop_gradient(jnp.max(part, axis=-1, keepdims=True))
    # For the gradient by its gate, a pruned key is clipped to that maximum.
    shifted = jnp.where(g > 0, logits - top, jnp.minimum(logits - top, 0))
    e = g * jnp.exp(shifted)
    total = jnp.sum(e, axis=-1, keepdims=True)
    probs = e / jnp.where(total > 0, total, 1)
    return weigh(probs, v), probs


def gated_importance(probs: jax.Array, gates: jax.Array) -> jax.Array:
    """Returns the importance of tokens where queries are gated too.

    s[j] = g_j sum_h sum_i g_i P[h, i, j]

    Args:
      probs: (..., heads, tokens, tokens).
      gates: (..., tokens).

    Returns:
      (..., tokens) float32; with gates of zeros and ones it is `token_importance`.

    Example:
      >>> import jax.numpy as jnp
      >>> probs = jnp.array([[[0.5, 0.5], [0.25, 0.75]]])
      >>> gated_importance(probs, jnp.array([1.0, 0.5])).tolist()
      [0.625, 0.4375]
    """
    g = gates.astype(jnp.float32)
    return g * jnp.einsum("...hij,...i->...j", probs.astype(jnp.float32), g)


def mean_importance(probs: jax.Array, gates: jax.Array) -> jax.Array:
    """Returns LTP's importance: the attention that a token receives on average.

    sum_h sum_i g_i P[h, i, j] / (heads sum_i g_i)

    Args:
      probs: (..., heads, tokens, tokens).
      gates: (..., tokens).

    Returns:
      (..., tokens) float32 in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> probs = jnp.array([[[0.5, 0.5], [0.25, 0.75]]])  # one head
      >>> mean_importance(probs, jnp.ones(2)).tolist()
      [0.375, 0.625]

    References:
      Kim et al., 2022, arXiv:2107.00910, equation 1.
    """
    count = jnp.sum(gates.astype(jnp.float32), axis=-1, keepdims=True)
    return gated_importance(probs, gates) / (probs.shape[-3] * jnp.maximum(count, 1))


class SoftCascade(NamedTuple):
    """State passed from layer to layer while gates are learned.

    Attributes:
      x: (..., tokens, hidden), the activations.
      gates: (..., tokens) float32; those of padding are 0.
      scores: (..., tokens) float32, accumulated importance.
    """

    x: jax.Array
    gates: jax.Array
    scores: jax.Array


def soft_layer(
    state: SoftCascade,
    mix: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    finish: Callable[[jax.Array, jax.Array], jax.Array],
    keep: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> SoftCascade:
    """Returns the state after one layer, which computes all tokens under their gates.

    A pruned token stays pruned: gates are multiplied from layer to layer.

    Args:
      state: state before the layer.
      mix: `(x, gates) -> (outputs, probs)`, using `gated_attend`.
      finish: `(x, outputs) -> x`, the rest of a layer after its attention.
      keep: `(scores, valid) -> gates` of this layer, such as `straight_keep` with a
        count; valid is False for pruned tokens. None keeps all.

    Returns:
      A `SoftCascade`.

    Example:
      A layer that keeps tokens of an importance above 1:

      >>> import jax.numpy as jnp
      >>> state = SoftCascade(jnp.array([[1.0], [2.0]]), jnp.ones(2), jnp.zeros(2))
      >>> probs = jnp.array([[[0.75, 0.25], [0.5, 0.5]]])
      >>> mix = lambda x, gates: (x[None], probs)
      >>> finish = lambda x, outputs: x + outputs[0]
      >>> state = soft_layer(state, mix, finish, lambda scores, valid: scores > 1)
      >>> state.scores.tolist(), state.gates.tolist()
      ([1.25, 0.75], [1.0, 0.0])
    """
    outputs, probs = mix(state.x, state.gates)
    scores = state.scores + gated_importance(probs, state.gates)
    gates = state.gates
    if keep is not None:
        gates = gates * keep(scores, gates > 0).astype(gates.dtype)
    return SoftCascade(finish(state.x, outputs), gates, scores)


def gate_heads(outputs: jax.Array, gates: jax.Array) -> jax.Array:
    """Multiplies outputs by the gates of their heads.

    Args:
      outputs: (..., heads, tokens, dim).
      gates: (..., kv heads).

    Returns:
      An array in the shape and type of the outputs.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      Of four query heads, the first two share a KV head, and so do the others:

      >>> import jax.numpy as jnp
      >>> gate_heads(jnp.ones((4, 1, 1)), jnp.array([1.0, 0.5])).ravel().tolist()
      [1.0, 1.0, 0.5, 0.5]
    """
    each = _heads.repeat_per_kv_head(gates, outputs.shape[-3])
    return outputs * each[..., None, None].astype(outputs.dtype)


def over_budget(cost: Any, budget: Any) -> jax.Array:
    """Returns a penalty for costs above a budget.

    max(0, log(cost / budget)): on the same scale for tokens, heads and FLOPs.

    Args:
      cost: positive real number: the sum of gates, or `multiply_adds` of a `Schedule`
        of such sums.
      budget: positive, in the unit of the cost.

    Returns:
      A float32 scalar, 0 within the budget.

    Example:
      >>> float(over_budget(8.0, 10.0)), round(float(over_budget(20.0, 10.0)), 3)
      (0.0, 0.693)
    """
    share = jnp.asarray(cost, jnp.float32) / jnp.asarray(budget, jnp.float32)
    return jnp.maximum(jnp.log(share), 0)


def _aside(
    scores: jax.Array, real: jax.Array, protected: jax.Array | None, far: jax.Array
) -> jax.Array:
    """Moves scores of padding far below all others, and protected ones far above."""
    fixed = jax.lax.stop_gradient(scores)
    low = jnp.min(jnp.where(real, fixed, jnp.inf), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(real, fixed, -jnp.inf), axis=-1, keepdims=True)
    if protected is not None:
        scores = jnp.where(protected & real, high + far, scores)
    below = jnp.where(jnp.isfinite(low), low - far, 0)  # a row of padding only
    return jnp.where(real, scores, below)
