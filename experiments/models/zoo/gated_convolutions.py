"""Convolutions with gates over channels, or without batch statistics (Flax Linen)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_linen


class ECA(nn.Module):
    """Gates from a convolution over neighbouring channels (arXiv:1910.03151, eq. 9)."""

    widths: Sequence[int] = (12, 16)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            y = nn.Conv(20, (3, 3), use_bias=False)(x)
            y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
            y = nn.Conv(width, (1, 1))(y)
            gates = nn.Conv(1, (3,), use_bias=False)(y.mean((1, 2))[..., None])
            x = x + y * nn.sigmoid(gates[:, None, None, :, 0])
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


class RegNetBlock(nn.Module):
    """A bottleneck without a neck: a grouped convolution, and gates of channels.

    References:
      Designing Network Design Spaces, 2020, arXiv:2003.13678, section 4 (RegNetY).
    """

    width: int
    stride: int
    group: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=True)(x)

        y = nn.relu(norm(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        groups = self.width // self.group
        y = nn.Conv(
            self.width,
            (3, 3),
            self.stride,
            feature_group_count=groups,
            use_bias=False,
        )(y)
        y = nn.relu(norm(y))
        gates = nn.relu(nn.Conv(6, (1, 1))(y.mean((1, 2), keepdims=True)))
        y = y * nn.sigmoid(nn.Conv(self.width, (1, 1))(gates))
        y = norm(nn.Conv(self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm(nn.Conv(self.width, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class RegNet(nn.Module):
    """RegNetY: a stem, two stages of two blocks, and a head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (3, 3), 2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        for width in (16, 24):
            x = RegNetBlock(width, 2)(x)
            x = RegNetBlock(width, 1)(x)
        return nn.Dense(10)(x.mean((1, 2)))


class StandardizedConv(nn.Module):
    """A convolution whose filters have mean 0 and variance gain^2 / fan-in."""

    features: int
    side: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, x.dtype)
        gain = self.param("scale", nn.initializers.ones, (self.features,), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        mean = kernel.mean((0, 1, 2), keepdims=True)
        variance = kernel.var((0, 1, 2), keepdims=True)
        fan_in = math.prod(kernel.shape[:3])
        kernel = (kernel - mean) * jax.lax.rsqrt(variance * fan_in + 1e-4) * gain
        strides = (self.stride, self.stride)
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=layout
        )
        return y + bias


class NFNetBlock(nn.Module):
    """Standardized bottleneck with a learned gain; `beta` undoes the growth.

    References:
      High-Performance Large-Scale Image Recognition Without Normalization, 2021,
      arXiv:2102.06171, section 2 and figure 3.
    """

    width: int
    stride: int
    beta: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = 1.7 * nn.gelu(x) * self.beta
        if x.shape[-1] != self.width or self.stride > 1:
            x = nn.avg_pool(y, (self.stride,) * 2, (self.stride,) * 2)
            x = StandardizedConv(self.width, 1)(x)
        inner = self.width // 2
        y = 1.7 * nn.gelu(StandardizedConv(inner, 1)(y))
        y = 1.7 * nn.gelu(StandardizedConv(inner, 3, self.stride)(y))
        y = StandardizedConv(self.width, 1)(y)
        gates = nn.relu(nn.Dense(6)(y.mean((1, 2))))
        y = 2 * y * nn.sigmoid(nn.Dense(self.width)(gates))[:, None, None]
        gain = self.param("bias", nn.initializers.zeros, (), x.dtype)
        return x + 0.2 * gain * y


class NFNet(nn.Module):
    """A stem, three blocks, and a head, without any statistics of batches."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = StandardizedConv(8)(x)
        for width, stride, beta in ((12, 1, 1.0), (16, 2, 1.0), (16, 1, 0.98)):
            x = NFNetBlock(width, stride, beta)(x)
        return nn.Dense(10)(1.7 * nn.gelu(x).mean((1, 2)))


def _on_images(module: nn.Module) -> Builder:
    def build(key: jax.Array) -> Architecture:
        param_key, input_key = jax.random.split(key)
        return from_linen(param_key, module, normal(input_key, 2, 16, 16, 3))

    return build


ARCHITECTURES: dict[str, Builder] = {
    "ECA-Net (Linen)": _on_images(ECA()),
    "RegNetY (Linen)": _on_images(RegNet()),
    "NFNet (Linen)": _on_images(NFNet()),
}
