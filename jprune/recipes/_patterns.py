"""Pruning in a fixed pattern."""

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
    """N:M magnitude pruning: keeps the n largest |w| of every m along the input axis.

    The sparsity is 1 - n / m. Sparse matrix units of some GPUs take the pattern 2:4.

    Args:
      n: number of weights kept in each group, in [1, m].
      m: size of a group of consecutive weights; must divide the axis.
      axis: role of the axis that is divided into groups.
      layout: `(path, leaf) -> KernelAxes`, the roles of each leaf's axes.

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
