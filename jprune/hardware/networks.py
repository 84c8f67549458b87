"""Workloads of well-known networks, and of attention under a pruning schedule.

    bert_base, bert_large, gpt2_small, gpt2_medium, vit_base, resnet50
    attention, transformer_layer, convolution     parts of networks
    scheduled                                     attention under a schedule

Element-wise work is counted where it accompanies a product: exponentials of a softmax,
the activation of a hidden layer. Norms and residual sums are not counted. Operations
have names, such as "mlp_up"; one that is repeated in each layer has one name. Keyword
arguments `**fields` set fields of `Workload`, such as `input_bits`, for all products.
A size that is not positive is a `PruningError` with its name.
"""

import math
from collections.abc import Sequence
from typing import Any

from jprune._core import base
from jprune._core.deprecation import renamed_arguments
from jprune.hardware import _ranges
from jprune.hardware._workload import Workload
from jprune.hardware.workload import chain, product, rename, repeated


def attention(
    queries: float,
    keys: float,
    heads: float,
    *,
    dim: float = 64,
    values: float | None = None,
    next_keys: float | None = None,
    **fields: Any,
) -> Workload:
    """Returns the attention of one layer: scores, softmax, probabilities times values.

    Two operations that a pipelined machine joins. Scores and probabilities stay on
    chip. Selections are counted for the values of each query, where fewer than the keys
    are kept, and for the tokens of the next layer, where those are fewer.

    Args:
      queries: queries of each head: all tokens, or 1 in generation.
      keys: tokens kept.
      heads: heads kept, times the batch.
      dim: dimension of a head.
      values: values kept for each query by local value pruning; all keys if None.
      next_keys: tokens that the next layer keeps; all if None.
      **fields: fields of both products: `input_bits`, `weight_bits`, `repeats`, ...

    Returns:
      A `Workload` of two operations.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> int(multiply_adds(attention(128, 128, 12)))  # 2 * 12 * 128^2 * 64
      25165824
    """
    values = keys if values is None else values
    next_keys = keys if next_keys is None else next_keys
    rows = heads * queries
    scores = product(
        *(queries, keys, dim),
        name="attention_scores",
        batch=heads,
        exponentials=rows * keys,
        share=0.5,
        output_dram=0,
        selections=1.0 if next_keys < keys else 0.0,
        select_from=keys,
        select_keep=next_keys,
        **fields,
    )
    # Only keys are split into MSBs and LSBs; values have one width.
    fields = {k: v for k, v in fields.items() if k not in ("lsb_bits", "refetch")}
    weighted = product(
        *(queries, dim, values),
        name="attention_values",
        batch=heads,
        joined=1,
        share=0.5,
        input_dram=0,
        selections=rows if values < keys else 0.0,
        select_from=keys,
        select_keep=values,
        **fields,
    )
    return chain([scores, weighted])


def transformer_layer(
    tokens: float,
    *,
    width: float,
    heads: float,
    hidden: float,
    batch: float = 1,
    context: float | None = None,
    dim: float | None = None,
    **fields: Any,
) -> Workload:
    """Returns projections, attention and MLP of a transformer layer.

    Args:
      tokens: tokens of a sequence that pass through the layer, 1 in generation.
      width: width of the residual stream.
      heads: heads kept.
      hidden: width of the MLP.
      batch: number of sequences.
      context: keys that a query sees; the tokens if None.
      dim: dimension of a head; width / heads if None.
      **fields: fields of all products.

    Returns:
      A `Workload` of six operations.

    Example:
      >>> transformer_layer(128, width=768, heads=12, hidden=3072).names[:2]
      ('qkv_projection', 'attention_scores')
    """
    _ranges.check_numbers(_ranges.POSITIVE, width=width, heads=heads, batch=batch)
    dim = width / heads if dim is None else dim
    rows, inner = batch * tokens, heads * dim
    keys = tokens if context is None else context
    up: dict[str, Any] = {"name": "mlp_up", "elementwise": rows * hidden, **fields}
    return chain(
        [
            product(rows, 3 * inner, width, name="qkv_projection", **fields),
            attention(tokens, keys, batch * heads, dim=dim, **fields),
            product(rows, width, inner, name="output_projection", **fields),
            product(rows, hidden, width, **up),
            product(rows, width, hidden, name="mlp_down", **fields),
        ]
    )


def bert_base(tokens: float = 128, batch: float = 1, **fields: Any) -> Workload:
    """Returns BERT-base: 12 layers, width 768, 12 heads; without embeddings.

    Args:
      tokens: tokens of a sequence.
      batch: number of sequences.
      **fields: fields of all products.

    Returns:
      A `Workload` of six operations, each repeated 12 times.

    References:
      Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for
      Language Understanding, 2019, arXiv:1810.04805.
    """
    layer = transformer_layer(
        tokens, width=768, heads=12, hidden=3072, batch=batch, **fields
    )
    return repeated(layer, 12)


def bert_large(tokens: float = 128, batch: float = 1, **fields: Any) -> Workload:
    """Returns BERT-large: 24 layers, width 1024, 16 heads; without embeddings.

    Args:
      tokens: tokens of a sequence.
      batch: number of sequences.
      **fields: fields of all products.

    Returns:
      A `Workload` of six operations, each repeated 24 times.
    """
    layer = transformer_layer(
        tokens, width=1024, heads=16, hidden=4096, batch=batch, **fields
    )
    return repeated(layer, 24)


def gpt2_small(
    tokens: float = 1, context: float = 1024, batch: float = 1, **fields: Any
) -> Workload:
    """Returns GPT-2 small: 12 layers, width 768, 12 heads; without the vocabulary.

    Args:
      tokens: tokens processed at once: 1 in generation, or those of a prompt.
      context: keys that each token sees.
      batch: number of sequences.
      **fields: fields of all products.

    Returns:
      A `Workload` of six operations, each repeated 12 times.

    References:
      Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
    """
    layer = transformer_layer(
        tokens, width=768, heads=12, hidden=3072, batch=batch, context=context, **fields
    )
    return repeated(layer, 12)


def gpt2_medium(
    tokens: float = 1, context: float = 1024, batch: float = 1, **fields: Any
) -> Workload:
    """Returns GPT-2 medium: 24 layers, width 1024, 16 heads; without the vocabulary.

    Args:
      tokens: tokens processed at once: 1 in generation, or those of a prompt.
      context: keys that each token sees.
      batch: number of sequences.
      **fields: fields of all products.

    Returns:
      A `Workload` of six operations, each repeated 24 times.
    """
    sizes: dict[str, Any] = {"width": 1024, "heads": 16, "hidden": 4096, "batch": batch}
    layer = transformer_layer(tokens, context=context, **sizes, **fields)
    return repeated(layer, 24)


def vit_base(side: int = 224, batch: float = 1, **fields: Any) -> Workload:
    """Returns ViT-B/16: patch embedding, 12 layers of width 768, 1000 classes.

    Args:
      side: side of the image in pixels, a multiple of 16.
      batch: number of images.
      **fields: fields of all products.

    Returns:
      A `Workload` of eight operations.

    References:
      Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, arXiv:2010.11929.
    """
    _ranges.check_multiple(16, side=side)
    patches = (side // 16) ** 2
    layer = transformer_layer(
        patches + 1, width=768, heads=12, hidden=3072, batch=batch, **fields
    )
    return chain(
        [
            product(
                batch * patches, 768, 3 * 16 * 16, name="patch_embedding", **fields
            ),
            repeated(layer, 12),
            product(batch, 1000, 768, name="head", **fields),
        ]
    )


@renamed_arguments(groups="feature_group_count")
def convolution(
    side: int,
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    feature_group_count: int = 1,
    batch: float = 1,
    **fields: Any,
) -> Workload:
    """Returns a convolution with "same" padding, as a product of patches with kernels.

    Args:
      side: side of the input image in pixels.
      inputs: input channels.
      outputs: output channels.
      kernel: side of the kernel in pixels.
      stride: stride of the kernel in pixels.
      feature_group_count: number of groups of a grouped convolution, as in `jax.lax`;
        the number of channels for a depthwise one.
      batch: number of images.
      **fields: fields of the product.

    Returns:
      A `Workload` of one operation.

    Raises:
      PruningError: if `feature_group_count` does not divide the channels.

    Example:
      >>> conv = convolution(56, 64, 64)
      >>> conv.m.tolist(), conv.k.tolist(), round(1 / float(conv.input_unique[0]))
      ([3136.0], [576.0], 9)
    """
    parts = feature_group_count
    sizes = {"side": side, "inputs": inputs, "outputs": outputs, "batch": batch}
    sizes |= {"kernel": kernel, "stride": stride, "feature_group_count": parts}
    _ranges.check_numbers(_ranges.POSITIVE, **sizes)
    if inputs % parts or outputs % parts:
        raise base.PruningError(
            f"feature_group_count={parts} does not divide {inputs} input and {outputs} "
            "output channels."
        )
    places = batch * math.ceil(side / stride) ** 2
    k = inputs // parts * kernel**2
    pixels = batch * side * side * inputs / parts
    return product(
        *(places, outputs // parts, k),
        batch=parts,
        input_unique=min(1.0, pixels / (places * k)),
        **fields,
    )


def resnet50(side: int = 224, batch: float = 1, **fields: Any) -> Workload:
    """Returns ResNet-50 with 1000 classes and the stride in its 3 x 3 convolutions.

    Args:
      side: side of the image in pixels, a multiple of 32.
      batch: number of images.
      **fields: fields of all products.

    Returns:
      A `Workload` of 54 operations: 53 convolutions and one product.

    References:
      He et al., Deep Residual Learning for Image Recognition, 2016,
      arXiv:1512.03385.
    """
    _ranges.check_multiple(32, side=side)
    fields |= {"batch": batch}
    found = [convolution(side, 3, 64, kernel=7, stride=2, name="stem", **fields)]
    side, inputs = side // 4, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            width, stride = 64 * 2**stage, 2 if stage and not block else 1
            parts = _bottleneck(side, inputs, width, stride, block == 0, fields)
            found.append(_within(f"stage_{stage}/block_{block}", parts))
            side, inputs = side // stride, 4 * width
    del fields["batch"]
    return chain([*found, product(batch, 1000, 2048, name="head", **fields)])


def _bottleneck(
    side: int, inputs: int, width: int, stride: int, first: bool, fields: Any
) -> Workload:
    outputs = 4 * width
    one: dict[str, Any] = {"kernel": 1, **fields}
    found = [
        convolution(side, inputs, width, name="conv_0", **one),
        convolution(side, width, width, stride=stride, name="conv_1", **fields),
        convolution(side // stride, width, outputs, name="conv_2", **one),
    ]
    if first:
        one |= {"stride": stride, "name": "shortcut"}
        found.append(convolution(side, inputs, outputs, **one))
    return chain(found)


def _within(prefix: str, parts: Workload) -> Workload:
    return rename(parts, [f"{prefix}/{name}" for name in parts.names])


def scheduled(
    tokens: Sequence[float],
    heads: Sequence[float],
    *,
    queries: Sequence[float] | None = None,
    values: Sequence[float] | None = None,
    dim: float = 64,
    **fields: Any,
) -> Workload:
    """Returns the attention of a network under a pruning schedule.

    Args:
      tokens: tokens (keys) that each layer keeps.
      heads: heads that each layer keeps.
      queries: queries of each layer, such as 1 in generation; the tokens if None.
      values: values that each layer keeps for a query; the tokens if None.
      dim: dimension of a head.
      **fields: fields of all products.

    Returns:
      A `Workload` of two operations per layer.

    Raises:
      PruningError: if the sequences have different lengths.

    Example:
      >>> net = scheduled((128, 96, 64), (12, 12, 10))
      >>> net.batch.tolist(), net.n[::2].tolist()
      ([12.0, 12.0, 12.0, 12.0, 10.0, 10.0], [128.0, 96.0, 64.0])
    """
    queries = tokens if queries is None else queries
    values = tokens if values is None else values
    if len({len(x) for x in (tokens, heads, queries, values)}) > 1 or not len(tokens):
        raise base.PruningError(
            f"A schedule has one number for each layer; got {len(tokens)} of tokens, "
            f"{len(heads)} of heads, {len(queries)} of queries and {len(values)} of "
            "values, and at least one layer."
        )
    following = [*tokens[1:], tokens[-1]]
    rows = zip(queries, tokens, heads, values, following, strict=True)
    return chain(
        [
            _within(
                f"layer_{i}",
                attention(q, t, h, dim=dim, values=v, next_keys=min(t, nxt), **fields),
            )
            for i, (q, t, h, v, nxt) in enumerate(rows)
        ]
    )
