"""SpAtten's techniques one after the other, and what each saves.

What is counted, as in the paper:

- DRAM: what attention reads, the rows of Q, K and V of the tokens and heads that are
  left, each once a layer (K and V of a head stay on the chip for all queries). Not the
  weights of the layers around, which the paper's accelerator does not read either, nor
  what attention writes. The reference is dense attention in float32.
- Computation: multiply-adds of Q.K and of probabilities with V; those of whole layers,
  projections and feed-forward halves included, stand beside.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.loops import finetune as ft
from experiments.models import encoder
from jprune import attention as ja

PAPER = "SpAtten, 2021, arXiv:2012.09852"
WHOLE = ja.Bits(query=32, msb=32, lsb=0, value=32)  # float32, for counting
ROWS = ("dense", "tokens", "+ heads", "+ local values", "+ quantization")


class Level(NamedTuple):
    """How much is pruned, as few numbers; see `jprune.attention.ramp`.

    Attributes:
      tokens: The mean share of tokens over the layers that prune.
      start: The share of the first of them.
      heads: The mean share of heads over the layers that prune.
      values: The share of a row's keys whose values are fetched.
      bits: Of queries, keys in two planes, and values.
      threshold: Below it a row's largest probability asks for the lower plane.
      last: The share of values in the last layer, or None for that of the others.
      front: The share of layers in front that keep all tokens.
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
        """Returns the level with no other technique."""
        return Level(self.tokens, self.start, front=self.front)


def level_of(fields: dict[str, Any]) -> Level:
    """Returns the level of a results file."""
    return Level(**(fields | {"bits": ja.Bits(**fields["bits"])}))


def pruning(level: Level, depth: int, heads: int) -> encoder.Pruning:
    """Returns what each layer keeps, on the host.

    The first 30 % of layers keep all heads, as in the paper, and the first 15 % all
    tokens, if the level does not say otherwise.
    """
    fine = 10_000  # shares by way of counts
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
    """Returns the rows of the breakdown: each has one technique more."""
    tokens = level.only_tokens()
    heads = tokens._replace(heads=level.heads)
    values = heads._replace(values=level.values, last=level.last)
    found = (None, tokens, heads, values, level)
    return dict(zip(ROWS, found, strict=True))


class Cost(NamedTuple):
    """Of some sentences, all layers.

    Attributes:
      dram: Bytes that attention reads.
      attention: Multiply-adds of Q.K and of probabilities with V.
      layers: Multiply-adds of everything.
    """

    dram: float
    attention: float
    layers: float


class Sizes(NamedTuple):
    """Of a network.

    Attributes:
      depth: Layers.
      heads: In each.
      dim: Of a head.
      width: Of the stream.
      hidden: Of the feed-forward halves.
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
    """Returns what a level keeps of an encoder."""
    if level is None:
        return ft.DENSE
    what = pruning(level, sizes.depth, sizes.heads)
    progressive = encoder.Progressive(level.bits, level.threshold)
    shares = tuple(float(share) for share in what.tokens) if shrink else None
    return ft.Kept(what, progressive if quantized else None, shares)


def cost(counts: encoder.Counts, sizes: Sizes, bits: ja.Bits | None = None) -> Cost:
    """Returns what was read and multiplied.

    Args:
      counts: Of each layer, summed over sentences, on the host.
      sizes: Of the network.
      bits: Of the operands; None for float32.
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
    """Returns how many times less is read and multiplied; `dram16` from 16 bits."""
    return {
        "dram": full.dram / ours.dram,
        "dram16": full.dram / 2 / ours.dram,
        "attention": full.attention / ours.attention,
        "layers": full.layers / ours.layers,
    }


def refetched(counts: encoder.Counts) -> dict[str, float]:
    """Returns the percentages of rows and of keys that fetched the lower plane."""
    rows = float(np.sum(counts.fetched.queries))
    keys = float(np.sum(counts.fetched.keys))
    return {
        "rows": 100 * float(np.sum(counts.unsure)) / rows,
        "keys": 100 * float(np.sum(counts.fetched.lower)) / keys,
    }


def breakdown(
    level: Level, sizes: Sizes, judge: Callable[[bool, ft.Kept], Any]
) -> dict[str, dict[str, float]]:
    """Returns score and savings, a technique more in each row.

    Args:
      level: With all techniques.
      sizes: Of the network.
      judge: `(pruned, kept) -> (score, counts)`, of the dense network or the pruned
        one.
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
    """Returns what each candidate loses and saves, all techniques on.

    Args:
      candidates: To be tried.
      sizes: Of the network.
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
    """Returns which candidates save enough, in their order.

    Where none does it is the one that reads least.

    Args:
      tried: Of `try_out`.
      dram: How many times less has to be read.
      attention: How many times less has to be multiplied.
    """
    found = [
        i
        for i, each in enumerate(tried)
        if each["dram"] >= dram and each["attention"] >= attention
    ]
    return found or [max(range(len(tried)), key=lambda i: tried[i]["dram"])]


def pick(tried: list[dict[str, float]], dram: float, attention: float) -> int:
    """Returns which candidate to take: of those that save enough, that of least loss.

    Args:
      tried: Of `try_out`.
      dram: How many times less has to be read.
      attention: How many times less has to be multiplied.
    """
    return min(enough(tried, dram, attention), key=lambda i: tried[i]["loss"])
