"""The narrow networks of `bench shrink`: ResNet-20, and a block of GPT-2.

They lose the same share of every group, where `jprune.graph.compress` lets all groups
compete; and ResNet-20 also loses whole blocks, since narrow kernels gain little time.
"""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments import models
from experiments.models import layers
from experiments.models.usual import transformers
from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.plain import Params, causal, draw, layer_norm
from jprune import graph as jg

Small = tuple[Callable[..., Any], Any, Any, Any]


def resnet(key: jax.Array, depth: int = 20, batch: int = 64) -> Architecture:
    """ResNet-20 for inference; its params include normalization statistics."""
    first, second = jax.random.split(key)
    params = models.resnet.init(first, depth=depth)
    images = normal(second, batch, 32, 32, 3)
    stats = jax.jit(models.resnet.batch_stats)(params, images)

    def fn(variables: Any, images: jax.Array) -> jax.Array:
        return models.resnet.apply(variables["params"], images, variables["stats"])

    return Architecture(fn, {"params": params, "stats": stats}, (images,))


def resnet_by_lax_conv(key: jax.Array, **sizes: int) -> Architecture:
    """ResNet-20 with `lax.conv` instead of patches times a matrix."""
    by_patches = resnet(key, **sizes)

    def fn(variables: Any, images: jax.Array) -> jax.Array:
        with mock.patch.object(layers, "conv", lax_conv):
            return by_patches.fn(variables, images)

    return by_patches._replace(fn=fn)


def lax_conv(layer: dict[str, jax.Array], x: jax.Array, stride: int = 1) -> jax.Array:
    """The same as `layers.conv` for a layer without bias."""
    kernel = layer["kernel"]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(n // 2, n // 2) for n in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def gpt2_block(
    key: jax.Array, width: int = 768, heads: int = 12, length: int = 256
) -> Architecture:
    """A block of GPT-2: causal attention and an MLP, both pre-normalized."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        mask = causal(x.shape[1])[None, None]
        x = x + transformers.attention(p, layer_norm(p["norm1"], x), heads, mask)
        return x + transformers.mlp(p, x)

    first, second = jax.random.split(key)
    params = draw(first, transformers.block_shapes(width))
    return Architecture(fn, params, (normal(second, 1, length, width),))


def same_share(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    blocks: int = 0,
    widest: int = 0,
    multiple_of: int = 8,
) -> Small:
    """Halves the multiply-adds by the same share of every group, by norm.

    Since sizes are multiples, the cost may be considerably lower.

    Args:
      fn: the network.
      params: its params.
      *inputs: its inputs.
      blocks: number of residual blocks to remove before channels.
      widest: minimum size of groups that lose channels.
      multiple_of: sizes of groups are rounded to a multiple of this.

    Returns:
      The small function and params, and the multiply-adds before and after.
    """
    graph = jg.trace(fn, params, *inputs)
    whole = jg.multiply_adds(graph)
    if blocks:
        fn, params = jg.without_branches(graph, params, weakest(graph, params, blocks))
        graph = jg.trace(fn, params, *inputs)
    keep = jg.choose(
        graph,
        jg.group_scores(graph, jax.tree.map(jnp.square, params)),
        1 - 0.5 * whole / jg.multiply_adds(graph),  # of the remaining multiply-adds
        compete=jg.each_group,
        cost=jg.multiply_adds,
        multiple_of=multiple_of,
        where=lambda group: jg.is_width(group) and group.size >= widest,
    )
    small_fn, small = jg.shrink(graph, params, keep=keep)
    return small_fn, small, whole, jg.multiply_adds(graph, jg.sizes(graph, keep))


def weakest(graph: jg.Graph, params: Any, count: int) -> list[str]:
    """Returns the residual branches with the smallest mean square of weights."""
    scores = jg.branch_scores(graph, jax.tree.map(jnp.square, params))
    return sorted(scores, key=lambda name: float(np.asarray(scores[name])))[:count]


BY_PATCHES = "ResNet-20, patches times a matrix"
BY_LAX_CONV = "ResNet-20, lax.conv"
FEWER_BLOCKS = "ResNet-20, lax.conv, less four blocks"
GPT2 = "GPT-2 block"

USUAL: dict[str, Builder] = {
    BY_PATCHES: resnet,
    BY_LAX_CONV: resnet_by_lax_conv,
    FEWER_BLOCKS: resnet_by_lax_conv,
    GPT2: gpt2_block,
}
TINY: dict[str, Builder] = {
    BY_PATCHES: functools.partial(resnet, depth=8, batch=2),
    BY_LAX_CONV: functools.partial(resnet_by_lax_conv, depth=8, batch=2),
    FEWER_BLOCKS: functools.partial(resnet_by_lax_conv, depth=8, batch=2),
    GPT2: functools.partial(gpt2_block, width=64, heads=4, length=6),
}
SMALLER: dict[str, Callable[..., Small]] = {
    BY_PATCHES: same_share,
    BY_LAX_CONV: same_share,
    FEWER_BLOCKS: functools.partial(same_share, blocks=4, widest=64),
    GPT2: same_share,
}
