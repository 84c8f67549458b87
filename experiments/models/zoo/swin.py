"""Swin: attention in shifted windows with relative positions (plain functions).

References:
  Swin Transformer, 2021, arXiv:2103.14030, equations 3 and 4 and figure 4.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.plain import (
    Params,
    Shapes,
    attend,
    dense,
    dense_shapes,
    draw,
    heads,
    layer_norm,
    merge,
    norm_shapes,
)

WINDOW, HEADS, WIDTH, PATCH = 4, 4, 24, 2


def swin(key: jax.Array) -> Architecture:
    """Two blocks on an 8x8 grid, patches merged, two on a 4x4 grid."""
    param_key, input_key = jax.random.split(key)
    shapes = {
        "patches": dense_shapes(PATCH * PATCH * 3, WIDTH),
        "stage1": [_block_shapes(WIDTH) for _ in range(2)],
        "merging": {
            "norm": norm_shapes(4 * WIDTH),
            "kernel": (4 * WIDTH, 2 * WIDTH),
        },
        "stage2": [_block_shapes(2 * WIDTH) for _ in range(2)],
        "norm": norm_shapes(2 * WIDTH),
        "head": dense_shapes(2 * WIDTH, 10),
    }
    images = normal(input_key, 2, 16, 16, 3)
    return Architecture(_apply, draw(param_key, shapes), (images,))


def _block_shapes(width: int) -> Shapes:
    return {
        "norm1": norm_shapes(width),
        "qkv": dense_shapes(width, 3 * width),
        "bias_table": ((2 * WINDOW - 1) ** 2, HEADS),
        "out": dense_shapes(width, width),
        "norm2": norm_shapes(width),
        "up": dense_shapes(width, 40),
        "down": dense_shapes(40, width),
    }


def _apply(params: Params, images: jax.Array) -> jax.Array:
    x = dense(params["patches"], _gather(images, PATCH))
    for i, block in enumerate(params["stage1"]):
        x = _block(block, x, shift=i * WINDOW // 2)
    # A window that covers everything is not shifted.
    merging = params["merging"]
    x = layer_norm(merging["norm"], _gather(x, 2)) @ merging["kernel"]
    for block in params["stage2"]:
        x = _block(block, x, shift=0)
    return dense(params["head"], layer_norm(params["norm"], x).mean((1, 2)))


def _gather(x: jax.Array, side: int) -> jax.Array:
    """Returns patches, `(n, h / side, w / side, side * side * c)`."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // side, side, width // side, side, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // side, width // side, side * side * channels)


def _block(p: Params, x: jax.Array, shift: int) -> jax.Array:
    y = jnp.roll(layer_norm(p["norm1"], x), (-shift, -shift), (1, 2))
    y = _window_attention(p, y, shift)
    x = x + jnp.roll(y, (shift, shift), (1, 2))
    hidden = jax.nn.gelu(dense(p["up"], layer_norm(p["norm2"], x)))
    return x + dense(p["down"], hidden)


def _window_attention(p: Params, x: jax.Array, shift: int) -> jax.Array:
    n, height, width, channels = x.shape
    rows, columns = height // WINDOW, width // WINDOW
    windows = _gather(x, WINDOW).reshape(n * rows * columns, WINDOW**2, channels)
    q, k, v = jnp.split(dense(p["qkv"], windows), 3, axis=-1)
    bias = p["bias_table"][_relative_positions()].transpose(2, 0, 1)
    mask = np.tile(_window_mask(height, width, shift), (n, 1, 1))[:, None]
    bias = jnp.where(mask, bias, -1e9)
    y = dense(
        p["out"], merge(attend(heads(q, HEADS), heads(k, HEADS), heads(v, HEADS), bias))
    )
    y = y.reshape(n, rows, columns, WINDOW, WINDOW, channels)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def _relative_positions() -> np.ndarray:
    """Returns the row `(tokens, tokens)` of the bias table for each pair of tokens."""
    places = np.indices((WINDOW, WINDOW)).reshape(2, -1).T
    offsets = places[:, None] - places + WINDOW - 1
    return offsets[..., 0] * (2 * WINDOW - 1) + offsets[..., 1]


def _window_mask(height: int, width: int, shift: int) -> np.ndarray:
    """Returns the mask `(windows, tokens, tokens)` of pairs close before the shift."""
    region = np.zeros((height, width), int)
    if shift:
        region[-WINDOW:-shift] += 1
        region[-shift:] += 2
        region[:, -WINDOW:-shift] += 3
        region[:, -shift:] += 6
    region = region.reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    region = region.swapaxes(1, 2).reshape(-1, WINDOW**2)
    return region[:, :, None] == region[:, None, :]


ARCHITECTURES: dict[str, Builder] = {"Swin (plain)": swin}
