"""Image to image: UNet (Flax Linen), a diffusion UNet (NNX) and DiT (plain)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.zoo.base import Architecture, Builder, normal, tokens
from experiments.models.zoo.frameworks import from_linen, from_nnx
from experiments.models.zoo.plain import (
    Params,
    attend,
    dense,
    dense_shapes,
    draw,
    heads,
    merge,
    sinusoids,
)


class DoubleConv(nn.Module):
    """Two convolutions with group normalization."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        return x


class UNet(nn.Module):
    """UNet: pooling down, transposed convolutions up, concatenated skips.

    References:
      U-Net, 2015, arXiv:1505.04597, figure 1.
    """

    widths: tuple[int, ...] = (8, 16)
    bottom: int = 24

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for width in self.widths:
            x = DoubleConv(width)(x)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = DoubleConv(self.bottom)(x)
        for width, skip in zip(reversed(self.widths), reversed(skips), strict=True):
            x = nn.ConvTranspose(width, (2, 2), (2, 2))(x)
            x = DoubleConv(width)(jnp.concatenate([skip, x], axis=-1))
        return nn.Conv(4, (1, 1))(x)


def unet(key: jax.Array) -> Architecture:
    """Four logits for each pixel."""
    param_key, input_key = jax.random.split(key)
    return from_linen(param_key, UNet(), normal(input_key, 2, 16, 16, 3))


class TimedBlock(nnx.Module):
    """A residual block of two convolutions; the time is added between them."""

    def __init__(self, inputs: int, width: int, times: int, rngs: nnx.Rngs):
        norm = partial(nnx.GroupNorm, num_groups=4, rngs=rngs)
        self.norm1 = norm(inputs)
        self.conv1 = nnx.Conv(inputs, width, (3, 3), rngs=rngs)
        self.time = nnx.Linear(times, width, rngs=rngs)
        self.norm2 = norm(width)
        self.conv2 = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.project = inputs != width
        if self.project:
            self.shortcut = nnx.Conv(inputs, width, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        y = self.conv1(nnx.silu(self.norm1(x)))
        y = y + self.time(nnx.silu(time))[:, None, None, :]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return (self.shortcut(x) if self.project else x) + y


class PixelAttention(nnx.Module):
    """Single-head self-attention between pixels, with a residual connection."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.GroupNorm(width, num_groups=4, rngs=rngs)
        self.qkv = nnx.Conv(width, 3 * width, (1, 1), rngs=rngs)
        self.out = nnx.Conv(width, width, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, height * width, 1, 3 * channels)
        y = attend(*jnp.split(qkv, 3, axis=-1))
        return x + self.out(y.reshape(x.shape))


class DiffusionUNet(nnx.Module):
    """Predicts the noise of an image at a time step (arXiv:2006.11239, appendix B)."""

    def __init__(self, rngs: nnx.Rngs):
        block = partial(TimedBlock, times=28, rngs=rngs)
        self.time1 = nnx.Linear(16, 32, rngs=rngs)
        self.time2 = nnx.Linear(32, 28, rngs=rngs)
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.down1 = block(8, 8)
        self.shrink = nnx.Conv(8, 8, (3, 3), 2, rngs=rngs)
        self.down2 = block(8, 16)
        self.middle1 = block(16, 16)
        self.attention = PixelAttention(16, rngs)
        self.middle2 = block(16, 16)
        self.up2 = block(32, 16)
        self.grow = nnx.ConvTranspose(16, 12, (4, 4), (2, 2), rngs=rngs)
        self.up1 = block(20, 8)
        self.norm = nnx.GroupNorm(8, num_groups=4, rngs=rngs)
        self.out = nnx.Conv(8, 3, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, times: jax.Array) -> jax.Array:
        time = self.time2(nnx.silu(self.time1(sinusoids(times, 16))))
        high = self.down1(self.stem(x), time)
        low = self.down2(self.shrink(high), time)
        x = self.middle2(self.attention(self.middle1(low, time)), time)
        x = self.up2(jnp.concatenate([x, low], axis=-1), time)
        x = self.up1(jnp.concatenate([self.grow(x), high], axis=-1), time)
        return self.out(nnx.silu(self.norm(x)))


def diffusion_unet(key: jax.Array) -> Architecture:
    """Two images at two time steps."""
    param_key, input_key = jax.random.split(key)
    inputs = normal(input_key, 2, 8, 8, 3), jnp.asarray([3.0, 40.0])
    return from_nnx(param_key, DiffusionUNet, *inputs)


SIDE, PATCH, WIDTH, HEADS, CLASSES = 8, 2, 24, 4, 10


def dit(key: jax.Array) -> Architecture:
    """DiT: blocks whose norms and gates are conditioned on time step and class.

    References:
      Scalable Diffusion Models with Transformers, 2022, arXiv:2212.09748, figure 3
      (adaLN-Zero; here the zeros are not zero).
    """
    keys = jax.random.split(key, 3)
    block = {
        "modulation": dense_shapes(WIDTH, 6 * WIDTH),
        "qkv": dense_shapes(WIDTH, 3 * WIDTH),
        "o": dense_shapes(WIDTH, WIDTH),
        "up": dense_shapes(WIDTH, 40),
        "down": dense_shapes(40, WIDTH),
    }
    patch = PATCH * PATCH * 3
    shapes = {
        "patches": dense_shapes(patch, WIDTH),
        "positions": ((SIDE // PATCH) ** 2, WIDTH),
        "time": [dense_shapes(16, 28), dense_shapes(28, WIDTH)],
        "classes": (CLASSES, WIDTH),
        "blocks": [block, block],
        "modulation": dense_shapes(WIDTH, 2 * WIDTH),
        "out": dense_shapes(WIDTH, patch),
    }
    inputs = (
        normal(keys[1], 2, SIDE, SIDE, 3),
        jnp.asarray([3.0, 40.0]),
        tokens(keys[2], CLASSES, 2),
    )
    return Architecture(_dit, draw(keys[0], shapes), inputs)


def _dit(p: Params, x: jax.Array, times: jax.Array, classes: jax.Array) -> jax.Array:
    n, grid = x.shape[0], SIDE // PATCH
    x = x.reshape(n, grid, PATCH, grid, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    x = dense(p["patches"], x.reshape(n, grid * grid, -1)) + p["positions"]
    first, second = p["time"]
    time = dense(second, jax.nn.silu(dense(first, sinusoids(times, 16))))
    condition = jax.nn.silu(time + p["classes"][classes])
    for block in p["blocks"]:
        x = _dit_block(block, x, condition)
    shift, scale = jnp.split(dense(p["modulation"], condition), 2, axis=-1)
    x = dense(p["out"], _modulate(x, shift, scale))
    x = x.reshape(n, grid, grid, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, SIDE, SIDE, 3)


def _dit_block(p: Params, x: jax.Array, condition: jax.Array) -> jax.Array:
    parts = jnp.split(dense(p["modulation"], condition), 6, axis=-1)
    shift1, scale1, gate1, shift2, scale2, gate2 = parts
    qkv = jnp.split(dense(p["qkv"], _modulate(x, shift1, scale1)), 3, axis=-1)
    y = dense(p["o"], merge(attend(*(heads(y, HEADS) for y in qkv))))
    x = x + gate1[:, None] * y
    hidden = jax.nn.gelu(dense(p["up"], _modulate(x, shift2, scale2)))
    return x + gate2[:, None] * dense(p["down"], hidden)


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    normalized = jax.nn.standardize(x, axis=-1)
    return normalized * (1 + scale[:, None]) + shift[:, None]


ARCHITECTURES: dict[str, Builder] = {
    "UNet (Linen)": unet,
    "Diffusion UNet (NNX)": diffusion_unet,
    "DiT (plain)": dit,
}
