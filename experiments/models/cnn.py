"""A small convolutional network: two 3x3 convolutions and two dense layers."""

import jax

from experiments.models import layers


def init(
    key: jax.Array,
    image_shape: tuple[int, int, int] = (8, 8, 1),
    classes: int = 10,
    *,
    channels: tuple[int, int] = (16, 32),
    hidden: int = 64,
) -> dict[str, dict[str, jax.Array]]:
    """Returns the parameters of the network.

    Args:
      key: PRNG key.
      image_shape: `(height, width, channels)`; height and width divisible by 4.
      classes: number of logits.
      channels: output channels of the two convolutions.
      hidden: width of the first dense layer.

    Returns:
      `{"conv1", "conv2", "dense1", "dense2"}`, each `{"kernel", "bias"}`, float32.

    Raises:
      ValueError: height or width is not divisible by 4.
    """
    height, width, depth = image_shape
    if height % 4 or width % 4:
        raise ValueError(
            f"two 2x2 poolings need sides divisible by 4, got {image_shape}"
        )
    first, second = channels
    shapes = {
        "conv1": (3, 3, depth, first),
        "conv2": (3, 3, first, second),
        "dense1": (height * width // 16 * second, hidden),
        "dense2": (hidden, classes),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: layers.init_layer(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(params: dict[str, dict[str, jax.Array]], images: jax.Array) -> jax.Array:
    """Returns the logits `(n, classes)` of NHWC images."""
    # Pooling first: both orders are the same function, and this one applies ReLU to
    # a quarter of the values.
    x = jax.nn.relu(layers.max_pool(layers.conv(params["conv1"], images)))
    x = jax.nn.relu(layers.max_pool(layers.conv(params["conv2"], x)))
    x = jax.nn.relu(layers.dense(params["dense1"], x.reshape(x.shape[0], -1)))
    return layers.dense(params["dense2"], x)
