"""Transformers at the sizes of their papers, as plain functions: ViT, Swin and T5."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.zoo.base import Architecture, normal, tokens
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
    rms_norm,
)

CLASSES = 1000


def block_shapes(width: int) -> Shapes:
    """Returns the shapes of a pre-normalized block with an MLP of four widths."""
    return {
        "norm1": norm_shapes(width),
        "qkv": dense_shapes(width, 3 * width),
        "out": dense_shapes(width, width),
        "norm2": norm_shapes(width),
        "up": dense_shapes(width, 4 * width),
        "down": dense_shapes(4 * width, width),
    }


def attention(p: Params, x: jax.Array, count: int, bias: jax.Array | None) -> jax.Array:
    """Returns the self-attention `(batch, length, width)` of `count` heads."""
    q, k, v = (heads(y, count) for y in jnp.split(dense(p["qkv"], x), 3, axis=-1))
    return dense(p["out"], merge(attend(q, k, v, bias)))


def mlp(p: Params, x: jax.Array) -> jax.Array:
    """Returns the MLP's output for the normalized input."""
    return dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["norm2"], x))))


def patches(x: jax.Array, side: int) -> jax.Array:
    """Returns patches, `(n, h / side, w / side, side * side * c)`."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // side, side, width // side, side, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // side, width // side, side * side * channels)


class ViT(NamedTuple):
    """Sizes of a vision transformer (arXiv:2010.11929, table 1); here ViT-S/16."""

    depth: int = 12
    width: int = 384
    heads: int = 6
    patch: int = 16


def vit(key: jax.Array, sizes: ViT, side: int, batch: int = 1) -> Architecture:
    """A vision transformer with a class token.

    Args:
      key: PRNG key.
      sizes: its sizes.
      side: of the square images.
      batch: their number.
    """
    width, count = sizes.width, (side // sizes.patch) ** 2
    shapes = {
        "patches": dense_shapes(3 * sizes.patch**2, width),
        "token": (1, 1, width),
        "positions": (1, count + 1, width),
        "blocks": [block_shapes(width) for _ in range(sizes.depth)],
        "norm": norm_shapes(width),
        "head": dense_shapes(width, CLASSES),
    }

    def fn(params: Params, images: jax.Array) -> jax.Array:
        x = dense(params["patches"], patches(images, sizes.patch))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.tile(params["token"], (x.shape[0], 1, 1))
        x = jnp.concatenate([token, x], axis=1) + params["positions"]
        for p in params["blocks"]:
            x = x + attention(p, layer_norm(p["norm1"], x), sizes.heads, None)
            x = x + mlp(p, x)
        return dense(params["head"], layer_norm(params["norm"], x[:, 0]))

    first, second = jax.random.split(key)
    return Architecture(
        fn, draw(first, shapes), (normal(second, batch, side, side, 3),)
    )


class Swin(NamedTuple):
    """Sizes of a Swin transformer (arXiv:2103.14030, section 3.3); here Swin-T."""

    depths: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 96
    dim: int = 32
    window: int = 7
    patch: int = 4


def swin(key: jax.Array, sizes: Swin, side: int, batch: int = 1) -> Architecture:
    """Attention in shifted windows with relative positions.

    Args:
      key: PRNG key.
      sizes: its sizes; a window divides the sides of every stage.
      side: of the square images.
      batch: their number.

    References:
      Swin Transformer, 2021, arXiv:2103.14030, equations 3 and 4 and figure 3.
    """
    widths = [sizes.width * 2**i for i in range(len(sizes.depths))]
    relative = (2 * sizes.window - 1) ** 2
    shapes = {
        "patches": dense_shapes(3 * sizes.patch**2, widths[0]),
        "norm0": norm_shapes(widths[0]),
        "stages": [
            [
                block_shapes(width) | {"bias_table": (relative, width // sizes.dim)}
                for _ in range(depth)
            ]
            for depth, width in zip(sizes.depths, widths, strict=True)
        ],
        "merging": [
            {"norm": norm_shapes(4 * width), "kernel": (4 * width, 2 * width)}
            for width in widths[:-1]
        ],
        "norm": norm_shapes(widths[-1]),
        "head": dense_shapes(widths[-1], CLASSES),
    }

    def fn(params: Params, images: jax.Array) -> jax.Array:
        x = layer_norm(
            params["norm0"], dense(params["patches"], patches(images, sizes.patch))
        )
        for i, stage in enumerate(params["stages"]):
            if i > 0:
                p = params["merging"][i - 1]
                x = layer_norm(p["norm"], patches(x, 2)) @ p["kernel"]
            count = widths[i] // sizes.dim
            for j, p in enumerate(stage):
                # A window that covers everything is not shifted.
                shifted = j % 2 and x.shape[1] > sizes.window
                shift = sizes.window // 2 if shifted else 0
                x = x + windowed(p, x, count, sizes.window, shift)
                x = x + mlp(p, x)
        return dense(params["head"], layer_norm(params["norm"], x).mean((1, 2)))

    first, second = jax.random.split(key)
    return Architecture(
        fn, draw(first, shapes), (normal(second, batch, side, side, 3),)
    )


def windowed(p: Params, x: jax.Array, count: int, side: int, shift: int) -> jax.Array:
    """Returns attention of `count` heads in windows of a side, after a shift."""
    n, height, width, channels = x.shape
    rows, columns = height // side, width // side
    y = layer_norm(p["norm1"], x)
    y = jnp.roll(y, (-shift, -shift), (1, 2)) if shift else y
    windows = patches(y, side).reshape(n * rows * columns, side**2, channels)
    bias = p["bias_table"][relative_positions(side)].transpose(2, 0, 1)[None]
    if shift:
        mask = np.tile(window_mask(height, width, side, shift), (n, 1, 1))[:, None]
        bias = jnp.where(mask, bias, -1e9)
    y = attention(p, windows, count, bias)
    y = y.reshape(n, rows, columns, side, side, channels)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    return jnp.roll(y, (shift, shift), (1, 2)) if shift else y


def relative_positions(side: int) -> np.ndarray:
    """Returns the row `(tokens, tokens)` of the bias table for each pair of tokens."""
    places = np.indices((side, side)).reshape(2, -1).T
    offsets = places[:, None] - places + side - 1
    return offsets[..., 0] * (2 * side - 1) + offsets[..., 1]


def window_mask(height: int, width: int, side: int, shift: int) -> np.ndarray:
    """Returns the mask `(windows, tokens, tokens)` of pairs close before the shift."""
    region = np.zeros((height, width), int)
    region[-side:-shift] += 1
    region[-shift:] += 2
    region[:, -side:-shift] += 3
    region[:, -shift:] += 6
    region = region.reshape(height // side, side, width // side, side)
    region = region.swapaxes(1, 2).reshape(-1, side**2)
    return region[:, :, None] == region[:, None, :]


class T5(NamedTuple):
    """Sizes of T5's encoder (arXiv:1910.10683); here those of T5-v1.1-base."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    dim: int = 64
    hidden: int = 2048
    vocabulary: int = 32128
    buckets: int = 32


def t5(key: jax.Array, sizes: T5, length: int, batch: int = 1) -> Architecture:
    """An encoder with one table of relative position biases and gated MLPs.

    Args:
      key: PRNG key.
      sizes: its sizes.
      length: tokens of a sequence.
      batch: number of sequences.

    References:
      Exploring the Limits of Transfer Learning, 2019, arXiv:1910.10683, section 2.1,
      with the gated MLP of its version 1.1 (GLU Variants, 2020, arXiv:2002.05202).
    """
    width, inner, hidden = sizes.width, sizes.heads * sizes.dim, sizes.hidden
    block = {
        "norm1": {"scale": (width,)},
        **dict.fromkeys("qkv", (width, inner)),
        "o": (inner, width),
        "norm2": {"scale": (width,)},
        **dict.fromkeys(("gate", "up"), (width, hidden)),
        "down": (hidden, width),
    }
    shapes = {
        "embed": (sizes.vocabulary, width),
        "distances": (sizes.buckets, sizes.heads),
        "blocks": [block for _ in range(sizes.depth)],
        "norm": {"scale": (width,)},
    }

    def fn(params: Params, words: jax.Array) -> jax.Array:
        x = params["embed"][words]
        at = np.arange(words.shape[1])
        rows = buckets(at - at[:, None], sizes.buckets)
        bias = params["distances"][rows].transpose(2, 0, 1)[None]
        for p in params["blocks"]:
            y = rms_norm(p["norm1"]["scale"], x)
            q, k, v = (heads(y @ p[name], sizes.heads) for name in "qkv")
            x = x + merge(attend(q, k, v, bias, scale=1.0)) @ p["o"]
            y = rms_norm(p["norm2"]["scale"], x)
            x = x + (jax.nn.gelu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return rms_norm(params["norm"]["scale"], x)

    first, second = jax.random.split(key)
    words = tokens(second, sizes.vocabulary, batch, length)
    return Architecture(fn, draw(first, shapes), (words,))


def buckets(offsets: np.ndarray, count: int, furthest: int = 128) -> np.ndarray:
    """Returns buckets: half per direction, exact if near, and logarithmic if far."""
    half = count // 2
    near = half // 2
    distance = np.abs(offsets)
    ratio = np.log(np.maximum(distance, 1) / near) / math.log(furthest / near)
    far = np.minimum(near + (ratio * (half - near)).astype(int), half - 1)
    return np.where(distance < near, distance, far) + half * (offsets > 0)
