"""The authors' own schedules of decoding, as data, and what they fetch.

SpAtten's repository (mit-han-lab/spatten, MIT licence, spatten_hardware/hardware/
workloads) has two traces of GPT-2 on WikiText-2, a prompt of 992 tokens and 32 that are
generated: for each token, layer and head how many keys and values are read and in how
many bits. They follow rules, and those are what is kept here:

- The first token reads the keys of all tokens so far. From the second on a layer has a
  constant budget, a fraction of 1,024, however long the context grows.
- Values are a fraction of the budget, rounded down; for the first token, and where no
  token is pruned, of 1,024.
- Keys of the small model come in 6 bits and where a row's largest probability is under
  0.05 in 4 more. Those rows, counted by layer for the first token and afterwards, are
  all of a token's heads before any of the next one's.
- Keys of the medium model always come in 12 bits. It also prunes heads, from the first
  token on.
"""

import math
from typing import NamedTuple

import numpy as np

from jprune.attention import Bits, Counts, Fetched, fetched_bits, from_ratios


class Trace(NamedTuple):
    """A schedule of decoding.

    Attributes:
      prompt: tokens before the first that is generated.
      steps: tokens that are generated.
      dim: numbers in a row of keys or values.
      tokens: for each layer the keys that it reads from the second token on.
      heads: for each layer how many it computes.
      values: the fraction of the keys whose values are read.
      bits: of queries, keys and values.
      refetched: for each layer the rows of the first token, one a head, that read the
        lower bits of their keys.
      refetched_later: likewise, of all later tokens together.
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

That its heads are pruned for the first token too is inferred from the totals.
"""


class Reduction(NamedTuple):
    """How many times less a trace reads than dense attention, keys and values.

    Attributes:
      keys: rows of keys.
      elements: numbers in keys and values.
      bits: bits of them, dense in 32.
      refetched: the share of rows of probabilities that read the lower bits.
    """

    keys: float
    elements: float
    bits: float
    refetched: float


def rows(trace: Trace) -> Fetched:
    """Returns how many rows of Q, K and V each token reads in each layer.

    Args:
      trace: a schedule.

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
    """Returns how many rows are read where nothing is pruned.

    Args:
      trace: a schedule, of which its lengths and its first layer's heads count.

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
    """Returns how many bits of Q, K and V a trace reads in all.

    Args:
      trace: a schedule.

    Returns:
      `Fetched` of Python integers.
    """
    return fetched_bits(rows(trace), trace.dim, trace.bits)


def reduction(trace: Trace) -> Reduction:
    """Returns how many times less a trace reads than dense attention in 32 bits.

    Args:
      trace: a schedule.

    Returns:
      `Reduction`; of keys and values, queries apart.

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
