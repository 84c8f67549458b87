"""Convolutional classifiers without residual sums (Flax Linen)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_linen


class ConvNorm(nn.Module):
    """Convolution, batch normalization by stored statistics, and ReLU."""

    features: int
    kernel: int = 3
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.kernel, self.kernel)
        x = nn.Conv(self.features, window, feature_group_count=self.groups)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True)(x))


class VGG(nn.Module):
    """Convolutions and max pooling, then flattened into dense layers."""

    stages: Sequence[Sequence[int]] = ((8, 10), (12, 16), (20, 24))
    hidden: int = 28

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            for features in stage:
                x = ConvNorm(features)(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(10)(x)


class DenseNet(nn.Module):
    """DenseNet: each layer reads all previous outputs (arXiv:1608.06993)."""

    blocks: Sequence[int] = (3, 3)
    growth: int = 6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm_relu(x: jax.Array) -> jax.Array:
            return nn.relu(nn.BatchNorm(use_running_average=True)(x))

        x = nn.Conv(10, (3, 3), use_bias=False)(x)
        for i, layers in enumerate(self.blocks):
            if i > 0:  # the transition halves channels and sides
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(norm_relu(x))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(layers):
                y = nn.Conv(2 * self.growth, (1, 1), use_bias=False)(norm_relu(x))
                y = nn.Conv(self.growth, (3, 3), use_bias=False)(norm_relu(y))
                x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(10)(norm_relu(x).mean((1, 2)))


class ShuffleNet(nn.Module):
    """ShuffleNet-V2: split, transform one half, concatenate, shuffle.

    References:
      ShuffleNet V2, 2018, arXiv:1807.11164, figure 3 (c) and (d).
    """

    width: int = 24

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ConvNorm(12)(x)
        half = self.width // 2
        x = jnp.concatenate([self.shrink(x, half), self.branch(x, half, 2)], axis=-1)
        x = self.shuffle(x)
        for _ in range(2):
            kept, changed = jnp.split(x, 2, axis=-1)
            x = jnp.concatenate([kept, self.branch(changed, half)], axis=-1)
            x = self.shuffle(x)
        return nn.Dense(10)(x.mean((1, 2)))

    def branch(self, x: jax.Array, width: int, stride: int = 1) -> jax.Array:
        """Returns the branch with two pointwise convolutions."""
        return self.shrink(ConvNorm(width, 1)(x), width, stride)

    def shrink(self, x: jax.Array, width: int, stride: int = 2) -> jax.Array:
        """Returns a depthwise convolution, then a pointwise one."""
        channels = x.shape[-1]
        x = nn.Conv(channels, (3, 3), stride, feature_group_count=channels)(x)
        return ConvNorm(width, 1)(nn.BatchNorm(use_running_average=True)(x))

    def shuffle(self, x: jax.Array) -> jax.Array:
        """Returns the channels of the two halves, alternating."""
        pairs = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
        return pairs.swapaxes(-1, -2).reshape(x.shape)


class SqueezeExcite(nn.Module):
    """Depthwise convolutions with two filters per channel, and channel gates.

    References:
      Squeeze-and-Excitation Networks, 2017, arXiv:1709.01507, equations 2 to 4.
    """

    widths: Sequence[int] = (8, 12)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = ConvNorm(width)(x)
            x = ConvNorm(2 * width, groups=width)(x)
            gates = nn.relu(nn.Dense(width // 2)(x.mean((1, 2))))
            gates = nn.sigmoid(nn.Dense(x.shape[-1])(gates))
            x = nn.max_pool(x * gates[:, None, None, :], (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


class Bilinear(nn.Module):
    """Bilinear pooling of the channels of two streams (arXiv:1504.07889)."""

    widths: tuple[int, int] = (12, 16)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = (ConvNorm(width)(ConvNorm(8)(x)) for width in self.widths)
        x = jnp.einsum("bhwi,bhwj->bij", first, second) / (x.shape[1] * x.shape[2])
        x = x.reshape(x.shape[0], -1)
        x = jnp.sign(x) * jnp.sqrt(jnp.abs(x) + 1e-6)
        x = x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
        return nn.Dense(10)(x)


def _on_images(module: nn.Module, side: int = 16, channels: int = 3) -> Builder:
    def build(key: jax.Array) -> Architecture:
        param_key, input_key = jax.random.split(key)
        return from_linen(param_key, module, normal(input_key, 2, side, side, channels))

    return build


ARCHITECTURES: dict[str, Builder] = {
    "VGG (Linen)": _on_images(VGG()),
    "DenseNet (Linen)": _on_images(DenseNet()),
    "ShuffleNet-V2 (Linen)": _on_images(ShuffleNet()),
    "Squeeze-and-excitation CNN, depth multiplier 2 (Linen)": _on_images(
        SqueezeExcite()
    ),
    "Bilinear pooling CNN (Linen)": _on_images(Bilinear(), 8),
}
