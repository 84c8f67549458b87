"""Later residual networks (Flax NNX)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_nnx

_BatchNorm = partial(nnx.BatchNorm, use_running_average=True)


class PreActivationBlock(nnx.Module):
    """Pre-activation block (arXiv:1603.05027, figure 4 e)."""

    def __init__(self, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.norm1 = _BatchNorm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, width, (3, 3), stride)
        self.norm2 = _BatchNorm(width, rngs=rngs)
        self.conv2 = conv(width, width, (3, 3))
        self.project = inputs != width or stride > 1
        if self.project:
            self.shortcut = conv(inputs, width, (1, 1), stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(x))
        x = self.shortcut(y) if self.project else x
        y = nnx.relu(self.norm2(self.conv1(y)))
        return x + self.conv2(y)


class PreActivationResNet(nnx.Module):
    """Three stages of two blocks."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        sizes = [
            (8, 8, 1),
            (8, 8, 1),
            (8, 12, 2),
            (12, 12, 1),
            (12, 20, 2),
            (20, 20, 1),
        ]
        self.blocks = nnx.Sequential(
            *[PreActivationBlock(*size, rngs=rngs) for size in sizes]
        )
        self.norm = _BatchNorm(20, rngs=rngs)
        self.head = nnx.Linear(20, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((1, 2)))


class MBConv(nnx.Module):
    """An inverted residual with channel gates (arXiv:1905.11946, table 1)."""

    def __init__(self, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        wide = 4 * inputs
        self.expand = conv(inputs, wide, (1, 1))
        self.norm1 = _BatchNorm(wide, rngs=rngs)
        self.spatial = conv(wide, wide, (3, 3), stride, feature_group_count=wide)
        self.norm2 = _BatchNorm(wide, rngs=rngs)
        self.squeeze = nnx.Conv(wide, inputs // 2, (1, 1), rngs=rngs)
        self.excite = nnx.Conv(inputs // 2, wide, (1, 1), rngs=rngs)
        self.reduce = conv(wide, width, (1, 1))
        self.norm3 = _BatchNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.swish(self.norm1(self.expand(x)))
        y = nnx.swish(self.norm2(self.spatial(y)))
        gates = nnx.swish(self.squeeze(y.mean((1, 2), keepdims=True)))
        y = self.norm3(self.reduce(y * nnx.sigmoid(self.excite(gates))))
        return x + y if x.shape == y.shape else y


class EfficientNet(nnx.Module):
    """A stem, four inverted residuals with channel gates, and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), 2, use_bias=False, rngs=rngs)
        self.norm = _BatchNorm(8, rngs=rngs)
        sizes = [(8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2)]
        self.blocks = nnx.Sequential(*[MBConv(*size, rngs=rngs) for size in sizes])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.blocks(nnx.swish(self.norm(self.stem(x))))
        return self.head(x.mean((1, 2)))


class ConvNeXtBlock(nnx.Module):
    """A depthwise 7x7 convolution, a wide MLP, and a scale for each channel.

    References:
      A ConvNet for the 2020s, 2022, arXiv:2201.03545, figure 4.
    """

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.spatial = nnx.Conv(
            width, width, (7, 7), feature_group_count=width, rngs=rngs
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full(width, 1e-6))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.down(nnx.gelu(self.up(self.norm(self.spatial(x)))))
        return x + self.layer_scale[...] * y


class ConvNeXt(nnx.Module):
    """Patches, two stages of two blocks, and a normalized head."""

    def __init__(self, rngs: nnx.Rngs):
        self.patches = nnx.Conv(3, 8, (2, 2), 2, rngs=rngs)
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.stage1 = nnx.Sequential(*[ConvNeXtBlock(8, rngs) for _ in range(2)])
        self.norm2 = nnx.LayerNorm(8, rngs=rngs)
        self.shrink = nnx.Conv(8, 12, (2, 2), 2, rngs=rngs)
        self.stage2 = nnx.Sequential(*[ConvNeXtBlock(12, rngs) for _ in range(2)])
        self.norm3 = nnx.LayerNorm(12, rngs=rngs)
        self.head = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stage1(self.norm1(self.patches(x)))
        x = self.stage2(self.shrink(self.norm2(x)))
        return self.head(self.norm3(x.mean((1, 2))))


def _on_images(make: Callable[[nnx.Rngs], nnx.Module]) -> Builder:
    def build(key: jax.Array) -> Architecture:
        param_key, input_key = jax.random.split(key)
        return from_nnx(param_key, make, normal(input_key, 2, 16, 16, 3))

    return build


ARCHITECTURES: dict[str, Builder] = {
    "Pre-activation ResNet (NNX)": _on_images(PreActivationResNet),
    "EfficientNet (NNX)": _on_images(EfficientNet),
    "ConvNeXt (NNX)": _on_images(ConvNeXt),
}
