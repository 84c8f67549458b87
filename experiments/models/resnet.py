"""The residual network for small images: 6n + 2 layers in three stages.

Batch normalization without hidden state: `apply(params, images)` uses the statistics of
its batch, as in training, and `apply(params, images, stats)` those that `batch_stats`
computes in one pass for the same params. There is no running mean that a mask or an
interpolation could invalidate.

References:
  He et al., Deep Residual Learning for Image Recognition, 2016, arXiv:1512.03385,
  section 4.2 and table 6.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models import layers

EPSILON = 1e-5  # added to variances


class Moments(NamedTuple):
    """Mean and variance of a normalization, `(channels,)` each."""

    mean: jax.Array
    variance: jax.Array


def init(
    key: jax.Array,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    *,
    depth: int = 20,
    width: int = 16,
) -> dict[str, Any]:
    """Returns the parameters of the network.

    Args:
      key: PRNG key.
      image_shape: `(height, width, channels)`.
      classes: number of logits.
      depth: number of layers with kernels, 6n + 2: 8, 14, 20, 32, 44, 56, 110.
      width: channels of the first stage; the others have twice and four times as many.

    Returns:
      `{"stem", "stages", "head"}`: a unit, three lists of n blocks of two units
      each, and a dense layer. A unit is a convolution's `"kernel"` and a `"norm"`
      of `"scale"` and `"bias"`. All float32.

    Raises:
      ValueError: the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2: 8, 14, 20, ...; got {depth}")
    widths = [width, width, 2 * width, 4 * width]
    keys = iter(jax.random.split(key, depth))
    stages = []
    for before, after in itertools.pairwise(widths):
        inputs = [before] + [after] * ((depth - 2) // 6 - 1)
        stages.append(
            [
                {"first": _unit(keys, n, after), "second": _unit(keys, after, after)}
                for n in inputs
            ]
        )
    return {
        "stem": _unit(keys, image_shape[-1], width),
        "stages": stages,
        "head": layers.init_layer(next(keys), (4 * width, classes)),
    }


def _unit(keys: Any, inputs: int, outputs: int) -> dict[str, Any]:
    kernel = layers.init_layer(next(keys), (3, 3, inputs, outputs))["kernel"]
    norm = {"scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}
    return {"kernel": kernel, "norm": norm}


def apply(params: dict[str, Any], images: jax.Array, stats: Any = None) -> jax.Array:
    """Returns the logits `(n, classes)` of NHWC images.

    Args:
      params: parameters, from `init`.
      images: `(n, height, width, channels)`.
      stats: result of `batch_stats`; None for the statistics of these images.
    """
    return forward(params, images, stats)[0]


def batch_stats(params: dict[str, Any], images: jax.Array) -> Any:
    """Returns the `Moments` of every normalization on these images, in one pass.

    Recalibrates batch normalization after weights have changed, on about a thousand
    images of the train split.
    """
    return forward(params, images, None)[1]


def forward(
    params: dict[str, Any], images: jax.Array, stats: Any
) -> tuple[jax.Array, Any]:
    """Returns the logits, and the statistics that were used, in order."""
    given = iter(stats or ())
    used = []

    def unit(layer: dict[str, Any], x: jax.Array, stride: int = 1) -> jax.Array:
        x = layers.conv(layer, x, stride)
        used.append(moments(x) if stats is None else next(given))
        return normalize(layer["norm"], x, used[-1])

    x = jax.nn.relu(unit(params["stem"], images))
    for i, stage in enumerate(params["stages"]):
        for j, block in enumerate(stage):
            stride = 2 if i > 0 and j == 0 else 1
            y = jax.nn.relu(unit(block["first"], x, stride))
            y = unit(block["second"], y)
            x = jax.nn.relu(y + shortcut(x, stride, y.shape[-1]))
    return layers.dense(params["head"], x.mean((1, 2))), used


def moments(x: jax.Array) -> Moments:
    """Returns mean and variance of each channel of NHWC values."""
    mean = x.mean((0, 1, 2))
    return Moments(mean, jnp.square(x - mean).mean((0, 1, 2)))


def normalize(norm: dict[str, jax.Array], x: jax.Array, by: Moments) -> jax.Array:
    """Normalizes, scales and shifts each channel."""
    scale = norm["scale"] * jax.lax.rsqrt(by.variance + EPSILON)
    return (x - by.mean) * scale + norm["bias"]


def shortcut(x: jax.Array, stride: int, channels: int) -> jax.Array:
    """Returns every `stride`-th pixel with zeros for new channels (option A)."""
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
