"""Closed form of SpAtten's attention: four pipeline stages, and the DRAM.

Queries are the outer loop: one query of one head at a time. Eight of a head's keys are
processed per cycle, then eight of its values, after a selection has dropped values;
keys and values come from DRAM once for each head. `jprune.hardware.cost` computes the
same from tiles that take 64 values each: within a few percent where values are a
multiple of 64, otherwise up to a quarter more. Here are the paper's own quantities, and
the sum that its released model computes.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jprune._core import base
from jprune.hardware import _ranges
from jprune.hardware._accelerator import Accelerator
from jprune.hardware.topk import topk_cycles

# Cycles from the last key to the last result: SRAM, multipliers and adder tree; then
# dequantization 7, exponential 21, accumulation 23, division 29, quantization 7.
_DRAIN = 11 + 87
_TAIL = 5


class Attention(NamedTuple):
    """Sizes of attention layers, as arrays that broadcast: one number per layer.

    Attributes:
      queries: queries of a head, 1 in generation.
      keys: keys kept.
      values: values kept for a query.
      heads: heads kept.
      key_bits: bits of a key that are always fetched.
      value_bits: bits of a value.
      lsb_bits: bits of a key that are fetched later.
      refetch: fraction in [0, 1] of queries that fetch them.
      next_keys: tokens that stay after the layer.
      dim: dimension of a head.
    """

    queries: Any
    keys: Any
    values: Any
    heads: Any
    key_bits: Any = 12.0
    value_bits: Any = 12.0
    lsb_bits: Any = 0.0
    refetch: Any = 0.0
    next_keys: Any = float("inf")
    dim: Any = 64.0


class Stages(NamedTuple):
    """Cycles of each stage of a layer, and its DRAM bytes.

    Attributes:
      dram_bytes: bytes of keys and values fetched.
      dram: cycles of their transfer.
      scores: cycles of Q.K.
      values: cycles of prob.V.
      topk: cycles of the selections of values and tokens.
      drain: cycles after the last key of a head.
    """

    dram_bytes: Any
    dram: Any
    scores: Any
    values: Any
    topk: Any
    drain: Any


def stages(layer: Attention, machine: Accelerator) -> Stages:
    """Returns the cycles of each stage.

        bytes  = h d (k (b_k + r b_lsb) + v b_v) / 8
        dram   = bytes clock / bandwidth
        scores = h q (1 + r) ceil(k / m),     m = multipliers of a stage / d
        values = h q ceil(v / m)
        topk   = h q topk_cycles(k, v) + topk_cycles(k, next)

    Args:
      layer: sizes of one layer, or arrays of those of many.
      machine: such as `machines.spatten()`: each stage has half of its arrays.

    Returns:
      `Stages` of the layers' shape.

    Example:
      >>> from jprune.hardware import machines
      >>> found = stages(Attention(1.0, 1024.0, 204.0, 1.0), machines.spatten())
      >>> float(found.scores), float(found.dram), round(float(found.topk))
      (128.0, 230.25, 236)

    References:
      Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade Token
      and Head Pruning, 2021, arXiv:2012.09852, section IV.
    """
    multipliers = machine.rows * machine.columns * machine.arrays / 2
    at_once = multipliers / layer.dim
    rows = layer.heads * layer.queries
    fetched = layer.keys * (layer.key_bits + layer.refetch * layer.lsb_bits)
    bits = fetched + layer.values * layer.value_bits
    moved = layer.heads * layer.dim * bits / 8
    lines = jnp.ceil(layer.keys / at_once)
    kept = jnp.minimum(layer.next_keys, layer.keys)
    local = rows * topk_cycles(layer.keys, layer.values, machine.topk)
    return Stages(
        dram_bytes=moved,
        dram=moved * machine.clock / machine.dram_bandwidth,
        scores=rows * (1 + layer.refetch) * lines,
        values=rows * jnp.ceil(layer.values / at_once),
        topk=local + topk_cycles(layer.keys, kept, machine.topk),
        drain=_DRAIN + lines + _TAIL,
    )


def overlapped(found: Stages) -> Any:
    """Returns cycles with all stages and the DRAM in parallel, plus a drain each layer.

    Args:
      found: result of `stages`.

    Returns:
      Cycles of each layer.

    Example:
      >>> layer = Stages(  # cycles
      ...     0.0, dram=230.0, scores=128.0, values=26.0, topk=236.0, drain=231.0)
      >>> float(overlapped(layer))  # the slowest, 236, and the drain
      467.0
    """
    work = jnp.maximum(found.scores, jnp.maximum(found.values, found.topk))
    return jnp.maximum(work, found.dram) + found.drain


def summed(found: Stages) -> Any:
    """Returns cycles as the authors' released model sums them.

    Transfers first, then Q.K of all heads, the drain of the last one, and all
    selections; only prob.V is hidden.

    Args:
      found: result of `stages`.

    Returns:
      Cycles of each layer.

    Example:
      >>> layer = Stages(  # cycles
      ...     0.0, dram=230.0, scores=128.0, values=26.0, topk=236.0, drain=231.0)
      >>> summed(layer)  # 230 + 128 + 231 + 236
      825.0
    """
    return found.dram + found.scores + found.drain + found.topk


def ramp(
    layers: int, average: float, *, first: float = 0.15, least: float = 0.0
) -> list[float]:
    """Returns keep ratios of layers with a given average.

    The first layers keep all; the ratios of the others fall linearly, symmetric around
    the mean that they need.

    Args:
      layers: number of layers, positive.
      average: keep ratio averaged over all layers, in (0, 1].
      first: fraction of the layers that keep all, in [0, 1], rounded up to whole
        layers.
      least: lower bound of the keep ratios, in [0, 1].

    Returns:
      A keep ratio for each layer, not increasing.

    Raises:
      PruningError: if a number is out of its range, or the layers that keep all and the
        lower bound leave no ratios with that average.

    Example:
      >>> [round(x, 2) for x in ramp(6, 0.7, first=1 / 3)]
      [1.0, 1.0, 0.89, 0.66, 0.44, 0.21]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section V.A: no tokens are pruned
      in the first 15 % of layers, no heads in the first 30 %.
    """
    _ranges.check_numbers(_ranges.POSITIVE, layers=layers)
    _ranges.check_numbers(_ranges.SOME, average=average)
    _ranges.check_numbers(_ranges.SHARE, first=first, least=least)
    whole = math.ceil(first * layers)
    rest = layers - whole
    lowest = (whole + rest * least) / layers
    if average < lowest - 1e-9 or (not rest and average < 1):
        raise base.PruningError(
            f"{whole} of {layers} layers keep all, and the others at least {least}: "
            f"the average is at least {lowest:.4g}; got {average}."
        )
    if not rest:
        return [1.0] * whole
    mean = (average * layers - whole) / rest
    # Midpoints of equal parts of a line from mean + span to mean - span.
    span = min(1 - mean, mean - least)
    steps = [(2 * i + 1) / rest - 1 for i in range(rest)]
    return [1.0] * whole + [mean - span * s for s in steps]
