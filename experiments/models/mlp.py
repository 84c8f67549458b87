"""A small multilayer perceptron (by default LeNet-300-100)."""

import math
from collections.abc import Sequence

import jax

from experiments.models import layers


def init(
    key: jax.Array,
    image_shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    *,
    hidden: Sequence[int] = (300, 100),
) -> dict[str, dict[str, jax.Array]]:
    """Returns the parameters of the network.

    Args:
      key: PRNG key.
      image_shape: shape of one image; images are flattened.
      classes: number of logits.
      hidden: widths of the hidden layers.

    Returns:
      `{"dense1", "dense2", ...}`, each `{"kernel", "bias"}`, float32.
    """
    widths = (math.prod(image_shape), *hidden, classes)
    keys = jax.random.split(key, len(widths) - 1)
    return {
        f"dense{i + 1}": layers.init_layer(k, (widths[i], widths[i + 1]))
        for i, k in enumerate(keys)
    }


def apply(params: dict[str, dict[str, jax.Array]], images: jax.Array) -> jax.Array:
    """Returns the logits `(n, classes)` of images of any shape `(n, ...)`."""
    x = images.reshape(images.shape[0], -1)
    for i in range(1, len(params)):
        x = jax.nn.relu(layers.dense(params[f"dense{i}"], x))
    return layers.dense(params[f"dense{len(params)}"], x)
