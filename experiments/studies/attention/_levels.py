"""Pruning levels with SpAtten's techniques, and the savings of each technique.

Counted as in the paper:

- DRAM: the traffic of attention: rows of Q, K and V of the remaining tokens and heads,
  read once per layer (K and V of a head stay on chip for all queries). Weights of the
  surrounding layers, which the paper's accelerator does not read either, and writes of
  attention are not counted. The reference is dense attention in float32.
- Computation: multiply-adds of Q.K and of probabilities with V. Those of whole layers,
  with projections and feed-forward layers, are reported separately.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.loops import finetune as ft
from experiments.models import encoder
from jprune import attention as ja

PAPER = "SpAtten, 2021, arXiv:2012.09852"
WHOLE = ja.Bits(query=32, msb=32, lsb=0, value=32)  # float32
ROWS = ("dense", "tokens", "+ heads", "+ local values", "+ quantization")


class Level(NamedTuple):
    """Amount of pruning, in a few numbers; see `jprune.attention.ramp`.

    Attributes:
      tokens: mean share of tokens over the layers that prune.
      start: share of tokens in the first layer that prunes.
      heads: mean share of heads over the layers that prune.
      values: share of a row's keys whose values are fetched.
      bits: bits of queries, of keys in two planes, and of values.
      threshold: rows whose largest probability is below it fetch the lower plane.
      last: share of values in the last layer, or None for that of the others.
      front: share of layers at the front that keep all tokens.
    """

    tokens: float = 1.0
    start: float = 1.0
    heads: float = 1.0
    values: float = 1.0
    bits: ja.Bits = ja.Bits(6, 4, 4, 6)
    threshold: float = 0.1
    last: float | None = None
    front: float = 0.15

    def only_tokens(self) -> "Level":
        """Returns the level with token pruning only."""
        return Level(self.tokens, self.start, front=self.front)


def level_of(fields: dict[str, Any]) -> Level:
    """Returns the level of a results file."""
    return Level(**(fields | {"bits": ja.Bits(**fields["bits"])}))


def pruning(level: Level, depth: int, heads: int) -> encoder.Pruning:
    """Returns how much each layer keeps, on the host.

    The first 30 % of the layers keep all heads, as in the paper, and the first
    `level.front` (by default 15 %) keep all tokens.
    """
    fine = 10_000  # resolution of shares, since `ramp` returns counts
    tokens = ja.ramp(
        depth, fine, level.tokens, start=level.start, front=level.front, multiple=1
    )
    kept = ja.ramp(depth, heads, level.heads, front=0.3, multiple=1)
    values = np.full(depth, level.values, np.float32)
    if level.last is not None:
        values[-1] = level.last
    shares: tuple[Any, ...] = (
        np.asarray(tokens, np.float32) / np.float32(fine),
        np.asarray(kept, np.float32),
        values,
    )
    return encoder.Pruning(*shares)


def steps(level: Level) -> dict[str, Level | None]:
    """Returns the rows of the breakdown; each adds one technique."""
    tokens = level.only_tokens()
    heads = tokens._replace(heads=level.heads)
    values = heads._replace(values=level.values, last=level.last)
    found = (None, tokens, heads, values, level)
    return dict(zip(ROWS, found, strict=True))


class Cost(NamedTuple):
    """Cost of some sentences, summed over layers.

    Attributes:
      dram: bytes that attention reads.
      attention: multiply-adds of Q.K and of probabilities with V.
      layers: multiply-adds of whole layers.
    """

    dram: float
    attention: float
    layers: float


class Sizes(NamedTuple):
    """Sizes of a network.

    Attributes:
      depth: number of layers.
      heads: heads per layer.
      dim: dimension of a head.
      width: width of the residual stream.
      hidden: width of the feed-forward layers.
    """

    depth: int
    heads: int
    dim: int
    width: int
    hidden: int


def sizes_of(params: Any, heads: int) -> Sizes:
    """Returns the sizes of an encoder's parameters."""
    layer = params["layers"][0]
    width, inner = layer["q"]["kernel"].shape
    hidden = layer["up"]["kernel"].shape[1]
    return Sizes(len(params["layers"]), heads, inner // heads, width, hidden)


def kept_of(
    level: Level | None, sizes: Sizes, *, quantized: bool, shrink: bool = False
) -> ft.Kept:
    """Returns the pruning of an encoder at a level; None is dense."""
    if level is None:
        return ft.DENSE
    what = pruning(level, sizes.depth, sizes.heads)
    progressive = encoder.Progressive(level.bits, level.threshold)
    shares = tuple(float(share) for share in what.tokens) if shrink else None
    return ft.Kept(what, progressive if quantized else None, shares)


def cost(counts: encoder.Counts, sizes: Sizes, bits: ja.Bits | None = None) -> Cost:
    """Returns the bytes read and the multiply-adds.

    Args:
      counts: operation counts of each layer, summed over sentences, on the host.
      sizes: sizes of the network.
      bits: bits of the operands; None for float32.
    """
    read = ja.fetched_bits(counts.fetched, sizes.dim, WHOLE if bits is None else bits)
    total = {name: float(np.sum(getattr(counts, name))) for name in _SUMMED}
    attention = sizes.dim * (total["pairs"] + total["products"])
    rows = 3 * float(np.sum(counts.fetched.queries)) + total["spoken"]
    outside = rows * sizes.dim * sizes.width
    forward = 2 * total["after"] * sizes.width * sizes.hidden
    return Cost(sum(read) / 8, attention, attention + outside + forward)


_SUMMED = ("pairs", "products", "spoken", "after")


def savings(full: Cost, ours: Cost) -> dict[str, float]:
    """Returns the factors saved; `dram16` is relative to 16 bits."""
    return {
        "dram": full.dram / ours.dram,
        "dram16": full.dram / 2 / ours.dram,
        "attention": full.attention / ours.attention,
        "layers": full.layers / ours.layers,
    }


def refetched(counts: encoder.Counts) -> dict[str, float]:
    """Returns the percentages of rows and of keys that fetch the lower plane."""
    rows = float(np.sum(counts.fetched.queries))
    keys = float(np.sum(counts.fetched.keys))
    return {
        "rows": 100 * float(np.sum(counts.unsure)) / rows,
        "keys": 100 * float(np.sum(counts.fetched.lower)) / keys,
    }


def breakdown(
    level: Level, sizes: Sizes, judge: Callable[[bool, ft.Kept], Any]
) -> dict[str, dict[str, float]]:
    """Returns score and savings, with one more technique in each row.

    Args:
      level: the level, with all techniques.
      sizes: sizes of the network.
      judge: `(pruned, kept) -> (score, counts)`, for the dense or the pruned network.
    """
    rows, full = {}, None
    for name, part in steps(level).items():
        last = name == ROWS[-1]
        score, counts = judge(part is not None, kept_of(part, sizes, quantized=last))
        spent = cost(counts, sizes, level.bits if last else None)
        full = spent if full is None else full
        rows[name] = {"score": score, **savings(full, spent), **refetched(counts)}
    return rows


def try_out(
    candidates: Sequence[Level], sizes: Sizes, judge: Callable[[ft.Kept], Any]
) -> list[dict[str, float]]:
    """Returns score, loss and savings of each candidate, with all techniques.

    Args:
      candidates: candidate levels.
      sizes: sizes of the network.
      judge: `kept -> (score, loss, counts)`.
    """
    *_, counts = judge(ft.DENSE)
    full, tried = cost(counts, sizes), []
    for level in candidates:
        score, loss, counts = judge(kept_of(level, sizes, quantized=True))
        saved = savings(full, cost(counts, sizes, level.bits))
        tried.append({"score": score, "loss": loss, **saved})
    return tried


def enough(tried: list[dict[str, float]], dram: float, attention: float) -> list[int]:
    """Returns the indices of the candidates that save enough, in order.

    If no candidate does, the one that reads least is returned.

    Args:
      tried: result of `try_out`.
      dram: required reduction of the traffic.
      attention: required reduction of the multiply-adds.
    """
    found = [
        i
        for i, each in enumerate(tried)
        if each["dram"] >= dram and each["attention"] >= attention
    ]
    return found or [max(range(len(tried)), key=lambda i: tried[i]["dram"])]


def pick(tried: list[dict[str, float]], dram: float, attention: float) -> int:
    """Returns the index of the candidate with the least loss that saves enough.

    Args:
      tried: result of `try_out`.
      dram: required reduction of the traffic.
      attention: required reduction of the multiply-adds.
    """
    return min(enough(tried, dram, attention), key=lambda i: tried[i]["loss"])
