"""Magnitude pruning: prunes the weights with the smallest absolute values."""

from typing import Literal

import optax

from jprune import links, selection
from jprune._core import base


def magnitude(
    sparsity: base.Sparsity, *, scope: Literal["leaf", "global"] = "leaf"
) -> base.Pruner:
    """Magnitude pruning: prunes the smallest |w| of each layer.

    For one-shot pruning, pass it to `jprune.prune`, or to `sparsify` with `end=begin`,
    and keep training. With a `jprune.geometric` schedule in rounds it is iterative
    magnitude pruning.

    Args:
      sparsity: fraction of each layer (scope "leaf") or of all weights (scope
        "global") to remove, in [0, 1], or a schedule.
      scope: "leaf" ranks the weights of each layer, "global" those of all layers
        together. Global ranking can empty a layer: see `global_magnitude`.

    Returns:
      A pruner.

    Raises:
      PruningError: if the sparsity is no number in [0, 1], or `scope` is not one of its
        values.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> jp.prune(params, jp.recipes.magnitude(0.75))[0]["kernel"].tolist()
      [[3.0, 0.0], [0.0, 0.0]]

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural
      Networks, 2015, arXiv:1506.02626, section 3.
    """
    return optax.chain(
        links.score_by_magnitude(), links.keep_top(sparsity, scope=scope)
    )


def gradual_magnitude(
    sparsity: base.Scalar,
    *,
    begin: int,
    steps: int,
    initial: float = 0.0,
    scope: Literal["leaf", "global"] = "leaf",
) -> base.Pruner:
    """Gradual magnitude pruning (GMP) along a cubic sparsity schedule.

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / T)^3 from t_0 = `begin` to
    t_0 + T, then s_f. The paper prunes each layer to the same sparsity.

    Args:
      sparsity: final sparsity s_f, in [0, 1]; may be traced.
      begin: training step t_0 at which pruning starts.
      steps: number of steps T from s_i to s_f, positive.
      initial: sparsity s_i at `begin`, in [0, 1].
      scope: "leaf" ranks the weights of each layer, "global" those of all layers
        together.

    Returns:
      A pruner whose schedule runs on the training step. `sparsify` refreshes the masks
      from `begin` to `begin + steps`; they are fixed afterwards, as in the paper.

    Raises:
      PruningError: if a number is out of range.

    Example:
      >>> import optax, jprune as jp
      >>> pruner = jp.recipes.gradual_magnitude(0.9, begin=1_000, steps=20_000)
      >>> tx = jp.sparsify(optax.adamw(1e-3), pruner, every=100)

    References:
      Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning
      for model compression, 2017, arXiv:1710.01878, equation 1.
    """
    return magnitude(
        links.cubic(sparsity, begin=begin, steps=steps, initial=initial),
        scope=scope,
    )


def global_magnitude(
    sparsity: base.Sparsity, *, min_fraction: float = 0.0005
) -> base.Pruner:
    """Global magnitude pruning with a minimum per layer (Global MP with MT).

    One threshold over all layers determines how many weights each layer keeps. Layers
    below the minimum are raised to it, the others are lowered to compensate, and each
    layer then prunes its own smallest weights. With a minimum of 0, a layer can lose
    all of its weights at high sparsity (layer collapse).

    Args:
      sparsity: fraction of all weights to remove, in [0, 1], or a schedule.
      min_fraction: minimum that each layer keeps, as a fraction of all weights, in
        [0, 1]; smaller layers stay dense. The default is the paper's.

    Returns:
      A pruner.

    Raises:
      PruningError: if a number is out of range, or the layers' minimums sum to more
        than the sparsity leaves.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params = {"a": {"kernel": jnp.array([[9.0, 8.0, 7.0, 6.0]])},
      ...           "b": {"kernel": jnp.array([[0.1, 0.2, 0.3, 0.5]])}}
      >>> pruner = jp.recipes.global_magnitude(0.5, min_fraction=0.125)
      >>> jp.prune(params, pruner)[0]["b"]["kernel"].tolist()
      [[0.0, 0.0, 0.0, 0.5]]

    References:
      Gupta et al., Is Complexity Required for Neural Network Pruning? A Case
      Study on Global Magnitude Pruning, 2022, arXiv:2209.14624, section 3. The
      paper's rescaling loop is solved for its fixed point; counts are exact.
    """
    selection.check_sparsity(sparsity)
    return optax.chain(
        links.score_by_magnitude(),
        links.keep_top(sparsity, allocation=links.rescaled_global(min_fraction)),
    )
