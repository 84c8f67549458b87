"""A small vision transformer as pure functions: images as patches and a class token."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.models import encoder, layers

Params = dict[str, Any]


def init(
    key: jax.Array,
    image_shape: tuple[int, ...],
    classes: int = 10,
    *,
    patch: int,
    width: int,
    depth: int,
) -> Params:
    """Returns random parameters, float32.

    Args:
      key: PRNG key.
      image_shape: `(height, width, channels)` of one image.
      classes: number of logits.
      patch: side of the square patches; it divides both sides of an image.
      width: width of the residual stream; feed-forward layers are four times as wide.
      depth: number of layers.

    Returns:
      A plain dict.

    Raises:
      ValueError: the patch size does not divide the image size.

    References:
      An Image is Worth 16x16 Words, 2020, arXiv:2010.11929, figure 1.
    """
    rows, columns, channels = image_shape
    if rows % patch or columns % patch:
        raise ValueError(f"patches of {patch} do not divide images of {image_shape}")
    first, second, third, last, *keys = jax.random.split(key, 4 + depth)
    tokens = 1 + rows * columns // patch**2
    head = layers.init_dense(last, width, classes)
    return {
        "patches": layers.init_dense(first, patch * patch * channels, width),
        "token": 0.02 * jax.random.normal(second, (width,), jnp.float32),
        "positions": 0.02 * jax.random.normal(third, (tokens, width), jnp.float32),
        "layers": [encoder.init_layer(k, width, 4 * width) for k in keys],
        "norm": layers.init_norm(width),
        "head": head | {"kernel": 0.1 * head["kernel"]},
    }


def cut(images: jax.Array, patch: int) -> jax.Array:
    """Returns the patches `(n, rows * columns, patch * patch * channels)`."""
    n, height, width, channels = images.shape
    tiles = images.reshape(
        n, height // patch, patch, width // patch, patch, channels
    ).swapaxes(2, 3)
    return tiles.reshape(n, -1, patch * patch * channels)


def encode(
    params: Params, images: jax.Array, *, heads: int, **options: Any
) -> encoder.Encoded:
    """Returns the tokens after all layers, the class token first.

    Args:
      params: parameters, from `init`.
      images: `(n, height, width, channels)`.
      heads: number of heads.
      **options: arguments of `encoder.encode`: how to prune.
    """
    channels = images.shape[-1]
    patch = round((params["patches"]["kernel"].shape[0] // channels) ** 0.5)
    x = layers.dense(params["patches"], cut(images, patch))
    token = jnp.broadcast_to(params["token"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([token, x], axis=1) + params["positions"][None]
    valid = jnp.ones(x.shape[:2], bool)
    return encoder.encode(
        params["layers"], x, valid, heads=heads, after=False, **options
    )


def logits(params: Params, found: encoder.Encoded) -> jax.Array:
    """Returns the logits `(n, classes)` of the class token."""
    return layers.dense(
        params["head"], layers.layer_norm(params["norm"], found.x[:, 0])
    )
