"""Architectures at the sizes of their papers, to be timed.

`USUAL[name](key)` builds one with random parameters, for one image or sequence, and
`TINY[name](key)` the same function at small sizes, for tests.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from experiments.models.usual import convolutional, mamba2, transformers
from experiments.models.zoo import residual
from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_linen


def _on_images(module: nn.Module, side: int, batch: int = 1) -> Builder:
    def build(key: jax.Array) -> Architecture:
        first, second = jax.random.split(key)
        return from_linen(first, module, normal(second, batch, side, side, 3))

    return build


def _plain(make: Any, *sizes: Any, **more: Any) -> Builder:
    return lambda key: make(key, *sizes, **more)


_resnet = functools.partial(residual.ResNet, residual.Bottleneck, pool=True)
_stages = ((1, 8, 1, 1, 3), (2, 16, 2, 6, 3))

USUAL: dict[str, Builder] = {
    "ResNet-50": _on_images(_resnet((3, 4, 6, 3), (64, 128, 256, 512)), 224),
    "DenseNet-121": _on_images(convolutional.DenseNet(), 224),
    "ViT-S/16": _plain(transformers.vit, transformers.ViT(), 224),
    "Mamba-2 130M, 6 blocks": _plain(mamba2.build, mamba2.Mamba2(depth=6), 256),
    "ConvNeXt-T": _on_images(convolutional.ConvNeXt(), 224),
    "MobileNet-V2": _on_images(convolutional.MOBILENET, 224),
    "EfficientNet-B0": _on_images(convolutional.EFFICIENTNET, 224),
    "Swin-T": _plain(transformers.swin, transformers.Swin(), 224),
    "T5-base encoder": _plain(transformers.t5, transformers.T5(), 128),
}
TINY: dict[str, Builder] = {
    "ResNet-50": _on_images(_resnet((1, 2), (16, 32)), 32),
    "DenseNet-121": _on_images(convolutional.DenseNet((2, 2), 16), 32),
    "ViT-S/16": _plain(transformers.vit, transformers.ViT(2, 64, 4, 8), 32),
    "Mamba-2 130M, 6 blocks": _plain(
        mamba2.build, mamba2.Mamba2(2, 32, 4, 16, 8, 4, 4, 30), 12
    ),
    "ConvNeXt-T": _on_images(convolutional.ConvNeXt((1, 2), (16, 32)), 32),
    "MobileNet-V2": _on_images(convolutional.Inverted(16, _stages, 64), 32),
    "EfficientNet-B0": _on_images(
        convolutional.Inverted(16, _stages, 64, nn.swish, gated=True), 32
    ),
    "Swin-T": _plain(transformers.swin, transformers.Swin((2, 2), 64, 16, 4, 4), 32),
    "T5-base encoder": _plain(
        transformers.t5, transformers.T5(2, 64, 4, 16, 96, 30), 6
    ),
}
