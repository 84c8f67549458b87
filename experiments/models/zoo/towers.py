"""Several inputs or outputs: CLIP and a detector (Flax NNX)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.zoo.base import Architecture, Builder, normal, tokens
from experiments.models.zoo.frameworks import from_nnx


class ImageTower(nnx.Module):
    """Two strided convolutions, pooled and projected."""

    def __init__(self, outputs: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), 2, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), 2, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.project = nnx.Linear(16, outputs, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return self.project(self.norm(x.mean((1, 2))))


class TextTower(nnx.Module):
    """One causal block; the last token is projected."""

    def __init__(self, outputs: int, rngs: nnx.Rngs):
        norm = partial(nnx.LayerNorm, rngs=rngs)
        embed = partial(nnx.Embed, param_dtype=jnp.result_type(float))
        self.embed = embed(30, 24, rngs=rngs)
        self.positions = embed(12, 24, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = norm(24), norm(24), norm(24)
        self.attention = nnx.MultiHeadAttention(4, 24, decode=False, rngs=rngs)
        self.up = nnx.Linear(24, 40, rngs=rngs)
        self.down = nnx.Linear(40, 24, rngs=rngs)
        self.project = nnx.Linear(24, outputs, use_bias=False, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        x = self.embed(words) + self.positions(jnp.arange(words.shape[1]))
        x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(words))
        x = x + self.down(nnx.gelu(self.up(self.norm2(x))))
        return self.project(self.norm3(x[:, -1]))


class CLIP(nnx.Module):
    """Scaled cosine similarities of all images and texts (arXiv:2103.00020, fig. 3)."""

    def __init__(self, rngs: nnx.Rngs):
        self.image = ImageTower(20, rngs)
        self.text = TextTower(20, rngs)
        self.log_scale = nnx.Param(jnp.zeros(()))

    def __call__(self, images: jax.Array, words: jax.Array) -> jax.Array:
        first, second = (
            x / jnp.linalg.norm(x, axis=-1, keepdims=True)
            for x in (self.image(images), self.text(words))
        )
        return jnp.exp(self.log_scale[...]) * first @ second.T


def clip(key: jax.Array) -> Architecture:
    """Two images and three texts."""
    keys = jax.random.split(key, 3)
    inputs = normal(keys[1], 2, 16, 16, 3), tokens(keys[2], 30, 3, 7)
    return from_nnx(keys[0], CLIP, *inputs, dimensions=("b, ...", "c, t"))


class ConvNorm(nnx.Module):
    """Convolution, batch normalization by stored statistics, and SiLU."""

    def __init__(
        self, inputs: int, width: int, side: int, rngs: nnx.Rngs, stride: int = 1
    ):
        self.conv = nnx.Conv(
            inputs, width, (side, side), stride, use_bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.silu(self.norm(self.conv(x)))


class CrossStage(nnx.Module):
    """CSP: half of the channels bypass a residual block and are concatenated again.

    References:
      CSPNet, 2019, arXiv:1911.11929, figure 2 (b).
    """

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.enter = ConvNorm(inputs, width, 1, rngs)
        self.conv1 = ConvNorm(width // 2, width // 2, 1, rngs)
        self.conv2 = ConvNorm(width // 2, width // 2, 3, rngs)
        self.leave = ConvNorm(width, width, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        kept, x = jnp.split(self.enter(x), 2, axis=-1)
        x = x + self.conv2(self.conv1(x))
        return self.leave(jnp.concatenate([kept, x], axis=-1))


class PyramidPool(nnx.Module):
    """Repeated max pooling, all results concatenated (SPP as in YOLOv5)."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.enter = ConvNorm(inputs, inputs // 2, 1, rngs)
        self.leave = ConvNorm(2 * inputs, width, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        pools = [self.enter(x)]
        for _ in range(3):
            pools.append(nnx.max_pool(pools[-1], (3, 3), (1, 1), "SAME"))
        return self.leave(jnp.concatenate(pools, axis=-1))


class Detector(nnx.Module):
    """A backbone, a pyramid, and a head for each of two scales.

    References:
      YOLOv4, 2020, arXiv:2004.10934, section 3.4; Feature Pyramid Networks, 2016,
      arXiv:1612.03144, figure 3 (its sums as concatenations).
    """

    def __init__(self, rngs: nnx.Rngs):
        conv = partial(ConvNorm, rngs=rngs)
        self.stem = conv(3, 8, 3, stride=2)
        self.stage1 = CrossStage(8, 12, rngs)
        self.shrink = conv(12, 16, 3, stride=2)
        self.stage2 = CrossStage(16, 20, rngs)
        self.pool = PyramidPool(20, 16, rngs)
        self.lateral = conv(16, 10, 1)
        self.fuse = CrossStage(22, 24, rngs)
        self.fine = nnx.Conv(24, 18, (1, 1), rngs=rngs)
        self.coarse = nnx.Conv(16, 18, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        high = self.stage1(self.stem(x))
        low = self.pool(self.stage2(self.shrink(high)))
        up = self.lateral(low)
        up = jax.image.resize(up, (*high.shape[:3], up.shape[-1]), "nearest")
        fused = self.fuse(jnp.concatenate([up, high], axis=-1))
        return self.fine(fused), self.coarse(low)


def detector(key: jax.Array) -> Architecture:
    """Three anchors of six values, on 8x8 and 4x4 grids."""
    param_key, input_key = jax.random.split(key)
    return from_nnx(param_key, Detector, normal(input_key, 2, 16, 16, 3))


ARCHITECTURES: dict[str, Builder] = {
    "CLIP (NNX)": clip,
    "Detector with a feature pyramid (NNX)": detector,
}
