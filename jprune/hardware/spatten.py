"""SpAtten's attention in closed form: four stages in a pipeline, and the DRAM.

Queries are the outer loop: one query of one head at a time. A head's keys meet 8 a
cycle, its values 8 a cycle, and a selection drops values; keys and values come from
DRAM once for a head. `jprune.hardware.cost` says the same from tiles, which take values
by 64: within a few percent where that divides them, else up to a quarter more. Here are
the paper's own quantities, and the sum that its released model takes.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jprune.hardware._accelerator import Accelerator
from jprune.hardware.topk import topk_cycles

# Cycles from the last key to the last result: SRAM, multipliers and adder tree; then
# dequantization 7, exponential 21, accumulation 23, division 29, quantization 7.
_DRAIN = 11 + 87
_TAIL = 5


class Attention(NamedTuple):
    """What layers of attention ask for, as arrays that broadcast: a number a layer.

    Attributes:
      queries: of a head, 1 in generation.
      keys: kept.
      values: kept for a query.
      heads: kept.
      key_bits: of the part of keys that is always fetched.
      value_bits: of values.
      lsb_bits: of the part of keys that is fetched later.
      refetch: in [0, 1], the share of queries for which it is.
      next_keys: tokens that stay after the layer.
      dim: of a head.
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
    """Cycles of each stage for a layer, and its bytes.

    Attributes:
      dram_bytes: keys and values, of what is fetched.
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
      layer: sizes, perhaps one for each layer.
      machine: such as `machines.spatten()`: a stage has half of its arrays.

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
    """Returns cycles with all stages and the DRAM side by side, and a drain each layer.

    Args:
      found: of `stages`.

    Returns:
      Cycles of each layer.
    """
    work = jnp.maximum(found.scores, jnp.maximum(found.values, found.topk))
    return jnp.maximum(work, found.dram) + found.drain


def summed(found: Stages) -> Any:
    """Returns cycles as the authors' released model adds them.

    Transfers first, then Q.K of all heads, the drain of the last one, and all
    selections; nothing hides but prob.V.

    Args:
      found: of `stages`.

    Returns:
      Cycles of each layer.
    """
    return found.dram + found.scores + found.drain + found.topk


def ramp(
    layers: int, average: float, *, first: float = 0.15, least: float = 0.0
) -> list[float]:
    """Returns the share that each layer keeps, on average a given one.

    All in the first layers, then a straight line whose start and end are on average
    what the other layers have to keep.

    Args:
      layers: how many.
      average: share over all layers, in (0, 1].
      first: the share of layers that keep all, rounded up.
      least: no layer keeps less.

    Returns:
      A share for each layer, not increasing.

    Example:
      >>> [round(x, 2) for x in ramp(6, 0.7, first=1 / 3)]
      [1.0, 1.0, 0.89, 0.66, 0.44, 0.21]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section V.A: no tokens are pruned
      in the first 15 % of layers, no heads in the first 30 %.
    """
    whole = math.ceil(first * layers)
    rest = layers - whole
    mean = (average * layers - whole) / rest
    # From the first pruned layer's share to the end's; symmetric around the mean.
    span = min(1 - mean, mean - least)
    steps = [(2 * i + 1) / rest - 1 for i in range(rest)]
    return [1.0] * whole + [mean - span * s for s in steps]
