"""Convolutional networks at the sizes of their papers (Flax Linen), for inference."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

CLASSES = 1000

_norm = partial(nn.BatchNorm, use_running_average=True)
_conv = partial(nn.Conv, use_bias=False)


class DenseNet(nn.Module):
    """DenseNet: each layer reads all previous outputs of its block.

    References:
      Densely Connected Convolutional Networks, 2016, arXiv:1608.06993, table 1.
    """

    blocks: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _conv(2 * self.growth, (7, 7), 2)(x)
        x = nn.max_pool(nn.relu(_norm()(x)), (3, 3), (2, 2), "SAME")
        for i, layers in enumerate(self.blocks):
            if i > 0:  # the transition halves channels and sides
                x = _conv(x.shape[-1] // 2, (1, 1))(nn.relu(_norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(layers):
                y = _conv(4 * self.growth, (1, 1))(nn.relu(_norm()(x)))
                y = _conv(self.growth, (3, 3))(nn.relu(_norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(CLASSES)(nn.relu(_norm()(x)).mean((1, 2)))


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two pointwise ones, perhaps with gates.

    Attributes:
      width: output channels.
      stride: of the depthwise convolution.
      expansion: its channels per input channel; with 1 there is no first convolution.
      side: of its kernel.
      act: the nonlinearity.
      gated: whether channels are gated (squeeze-and-excitation), with a quarter of the
        block's input channels between.
    """

    width: int
    stride: int
    expansion: int
    side: int = 3
    act: Callable[[jax.Array], jax.Array] = nn.relu6
    gated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        wide, y = self.expansion * inputs, x
        if self.expansion > 1:
            y = self.act(_norm()(_conv(wide, (1, 1))(y)))
        y = _conv(wide, (self.side,) * 2, self.stride, feature_group_count=wide)(y)
        y = self.act(_norm()(y))
        if self.gated:
            gates = self.act(
                nn.Conv(inputs // 4, (1, 1))(y.mean((1, 2), keepdims=True))
            )
            y = y * nn.sigmoid(nn.Conv(wide, (1, 1))(gates))
        y = _norm()(_conv(self.width, (1, 1))(y))
        return x + y if x.shape == y.shape else y


class Inverted(nn.Module):
    """A stem, stages of inverted residuals, a wide last convolution and a head.

    Attributes:
      stem: channels of the first convolution.
      stages: `(blocks, width, stride of the first, expansion, side)` of each.
      last: channels of the last convolution.
      act: the nonlinearity.
      gated: whether blocks gate their channels.
    """

    stem: int
    stages: Sequence[tuple[int, int, int, int, int]]
    last: int
    act: Callable[[jax.Array], jax.Array] = nn.relu6
    gated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = partial(InvertedResidual, act=self.act, gated=self.gated)
        x = self.act(_norm()(_conv(self.stem, (3, 3), 2)(x)))
        for blocks, width, stride, expansion, side in self.stages:
            for i in range(blocks):
                x = block(width, 1 if i else stride, expansion, side)(x)
        x = self.act(_norm()(_conv(self.last, (1, 1))(x)))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """ConvNeXt: depthwise 7x7 convolutions, wide MLPs and a scale for each channel.

    References:
      A ConvNet for the 2020s, 2022, arXiv:2201.03545, figure 4 and section 2.2.
    """

    depths: Sequence[int] = (3, 3, 9, 3)
    widths: Sequence[int] = (96, 192, 384, 768)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            x = nn.LayerNorm()(x) if i else x
            side = 2 if i else 4
            x = nn.Conv(width, (side, side), side)(x)
            x = x if i else nn.LayerNorm()(x)
            for _ in range(depth):
                x = x + ConvNeXtBlock()(x)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x.mean((1, 2))))


class ConvNeXtBlock(nn.Module):
    """A residual branch of ConvNeXt."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), feature_group_count=width)(x)
        y = nn.Dense(4 * width)(nn.LayerNorm()(y))
        y = nn.Dense(width)(nn.gelu(y))
        return y * self.param("scale", nn.initializers.ones, (width,))


MOBILENET = Inverted(
    stem=32,
    stages=(
        (1, 16, 1, 1, 3),
        (2, 24, 2, 6, 3),
        (3, 32, 2, 6, 3),
        (4, 64, 2, 6, 3),
        (3, 96, 1, 6, 3),
        (3, 160, 2, 6, 3),
        (1, 320, 1, 6, 3),
    ),
    last=1280,
)  # MobileNet-V2, 2018, arXiv:1801.04381, table 2

EFFICIENTNET = Inverted(
    stem=32,
    stages=(
        (1, 16, 1, 1, 3),
        (2, 24, 2, 6, 3),
        (2, 40, 2, 6, 5),
        (3, 80, 2, 6, 3),
        (3, 112, 1, 6, 5),
        (4, 192, 2, 6, 5),
        (1, 320, 1, 6, 3),
    ),
    last=1280,
    act=nn.swish,
    gated=True,
)  # EfficientNet-B0, 2019, arXiv:1905.11946, table 1
