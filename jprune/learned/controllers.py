"""Controllers: reach an exact sparsity with methods that only influence it.

    lagrangian           a loss term whose multipliers grow until the target is met
    shift_to_sparsity    adds one constant to all logits so that the target is met
    shift_thresholds     adds one constant to all learned thresholds, likewise

`lagrangian` reaches the target during training. The others are projections: call them
between steps, or once at the end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune import gates, selection
from jprune._core import base, roots

_SATURATED = 1024.0  # a logit at which every probability is 0 or 1
_HALVINGS = 50


class Multipliers(NamedTuple):
    """Multipliers of `lagrangian`, which are trained with the weights.

    Attributes:
      linear: lambda_1, a float32 scalar.
      quadratic: lambda_2, a float32 scalar.
    """

    linear: jax.Array
    quadratic: jax.Array


def init_multipliers() -> Multipliers:
    """Returns the initial multipliers, both 0.

    Returns:
      `Multipliers`, float32 scalars.

    Example:
      >>> at = init_multipliers()
      >>> float(at.linear), float(at.quadratic)
      (0.0, 0.0)
    """
    return Multipliers(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def lagrangian(
    sparsity: jax.Array, target: base.Scalar, multipliers: Multipliers
) -> jax.Array:
    """Returns a loss term that brings a sparsity to its target.

        lambda_1 (target - s) + lambda_2 (target - s)^2

    The loss is minimised over weights and gates and maximised over the multipliers.
    Their derivatives are negated here, so that one descending optimizer trains all of
    them. Give the multipliers a learning rate of their own.

    Args:
      sparsity: s, a differentiable scalar such as `jprune.gates.expected_sparsity`.
      target: target sparsity in [0, 1]; may be traced, to rise from 0 in a warm-up.
      multipliers: the multipliers, from `init_multipliers` at first.

    Returns:
      A float32 scalar.

    Raises:
      PruningError: if the target is a known number outside [0, 1].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> at = Multipliers(jnp.float32(2.0), jnp.float32(4.0))
      >>> float(lagrangian(jnp.float32(0.25), 0.75, at))
      2.0
      >>> slopes = jax.grad(lagrangian, argnums=2)(jnp.float32(0.25), 0.75, at)
      >>> float(slopes.linear), float(slopes.quadratic)
      (-0.5, -0.25)

    References:
      Wang et al., Structured Pruning of Large Language Models, 2019,
      arXiv:1910.04732: the augmented Lagrangian, as in the authors' code
      (github.com/asappresearch/flop), where it is written with s - target.
    """
    target = jnp.asarray(selection.check_sparsity(target), jnp.float32)
    gap = target - sparsity.astype(jnp.float32)
    ascending = gates.reverse_gradient(multipliers)
    return ascending.linear * gap + ascending.quadratic * gap**2


def shift_to_sparsity(
    params: base.Params,
    logits: Any,
    target: base.Scalar,
    probability: Callable[[jax.Array], jax.Array] = gates.hard_concrete_nonzero,
) -> Any:
    """Adds one constant to all logits, so that the expected sparsity is the target.

    Finds delta with expected_sparsity(params, probability(logits + delta)) = target by
    bisection. The order of the logits and their differences do not change.

    Args:
      params: any pytree of arrays.
      logits: the params' tree, like `probabilities` in `expected_sparsity`: the logit
        of a channel counts all of its weights; leaves without gates are unchanged.
      target: target sparsity in [0, 1]; may be traced. At 0 and 1, where delta is
        infinite, logits of about 1000 in magnitude result.
      probability: increasing elementwise function, from 0 to 1 for logits from -1000
        to 1000; `jprune.gates.sigmoid_gate` for plain sigmoids.

    Returns:
      The logits' tree, shapes and dtypes. The target is met up to rounding in float32
      and in the logits' dtype. No derivative flows through delta.

    Raises:
      PruningError: if the target is a number outside [0, 1], or the logits do not fit
        their leaf; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import gates
      >>> params, logits = {"w": jnp.ones((5, 2))}, {"w": jnp.array([[1.0, 3.0]])}
      >>> moved = shift_to_sparsity(params, logits, 0.5, gates.sigmoid_gate)
      >>> moved["w"].round(3).tolist()
      [[-1.0, 1.0]]
    """
    target = jnp.asarray(selection.check_sparsity(target), jnp.float32)
    target = selection.clip_sparsity(target)
    fixed, target = lax.stop_gradient((logits, target))
    found = [x.astype(jnp.float32) for _, x in gates.weighted(params, fixed)]
    filled = [x for x in found if x.size]
    if not filled:
        return logits

    def denser(delta: jax.Array) -> jax.Array:
        moved = _map_gates(lambda x: probability(x.astype(jnp.float32) + delta), fixed)
        return target - gates.expected_sparsity(params, moved)

    low = -_SATURATED - jnp.max(jnp.stack([jnp.max(x) for x in filled]))
    high = _SATURATED - jnp.min(jnp.stack([jnp.min(x) for x in filled]))
    low, high = roots.bisect(denser, low, high, _HALVINGS)
    delta = low + (high - low) / 2
    return _map_gates(lambda x: (x.astype(jnp.float32) + delta).astype(x.dtype), logits)


def threshold_scores(params: base.Params, logits: Any) -> base.Scores:
    """Returns the distances of weights to the learned threshold of their layer.

    x = logit |w| - s_l, which is positive where |w| > sigma(s_l). A constant added to
    all s_l lowers all scores equally, so that for every constant the weights above
    their threshold are those with the highest scores.

    Args:
      params: any pytree of floating arrays.
      logits: the params' tree of scalars s_l; `optax.MaskedNode` for leaves without
        a threshold.

    Returns:
      The logits' tree, with float32 scores in the weights' shapes: infinite for
      |w| >= 1, which is above every threshold, and minus infinite for 0, which is
      above none.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.array([0.5, -0.75, 0.0, 2.0])}
      >>> scores = threshold_scores(params, {"w": jnp.float32(0.0)})["w"]
      >>> [round(float(x), 3) for x in scores]
      [0.0, 1.099, -inf, inf]

    References:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
      Sparsity, 2020, arXiv:2002.03231, where w is replaced by
      sign(w) relu(|w| - sigma(s_l)).
    """

    def leaf(w: jax.Array, s: jax.Array) -> jax.Array:
        size = jnp.abs(w).astype(jnp.float32)
        below = jnp.minimum(size, 1)
        return jnp.log(below) - jnp.log1p(-below) - s.astype(jnp.float32)

    return _map_pairs(leaf, params, logits)


def shift_thresholds(params: base.Params, logits: Any, k: selection.Count) -> Any:
    """Adds one constant to all learned thresholds, so that k weights are above them.

    s_l + delta, with delta halfway between the smallest of the k highest
    `threshold_scores` and the largest of the others.

    Args:
      params: any pytree of floating arrays.
      logits: the params' tree of scalars s_l, as in `threshold_scores`.
      k: number of weights above their threshold, an integer; may be traced. Weights
        of magnitude 1 and more are always above, zeros never; ties stay together.

    Returns:
      The logits' tree, dtypes and shapes. The count is met as far as thresholds in the
      logits' dtype can separate weights.

    Raises:
      NonFiniteScoreError: if a weight or threshold is NaN, as in `jprune.selection`.
      PruningError: if k is not an integer.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.array([0.1, 0.2, 0.3]), "b": jnp.array([0.01, 0.02])}
      >>> logits = {"a": jnp.float32(-9.0), "b": jnp.float32(-12.0)}
      >>> logits = shift_thresholds(params, logits, 3)
      >>> passes = lambda w, s: (jnp.abs(w) > jax.nn.sigmoid(s)).tolist()
      >>> jax.tree.map(passes, params, logits)
      {'a': [False, True, True], 'b': [False, True]}

    References:
      Kusupati et al., 2020, arXiv:2002.03231, where weight decay of s_l determines the
      sparsity.
    """
    leaves = [s.astype(jnp.float32) for s in jax.tree.leaves(logits)]
    if not leaves:
        return logits
    # Thresholds begin at -3200 in the paper's code: only their differences are small
    # enough for float32 to separate weights.
    middle = jnp.mean(jnp.stack(leaves))
    relative = jax.tree.map(lambda s: s.astype(jnp.float32) - middle, logits)
    scores = threshold_scores(params, relative)
    cut = _cut(scores, selection.top_k(scores, k))
    return jax.tree.map(lambda s, x: (x + cut).astype(s.dtype), logits, relative)


def _cut(scores: base.Scores, masks: base.Masks) -> jax.Array:
    """A finite number between the kept and the pruned finite scores."""
    each = list(zip(jax.tree.leaves(scores), jax.tree.leaves(masks), strict=True))
    finite = [jnp.where(jnp.isfinite(x), x, 0) for x, _ in each]
    highest = jnp.max(jnp.stack([jnp.max(x, initial=0) for x in finite])) + 1
    lowest = jnp.min(jnp.stack([jnp.min(x, initial=0) for x in finite])) - 1
    kept = [jnp.min(jnp.where(m, x, jnp.inf), initial=jnp.inf) for x, m in each]
    others = [jnp.max(jnp.where(m, -jnp.inf, x), initial=-jnp.inf) for x, m in each]
    above = jnp.clip(jnp.min(jnp.stack(kept)), lowest, highest)
    below = jnp.clip(jnp.max(jnp.stack(others)), lowest, highest)
    return below + (above - below) / 2


def _map_gates(f: Callable[[jax.Array], jax.Array], logits: Any) -> Any:
    return jax.tree.map(lambda x: f(x) if gates.is_gate(x) else x, logits)


def _map_pairs(f: Callable[..., jax.Array], params: base.Params, logits: Any) -> Any:
    """Maps f over the leaves that have a logit; a `MaskedNode` stays."""
    return jax.tree.map(lambda w, s: jax.tree.map(lambda s: f(w, s), s), params, logits)
