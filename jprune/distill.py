"""What a smaller network can learn from the larger one, whatever their widths.

Spatial attention: where in a picture the features are strong. Channels are summed out,
so that a pruned network's map has the shape of the dense one's:

    loss = task_loss + 100 * attention_loss(maps(small_features), maps(features))
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune import tree
from jprune._core import base, precision


def attention_map(features: jax.Array, *, power: float = 2.0) -> jax.Array:
    """Returns where features are strong: a map of Euclidean length 1.

        M = F / ||F||,    F_hw = sum over channels c of |A_hwc|^power

    Args:
      features: `(..., height, width, channels)`, floating; NHWC images or one of them.
      power: positive; the higher, the more the strongest channel counts.

    Returns:
      `(..., height, width)`, float32 or wider. Features that are 0 everywhere give 0,
      also as a gradient.

    Raises:
      PruningError: if there are fewer than three axes, the type is not floating, or
        the power is not positive.

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
            "Features are floating, (..., height, width, channels); got "
            f"{features.dtype}{features.shape}."
        )
    if power <= 0:
        raise base.PruningError(f"A power is positive; got {power}.")
    # Over the largest, which changes nothing: squares of powers leave float32's range.
    sizes = jnp.abs(precision.wide(features))
    most = jax.lax.stop_gradient(sizes.max((-3, -2, -1), keepdims=True))
    sums = jnp.sum((sizes / jnp.where(most > 0, most, 1.0)) ** power, axis=-1)
    squares = jnp.square(sums).sum((-2, -1), keepdims=True)
    return sums * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0))


def attention_loss(student: Any, teacher: Any) -> jax.Array:
    """Returns how far a network's attention maps are from those of another.

        mean over the maps and the pictures of (sum over h, w of (M_S - M_T)^2)

    in [0, 2], as no entry is negative.

    Args:
      student: a pytree of maps `(..., height, width)` from `attention_map`, one for
        each place in the network that is compared.
      teacher: the same of the other network; no gradient goes there.

    Returns:
      A scalar, float32 or wider.

    Raises:
      PruningError: if there is no map, the trees differ, or shapes of two maps do.

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
            f"Maps are compared one by one, shape by shape; got {shapes[0]} and "
            f"{shapes[1]}."
        )
    each = [
        jnp.square(m - jax.lax.stop_gradient(theirs[path])).sum((-2, -1)).mean()
        for path, m in mine.items()
    ]
    return jnp.stack(each).mean()
