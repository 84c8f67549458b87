"""Residual networks for images (Flax Linen)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_linen


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv:1512.03385, figure 5, left)."""

    width: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not self.train)
        conv = partial(nn.Conv, features=self.width, use_bias=False)
        y = nn.relu(norm()(conv(kernel_size=(3, 3), strides=self.stride)(x)))
        y = norm()(conv(kernel_size=(3, 3))(y))
        if x.shape != y.shape:
            x = norm()(conv(kernel_size=(1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right).

    With groups it is ResNeXt's block (arXiv:1611.05431, figure 3 c).
    """

    width: int
    stride: int
    train: bool
    expansion: int = 4
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not self.train)
        conv = partial(nn.Conv, use_bias=False)
        y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
        y = conv(self.width, (3, 3), self.stride, feature_group_count=self.groups)(y)
        y = norm()(conv(self.expansion * self.width, (1, 1))(nn.relu(norm()(y))))
        if x.shape != y.shape:
            x = norm()(conv(y.shape[-1], (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem, stages of blocks (the later ones start with stride 2), and a head.

    Attributes:
      block: Takes `width`, `stride` and `train`.
      depths: Blocks of each stage.
      widths: Width of each stage.
      pool: A 7x7 stem of stride 2 with max pooling, as for ImageNet.
      train: Normalize by the statistics of the batch.
    """

    block: type[nn.Module] | partial[nn.Module]
    depths: Sequence[int]
    widths: Sequence[int]
    pool: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side, stride = (7, 2) if self.pool else (3, 1)
        x = nn.Conv(self.widths[0], (side, side), stride, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train)(x))
        if self.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                x = self.block(width=width, stride=stride, train=self.train)(x)
        return nn.Dense(10)(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """An inverted residual (arXiv:1801.04381, table 1)."""

    width: int
    stride: int
    expansion: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        conv = partial(nn.Conv, use_bias=False)
        wide = self.expansion * x.shape[-1]
        y = nn.relu6(norm()(conv(wide, (1, 1))(x)))
        y = conv(wide, (3, 3), self.stride, feature_group_count=wide)(y)
        y = norm()(conv(self.width, (1, 1))(nn.relu6(norm()(y))))
        return x + y if x.shape == y.shape else y


class MobileNet(nn.Module):
    """MobileNet-V2: a stem, inverted residuals, a wide last convolution, a head."""

    blocks: Sequence[tuple[int, int]] = ((8, 1), (10, 2), (10, 1), (12, 2), (12, 1))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu6(norm()(nn.Conv(8, (3, 3), 2, use_bias=False)(x)))
        for width, stride in self.blocks:
            x = InvertedResidual(width, stride)(x)
        x = nn.relu6(norm()(nn.Conv(40, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


RESNET18 = ((2, 2, 2, 2), (8, 12, 16, 20))
RESNET50 = ((3, 4, 6, 3), (4, 6, 8, 10))


def _on_images(module: nn.Module, side: int = 16, mutable: object = False) -> Builder:
    def build(key: jax.Array) -> Architecture:
        param_key, input_key = jax.random.split(key)
        images = normal(input_key, 2, side, side, 3)
        return from_linen(param_key, module, images, mutable=mutable)

    return build


ARCHITECTURES: dict[str, Builder] = {
    "ResNet-18 (Linen)": _on_images(ResNet(BasicBlock, *RESNET18)),
    "ResNet-18 in train mode (Linen)": _on_images(
        ResNet(BasicBlock, *RESNET18, train=True), mutable=["batch_stats"]
    ),
    "ResNet-50 (Linen)": _on_images(ResNet(Bottleneck, *RESNET50, pool=True), 32),
    "ResNeXt (Linen)": _on_images(
        ResNet(partial(Bottleneck, expansion=2, groups=4), (2, 2), (16, 24))
    ),
    "MobileNet-V2 (Linen)": _on_images(MobileNet()),
}
