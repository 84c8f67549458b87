"""Distillation losses between networks of different widths.

    attention_map      spatial attention: where the features of an image are strong
    attention_loss     squared distance between the maps of two networks

Attention maps are sums over channels, so those of a pruned network have the same shapes
as those of the dense one:

    loss = task_loss + 100 * attention_loss(maps(small_features), maps(features))
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune import tree
from jprune._core import base, precision


def attention_map(features: jax.Array, *, power: float = 2.0) -> jax.Array:
    """Returns the spatial attention map of features, of Euclidean norm 1.

        M = F / ||F||,    F_hw = sum over channels c of |A_hwc|^power

    Args:
      features: floating-point array `(..., height, width, channels)`.
      power: positive; higher powers give the strongest channels more weight.

    Returns:
      `(..., height, width)` array, float32 or wider. If all features are 0, the map and
      its gradient are 0.

    Raises:
      PruningError: if there are fewer than three axes, the dtype is not floating point,
        or the power is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> attention_map(jnp.array([[[1.0, 1.0]], [[0.0, 0.0]]]))
      Array([[1.],
             [0.]], dtype=float32)

    References:
      Zagoruyko and Komodakis, Paying More Attention to Attention: Improving the
      Performance of Convolutional Neural Networks via Attention Transfer, 2016,
      arXiv:1612.03928, section 3.1.
    """
    if features.ndim < 3 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise base.PruningError(
            "Features are floating-point arrays (..., height, width, channels); got "
            f"{features.dtype}{features.shape}."
        )
    if power <= 0:
        raise base.PruningError(f"power is positive; got {power}.")
    # Divided by the largest, which cancels: squares of powers may overflow float32.
    sizes = jnp.abs(precision.wide(features))
    most = jax.lax.stop_gradient(sizes.max((-3, -2, -1), keepdims=True))
    sums = jnp.sum((sizes / jnp.where(most > 0, most, 1.0)) ** power, axis=-1)
    squares = jnp.square(sums).sum((-2, -1), keepdims=True)
    return sums * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0))


def attention_loss(student: Any, teacher: Any) -> jax.Array:
    """Returns the squared distance between the attention maps of two networks.

        mean over maps and images of (sum over h, w of (M_S - M_T)^2)

    Args:
      student: pytree of maps `(..., height, width)` from `attention_map`, one for each
        layer that is compared.
      teacher: maps of the other network, with the same tree and shapes; gradients do
        not flow to them.

    Returns:
      A scalar in [0, 2], float32 or wider.

    Raises:
      PruningError: if there are no maps, or trees or shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> one, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> attention_loss([one], [other])
      Array(2., dtype=float32)

    References:
      Zagoruyko and Komodakis, Paying More Attention to Attention: Improving the
      Performance of Convolutional Neural Networks via Attention Transfer, 2016,
      arXiv:1612.03928, equation 2, squared as in its code, and without its factor of
      1/2. For pruned detectors: Chu et al., Group channel pruning and spatial attention
      distilling for object detection, 2022, arXiv:2306.01526.
    """
    mine, theirs = tree.by_path(student), tree.by_path(teacher)
    shapes = [{p: jnp.shape(x) for p, x in maps.items()} for maps in (mine, theirs)]
    if not mine or shapes[0] != shapes[1]:
        raise base.PruningError(
            "Student and teacher need at least one map, and maps of the same paths and "
            f"shapes; got {shapes[0]} and {shapes[1]}."
        )
    each = [
        jnp.square(m - jax.lax.stop_gradient(theirs[path])).sum((-2, -1)).mean()
        for path, m in mine.items()
    ]
    return jnp.stack(each).mean()
