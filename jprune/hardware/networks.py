"""Workloads of well-known networks, and of attention under a pruning schedule.

    bert_base, bert_large, gpt2_small, gpt2_medium, vit_base, resnet50
    attention, transformer_layer, convolution     parts of networks
    scheduled                                     attention under a schedule

Element-wise work is counted where it accompanies a product: exponentials of a softmax,
the activation of a hidden layer. Norms and residual sums are not counted. Operations
have names, such as "mlp_up"; one that is repeated in each layer has one name. Keyword
arguments `**fields` set fields of `Workload`, such as `input_bits`, for all products.

Parts are in `_layers`; networks, which chain them, are here. A size that is not
positive is a `PruningError` with its name.
"""

from collections.abc import Sequence
from typing import Any

from jprune._core import base
from jprune.hardware import _ranges
from jprune.hardware._layers import attention as attention
from jprune.hardware._layers import convolution as convolution
from jprune.hardware._layers import transformer_layer as transformer_layer
from jprune.hardware._layers import within
from jprune.hardware._workload import Workload
from jprune.hardware.workload import chain, product, repeated


def bert_base(tokens: float = 128, batch: float = 1, **fields: Any) -> Workload:
    """Returns BERT-base: 12 layers, width 768, 12 heads; without embeddings.

    Args:
      tokens: tokens of a sequence.
      batch: number of sequences.
      **fields: fields of all products.

    Returns:
      A `Workload` of six operations, each repeated 12 times.

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> round(float(multiply_adds(bert_base(tokens=128))) / 1e9, 1)  # in 10^9
      11.2

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

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> round(float(multiply_adds(bert_large(tokens=384))) / 1e9)  # in 10^9
      123

    References:
      Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for
      Language Understanding, 2019, arXiv:1810.04805.
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

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> nets = gpt2_small(context=1), gpt2_small(context=1024)
      >>> [round(float(multiply_adds(net)) / 1e6) for net in nets]  # in 10^6
      [85, 104]

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

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> round(float(multiply_adds(gpt2_medium(context=1024))) / 1e6)  # in 10^6
      352

    References:
      Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
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

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> round(float(multiply_adds(vit_base())) / 1e9, 1)  # in 10^9
      17.6

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


def resnet50(side: int = 224, batch: float = 1, **fields: Any) -> Workload:
    """Returns ResNet-50 with 1000 classes and the stride in its 3 x 3 convolutions.

    Args:
      side: side of the image in pixels, a multiple of 32.
      batch: number of images.
      **fields: fields of all products.

    Returns:
      A `Workload` of 54 operations: 53 convolutions and one product.

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> from jprune.hardware.workload import multiply_adds
      >>> net = resnet50()
      >>> net.names[:2], round(float(multiply_adds(net)) / 1e9, 1)  # in 10^9
      (('stem', 'stage_0/block_0/conv_0'), 4.1)

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
            found.append(within(f"stage_{stage}/block_{block}", parts))
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
      PruningError: if the sequences have different lengths, or a field is unknown or
        out of range; names it.

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
            within(
                f"layer_{i}",
                attention(q, t, h, dim=dim, values=v, next_keys=min(t, nxt), **fields),
            )
            for i, (q, t, h, v, nxt) in enumerate(rows)
        ]
    )
