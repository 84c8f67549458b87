"""ResNet-50 as a plain function of the variables of its Flax module.

The same network without a module, for comparison: it separates the cost of tracing a
module from the cost of analysing the trace.

References:
  He et al., Deep Residual Learning for Image Recognition, 2016, arXiv:1512.03385,
  table 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def apply(variables: Any, images: jax.Array, *, depths: tuple[int, ...]) -> jax.Array:
    """Returns the logits `(n, classes)` of NHWC images.

    Args:
      variables: `"params"` and `"batch_stats"` of `zoo.residual.ResNet` with
        bottlenecks and `pool=True`.
      images: `(n, height, width, 3)`.
      depths: number of blocks of each stage; the later stages start with stride 2.
    """
    params, stats = variables["params"], variables["batch_stats"]
    x = convolve(params["Conv_0"], images, 2)
    x = jax.nn.relu(normalize(params["BatchNorm_0"], stats["BatchNorm_0"], x))
    x = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding="SAME"
    )
    strides = [2 if i and not j else 1 for i, n in enumerate(depths) for j in range(n)]
    for i, stride in enumerate(strides):
        name = f"Bottleneck_{i}"
        x = block(params[name], stats[name], x, stride)
    return x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def block(params: Any, stats: Any, x: jax.Array, stride: int) -> jax.Array:
    """Returns 1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right)."""

    def unit(conv: int, norm: int, x: jax.Array, stride: int = 1) -> jax.Array:
        x = convolve(params[f"Conv_{conv}"], x, stride)
        name = f"BatchNorm_{norm}"
        return normalize(params[name], stats[name], x)

    y = jax.nn.relu(unit(0, 0, x))
    # The module creates its last normalization before the one in the middle.
    y = unit(2, 1, jax.nn.relu(unit(1, 2, y, stride)))
    return jax.nn.relu((unit(3, 3, x, stride) if "Conv_3" in params else x) + y)


def convolve(layer: Any, x: jax.Array, stride: int) -> jax.Array:
    """Returns the same-padded convolution without a bias."""
    return lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def normalize(norm: Any, stats: Any, x: jax.Array) -> jax.Array:
    """Normalizes by the running statistics, then scales and shifts."""
    scale = lax.rsqrt(stats["var"] + 1e-5) * norm["scale"]
    return (x - stats["mean"]) * scale + norm["bias"]
