"""The decoding schedules of SpAtten's authors as data, and the memory traffic of these.

SpAtten's repository (mit-han-lab/spatten, MIT licence, spatten_hardware/hardware/
workloads) has two traces of GPT-2 on WikiText-2 with a prompt of 992 tokens and 32
generated ones: for each token, layer and head, the number of keys and values that are
read, and their bits. The traces follow these rules, which is what this module stores:

- The first token reads the keys of all previous tokens. From the second token on, each
  layer has a constant budget, a fraction of 1,024, however long the context grows.
- The number of values is a fraction of the budget, rounded down; for the first token,
  and in layers that prune no tokens, it is a fraction of 1,024.
- The small model reads keys in 6 bits, and 4 more bits for rows whose largest
  probability is below 0.05. The traces count these rows per layer, for the first token
  and for the later ones; they are all heads of a token before any of the next one's.
- The medium model always reads keys in 12 bits. It also prunes heads, from the first
  token on.
"""

import math
from typing import NamedTuple

import numpy as np

from jprune.attention import Bits, Counts, Fetched, fetched_bits, from_ratios


class Trace(NamedTuple):
    """A decoding schedule.

    Attributes:
      prompt: number of prompt tokens.
      steps: number of generated tokens.
      dim: dimension of keys and values.
      tokens: keys that each layer reads, from the second token on.
      heads: heads that each layer computes.
      values: fraction of the keys whose values are read.
      bits: bits of queries, keys and values.
      refetched: for each layer, the rows (one per head) of the first token that also
        read the lower bits of their keys.
      refetched_later: the same, for all later tokens together.
    """

    prompt: int
    steps: int
    dim: int
    tokens: Counts
    heads: Counts
    values: float
    bits: Bits
    refetched: Counts
    refetched_later: Counts


_SMALL = from_ratios([0.9, 0.7] + [0.2] * 4 + [0.1] * 6, 1024)
_MEDIUM = from_ratios([1, 1, 0.9, 0.8, 0.8] + [0.6] * 6 + [0.3] * 13, 1024)

GPT2_SMALL = Trace(
    prompt=992,
    steps=32,
    dim=64,
    tokens=_SMALL,
    heads=(12,) * 12,
    values=0.2,
    bits=Bits(query=16, msb=6, lsb=4, value=6),
    refetched=(12, 12, 12, 1, 1, 1, 1, 1, 3, 1, 1, 5),
    refetched_later=(112, 160) + (0,) * 10,
)
"""summary-gpt2-small-wikitext2-per8.csv."""

GPT2_MEDIUM = Trace(
    prompt=992,
    steps=32,
    dim=64,
    tokens=_MEDIUM,
    heads=(16,) * 16 + (13,) * 6 + (10,) * 2,
    values=0.3,
    bits=Bits(query=16, msb=12, lsb=0, value=8),
    refetched=(0,) * 24,
    refetched_later=(0,) * 24,
)
"""summary-gpt2-medium-wikitext2-per0-hp-step5+dedic+glob_p+local_p+hp+topk+quant.csv.

That heads are pruned from the first token on is inferred from the totals.
"""


class Reduction(NamedTuple):
    """Factors by which a trace reads fewer keys and values than dense attention.

    Attributes:
      keys: reduction of the rows of keys.
      elements: reduction of the elements of keys and values.
      bits: reduction of their bits, with dense attention in 32 bits.
      refetched: share of rows of probabilities that read the lower bits.
    """

    keys: float
    elements: float
    bits: float
    refetched: float


def rows(trace: Trace) -> Fetched:
    """Returns the rows of Q, K and V that each token reads in each layer.

    Args:
      trace: decoding schedule.

    Returns:
      `Fetched` of int64 arrays `(steps, layers)`, summed over heads. The lower planes
      of a layer's keys are read by all heads of a token before any of the next one's.

    Example:
      >>> read = rows(GPT2_SMALL)
      >>> read.keys[:2, 0].tolist()  # of 12 heads
      [11916, 11052]
    """
    length = trace.prompt + trace.steps
    budgets, heads = np.asarray(trace.tokens), np.asarray(trace.heads)
    step = np.arange(trace.steps)[:, None]
    context = trace.prompt + 1 + step
    keys = np.where(step == 0, context, np.minimum(context, budgets))
    of = np.where(step == 0, length, budgets)
    values = np.floor(trace.values * of + 1e-9).astype(np.int64)
    left = np.asarray(trace.refetched_later) - heads * (step - 1)
    again = np.where(step == 0, trace.refetched, np.clip(left, 0, heads))
    return Fetched(
        queries=np.broadcast_to(heads, keys.shape),
        keys=keys * heads,
        lower=keys * again,
        values=np.minimum(values, keys) * heads,
    )


def dense_rows(trace: Trace) -> Fetched:
    """Returns the rows that are read without any pruning.

    Args:
      trace: decoding schedule; its lengths and the heads of its first layer count.

    Returns:
      `Fetched` of int64 arrays `(steps, layers)`, summed over heads.
    """
    full = trace._replace(
        tokens=(trace.prompt + trace.steps,) * len(trace.tokens),
        heads=(trace.heads[0],) * len(trace.heads),
        values=1.0,
        refetched=(0,) * len(trace.heads),
        refetched_later=(0,) * len(trace.heads),
    )
    return rows(full)


def bits(trace: Trace) -> Fetched:
    """Returns the total bits of Q, K and V that a trace reads.

    Args:
      trace: decoding schedule.

    Returns:
      `Fetched` of Python integers.
    """
    return fetched_bits(rows(trace), trace.dim, trace.bits)


def reduction(trace: Trace) -> Reduction:
    """Returns the reduction of memory traffic over dense attention in 32 bits.

    Args:
      trace: decoding schedule.

    Returns:
      `Reduction` of keys and values, without queries.

    Example:
      >>> [round(x, 2) for x in reduction(GPT2_SMALL)]
      [3.62, 6.04, 28.87, 0.07]
      >>> [round(x, 2) for x in reduction(GPT2_MEDIUM)]
      [2.02, 3.1, 8.96, 0.0]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section V, whose averages over
      eight GPT-2 tasks are 3.8 times fewer tokens and 5.9 % of rows refetched.
    """
    ours, dense = rows(trace), dense_rows(trace)
    moved = bits(trace)
    full = trace.dim * 32 * (dense.keys.sum() + dense.values.sum())
    # A row of probabilities is one query of one head; it reads its keys once.
    again = sum(trace.refetched) + sum(trace.refetched_later)
    return Reduction(
        keys=float(dense.keys.sum() / ours.keys.sum()),
        elements=float(
            (dense.keys.sum() + dense.values.sum())
            / (ours.keys.sum() + ours.values.sum())
        ),
        bits=float(full / (moved.keys + moved.lower + moved.values)),
        refetched=again / math.prod((trace.steps, sum(trace.heads))),
    )
