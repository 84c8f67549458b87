"""Methods that prune in a fixed pattern."""

from typing import Literal

import optax

from jprune import links, tree
from jprune._core import base


def n_of_m(
    n: int,
    m: int,
    *,
    axis: Literal["input", "output"] = "input",
    layout: tree.KernelLayout = tree.kernel_axes,
) -> base.Pruner:
    """N:M magnitude pruning: the n largest |w| of every m along the input axis.

    2:4 is what the sparse matrix units of some GPUs take; sparsity 1 - n / m.

    Args:
      n: weights kept of each group, in [1, m].
      m: the size of a group of consecutive weights; has to divide the axis.
      axis: the role of the axis that is cut into groups.
      layout: which axes of a leaf play which role.

    Returns:
      A pruner.

    Raises:
      PruningError: if not 1 <= n <= m, or m does not divide the axis of a leaf.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params = {"kernel": jnp.array([[1.0], [4.0], [3.0], [2.0]])}
      >>> jp.prune(params, jp.recipes.n_of_m(2, 4))[0]["kernel"][:, 0].tolist()
      [0.0, 4.0, 3.0, 0.0]

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021,
      arXiv:2104.08378.
    """
    return optax.chain(
        links.score_by_magnitude(), links.keep_n_of_m(n, m, axis=axis, layout=layout)
    )
