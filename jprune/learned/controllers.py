"""Reaching a sparsity exactly, by methods of which it is only an outcome.

    lagrangian           multipliers that rise until the expected sparsity is met
    shift_to_sparsity    one constant added to all logits, and it is met
    shift_thresholds     one constant added to all learned thresholds, likewise

The first is a term of the loss and gets there in the course of training; the others
are projections: call them between steps, or once at the end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune import gates, selection
from jprune._core import base, roots

_SATURATED = 1024.0  # a logit at which a probability is 0 or 1 whatever its scale
_HALVINGS = 50


class Multipliers(NamedTuple):
    """The multipliers of `lagrangian`, to be trained with the weights.

    Attributes:
      linear: lambda_1, a float32 scalar.
      quadratic: lambda_2, a float32 scalar.
    """

    linear: jax.Array
    quadratic: jax.Array


def init_multipliers() -> Multipliers:
    """Returns the multipliers to begin with, both 0."""
    return Multipliers(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def lagrangian(
    sparsity: jax.Array, target: base.Scalar, multipliers: Multipliers
) -> jax.Array:
    """Returns the term that brings a sparsity to its target, to add to a loss.

    lambda_1 (target - s) + lambda_2 (target - s)^2

    The loss is minimised over everything but the multipliers, over which it is
    maximised: their derivatives are negated here, so one optimizer that descends
    trains all of them together. Give them a step size of their own.

    Args:
      sparsity: s, a scalar, differentiable: `expected_sparsity`.
      target: in [0, 1]; may be traced, so that it can rise from 0 in a warm-up.
      multipliers: from `init_multipliers`, then trained.

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

    logits + delta with expected_sparsity(params, probability(logits + delta)) =
    target, by bisection. The order of the logits and their differences stay.

    Args:
      params: any pytree of arrays.
      logits: the params' tree, as `probabilities` in `expected_sparsity`: a logit
        that stands for a channel counts its weights, leaves without gates stay.
      target: in [0, 1]; may be traced. At 0 and 1, where delta is infinite, the
        logits become about 1000 in size.
      probability: increasing, elementwise, from 0 to 1 for logits from -1000 to
        1000; `jprune.gates.sigmoid_gate` for plain sigmoids.

    Returns:
      The logits' tree, shapes and dtypes. The sum is met up to the rounding of
      float32, and of the logits' dtype. No derivative flows through delta.

    Raises:
      PruningError: if the target is a known number outside [0, 1], or logits do
        not fit their leaf, which is named.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import gates
      >>> params, logits = {"w": jnp.ones((5, 2))}, {"w": jnp.array([[1.0, 3.0]])}
      >>> moved = shift_to_sparsity(params, logits, 0.5, gates.sigmoid_gate)
      >>> moved["w"].round(3).tolist()
      [[-1.0, 1.0]]
    """
    target = jnp.asarray(selection.check_sparsity(target), jnp.float32)
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
    """Returns how far weights are above their layer's learned threshold.

    x = logit |w| - s_l, which is positive where |w| > sigma(s_l). One constant
    added to all s_l lowers all scores alike: whatever the constant, the weights
    that pass their threshold are the best of these scores.

    Args:
      params: any pytree of floating arrays.
      logits: the params' tree of scalars s_l; `optax.MaskedNode` for leaves without
        a threshold.

    Returns:
      The logits' tree, with float32 scores in the weights' shapes: infinite for
      |w| >= 1, which passes any threshold, and minus infinite for 0, which passes
      none.

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
    """Adds one constant to all learned thresholds, so that k weights pass theirs.

    s_l + delta, delta halfway between the smallest of the k best
    `threshold_scores` and the largest of the others.

    Args:
      params: any pytree of floating arrays.
      logits: as in `threshold_scores`.
      k: how many weights pass, an integer; may be traced. Weights of size 1 and
        more always pass, and zeros never; weights that tie pass together.

    Returns:
      The logits' tree, dtypes and shapes. A count is met as far as thresholds in
      the logits' dtype can tell weights apart.

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
      As for `threshold_scores`; there the sparsity is what weight decay on s_l
      makes of it.
    """
    leaves = [s.astype(jnp.float32) for s in jax.tree.leaves(logits)]
    if not leaves:
        return logits
    # Thresholds begin at -3200 in the paper's code: only differences are small
    # enough for float32 to tell weights apart.
    middle = jnp.mean(jnp.stack(leaves))
    relative = jax.tree.map(lambda s: s.astype(jnp.float32) - middle, logits)
    scores = threshold_scores(params, relative)
    cut = _cut(scores, selection.top_k(scores, k))
    return jax.tree.map(lambda s, x: (x + cut).astype(s.dtype), logits, relative)


def _cut(scores: base.Scores, masks: base.Masks) -> jax.Array:
    """A finite number below the finite scores that are kept and above the others."""
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
