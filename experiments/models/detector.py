"""A one-stage detector with the structure of YOLOv5, at toy size.

It has all structures that couple channels of different layers: concatenated cross-stage
blocks, residual sums inside of them, spatial pyramid pooling, a neck that goes up and
down again, and a 1x1 convolution with a bias for each of two scales. Normalization is
that of `resnet`: by the statistics of the batch, or by given ones.

References:
  Wang et al., CSPNet: A New Backbone that can Enhance Learning Capability of CNN, 2019,
  arXiv:1911.11929. He et al., Spatial Pyramid Pooling in Deep Convolutional Networks
  for Visual Recognition, 2014, arXiv:1406.4729. Liu et al., Path Aggregation Network
  for Instance Segmentation, 2018, arXiv:1803.01534.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models import layers, resnet

STRIDES = (4, 8)  # of the two scales, in pixels
WINDOWS = (3, 5)  # of the pyramid's pooling

Unit = Callable[[dict[str, Any], jax.Array, int], jax.Array]


class Result(NamedTuple):
    """Result of a forward pass.

    Attributes:
      outputs: for each scale `(n, height, width, 5 + classes)`: offsets of the centre,
        logarithms of the size, and logits of objectness and of each class.
      features: for each scale the input of its output layer, `(n, h, w, channels)`.
      stats: the moments that were used, in order.
    """

    outputs: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    stats: list[resnet.Moments]


def init(key: jax.Array, classes: int = 3, *, width: int = 12) -> dict[str, Any]:
    """Returns the parameters.

    Args:
      key: PRNG key.
      classes: number of classes.
      width: channels of the first layer; the others have twice and four times as many.

    Returns:
      `{"fine", "coarse", "neck", "heads"}`: the layers before each scale, those that
      mix the scales, and the outputs. A unit is a convolution's `"kernel"` and a
      `"norm"` of `"scale"` and `"bias"`. All float32.
    """
    keys = iter(jax.random.split(key, 64))
    narrow, wide = 2 * width, 4 * width

    def unit(inputs: int, outputs: int, window: int = 1) -> dict[str, Any]:
        shape = (window, window, inputs, outputs)
        # Scales of 0.5 as in network slimming, so that the L1 reaches zero sooner.
        norm = {"scale": jnp.full(outputs, 0.5), "bias": jnp.zeros(outputs)}
        kernel = layers.init_layer(next(keys), shape)["kernel"]
        return {"kernel": kernel, "norm": norm}

    def cross(inputs: int, outputs: int) -> dict[str, Any]:
        half = outputs // 2
        return {
            "main": unit(inputs, half),
            "reduce": unit(half, half),
            "widen": unit(half, half, 3),
            "past": unit(inputs, half),
            "merge": unit(2 * half, outputs),
        }

    def head(inputs: int) -> dict[str, Any]:
        kernel = jax.random.normal(next(keys), (1, 1, inputs, 5 + classes))
        # Few cells have an object: the initial bias accounts for that.
        bias = jnp.zeros(5 + classes).at[4].set(-3.0)
        return {"kernel": kernel / math.sqrt(inputs), "bias": bias}

    return {
        "fine": {
            "stem": unit(3, width, 3),
            "down": unit(width, narrow, 3),
            "cross": cross(narrow, narrow),
        },
        "coarse": {
            "down": unit(narrow, wide, 3),
            "cross": cross(wide, wide),
            "before": unit(wide, narrow),
            "pyramid": unit(narrow * (1 + len(WINDOWS)), wide),
        },
        "neck": {
            "lateral": unit(wide, narrow),
            "up": cross(2 * narrow, narrow),
            "down": unit(narrow, narrow, 3),
            "back": cross(2 * narrow, wide),
        },
        "heads": {"fine": head(narrow), "coarse": head(wide)},
    }


def forward(params: dict[str, Any], images: jax.Array, stats: Any = None) -> Result:
    """Returns the raw outputs, their features, and the normalization statistics.

    Args:
      params: parameters, from `init`.
      images: `(n, height, width, 3)`; sides are multiples of 8.
      stats: `stats` of another result; None for those of these images.
    """
    given = iter(stats or ())
    used: list[resnet.Moments] = []

    def unit(layer: dict[str, Any], x: jax.Array, stride: int = 1) -> jax.Array:
        x = layers.conv(layer, x, stride)
        used.append(resnet.moments(x) if stats is None else next(given))
        return jax.nn.relu(resnet.normalize(layer["norm"], x, used[-1]))

    fine, coarse = params["fine"], params["coarse"]
    neck, heads = params["neck"], params["heads"]
    x = unit(fine["down"], unit(fine["stem"], images, 2), 2)
    near = cross(unit, fine["cross"], x, shortcut=True)
    x = cross(unit, coarse["cross"], unit(coarse["down"], near, 2), shortcut=True)
    far = unit(coarse["pyramid"], pyramid(unit(coarse["before"], x)))
    lateral = unit(neck["lateral"], far)
    near = join(upsample(lateral), near)
    near = cross(unit, neck["up"], near, shortcut=False)
    far = join(unit(neck["down"], near, 2), lateral)
    far = cross(unit, neck["back"], far, shortcut=False)
    outputs = layers.conv(heads["fine"], near), layers.conv(heads["coarse"], far)
    return Result(outputs, (near, far), used)


def cross(
    unit: Unit, layer: dict[str, Any], x: jax.Array, *, shortcut: bool
) -> jax.Array:
    """Cross-stage block: a bottleneck on one half, the identity on the other."""
    main = unit(layer["main"], x, 1)
    deep = unit(layer["widen"], unit(layer["reduce"], main, 1), 1)
    past = unit(layer["past"], x, 1)
    return unit(layer["merge"], join(main + deep if shortcut else deep, past), 1)


def pyramid(x: jax.Array) -> jax.Array:
    """Concatenates features with their max pooling over several window sizes."""
    pooled = [
        jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 1, 1, 1), "SAME"
        )
        for size in WINDOWS
    ]
    return join(x, *pooled)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles height and width by repeating pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def join(*parts: jax.Array) -> jax.Array:
    """Concatenates features along the channels."""
    return jnp.concatenate(parts, axis=-1)
