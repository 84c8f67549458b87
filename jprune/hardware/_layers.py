"""Workloads of parts of networks: attention, a transformer layer, a convolution."""

import math
from typing import Any

from jprune._core import base
from jprune._core.deprecation import renamed_arguments
from jprune.hardware import _ranges
from jprune.hardware._workload import Workload
from jprune.hardware.workload import chain, product, rename


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

    Raises:
      PruningError: if a field is unknown or out of range; names it.

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

    Raises:
      PruningError: if a field is unknown or out of range; names it.

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
      PruningError: if `feature_group_count` does not divide the channels, or a field is
        unknown or out of range; names it.

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


def within(prefix: str, parts: Workload) -> Workload:
    """Returns operations with a prefix before their names, as in paths."""
    return rename(parts, [f"{prefix}/{name}" for name in parts.names])
