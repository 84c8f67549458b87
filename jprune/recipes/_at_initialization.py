"""Pruning at initialization: prune first, then train the sparse network."""

import jax
import optax

from jprune import links
from jprune._core import base


def random_erk(
    sparsity: base.Sparsity, key: jax.Array, *, pins: links.Pins = ()
) -> base.Pruner:
    """Random pruning with Erdos-Renyi-Kernel sparsities per layer.

    Which weights stay is drawn at random; how many stay in each layer goes with
    the sum of its axes over their product. The control that every criterion has
    to beat, and a strong one in wide networks.

    Args:
      sparsity: the fraction removed of all weights, in [0, 1], or a schedule.
      key: a `jax.random.key` for the draw.
      pins: rules `(pattern, sparsity)` for layers with a fixed sparsity, at every step
        of a schedule; ERK+ is a dense last layer, `[("head/kernel", 0.0)]`.

    Returns:
      A pruner. The draw is the same at each refresh: at a constant sparsity the masks
      stay, and under a rising schedule they are nested (to one weight per layer, by
      which the rounding of counts may differ).

    Raises:
      PruningError: if a sparsity is outside [0, 1], the key is none, or a rule matches
        no leaf.

    Example:
      >>> import jax, optax, jprune as jp
      >>> pruner = jp.recipes.random_erk(0.9, jax.random.key(0))
      >>> tx = jp.sparsify(optax.adamw(1e-3), pruner, end=0)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
      arXiv:1911.11134, section 3. Liu et al., The Unreasonable Effectiveness of
      Random Pruning, 2022, arXiv:2202.02643. Both draw each weight by itself, so
      that counts vary; here they are exact.
    """
    return optax.chain(
        links.score_by_random(key),
        links.keep_top(sparsity, allocation=links.erdos_renyi_kernel(pins=pins)),
    )


def snip(sparsity: base.Sparsity) -> base.Pruner:
    """SNIP: prunes before training by connection sensitivity |w g|, globally.

    The score is the gradient of the loss with respect to the mask, at a mask of ones,
    on the first batch: use a large batch.

    Args:
      sparsity: fraction of all weights to remove, in [0, 1], or a schedule.

    Returns:
      A pruner that needs gradients.

    Raises:
      PruningError: if the sparsity is outside [0, 1], or gradients are missing.

    Example:
      >>> import optax, jprune as jp
      >>> tx = jp.sparsify(optax.adamw(1e-3), jp.recipes.snip(0.9), end=0)

    References:
      Lee et al., SNIP: Single-shot Network Pruning based on Connection
      Sensitivity, 2019, arXiv:1810.02340, equations 4 to 6. The paper divides
      all scores by their sum, which does not change their order.
    """
    return optax.chain(
        links.score_by_taylor(), links.keep_top(sparsity, scope="global")
    )
