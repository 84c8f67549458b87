"""SpAtten's algorithm in plain NumPy and float64, one sample at a time.

Written from the paper's algorithm 1 and section III, not from the library: loops over
heads, sorted lists for choices, Python integers for quantized products. What the
library does in float32 is compared with it up to rounding.
"""

import math

import numpy as np


def attention(q, k, v, mask):
    """Probabilities and outputs of (heads, queries, dim) and (kv heads, keys, dim)."""
    heads = len(q)
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    probs = np.zeros((heads, q.shape[1], k.shape[1]))
    for h in range(heads):
        logits = q[h] @ k[h * len(k) // heads].T / math.sqrt(q.shape[2])
        probs[h] = softmax(logits, mask)
    return weigh(probs, v), probs


def softmax(logits, mask):
    """Rows of a (queries, keys) matrix; zeros for rows that see nothing."""
    shifted = np.where(mask, logits, -np.inf)
    top = shifted.max(1, keepdims=True)
    e = np.exp(shifted - np.where(np.isfinite(top), top, 0))
    total = e.sum(1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def weigh(probs, v):
    heads = len(probs)
    return np.stack([probs[h] @ v[h * len(v) // heads] for h in range(heads)])


def token_scores(probs, valid):
    """Sums over heads and real queries."""
    total = np.zeros(probs.shape[2])
    for head in probs:
        total += head[valid].sum(0)
    return np.where(valid, total, 0)


def value_mask(probs, counts):
    """The largest of each row of a (queries, keys) matrix, the earlier of equals."""
    order = np.argsort(-probs, axis=1, kind="stable")
    places = np.argsort(order, axis=1)
    return (places < counts[:, None]) & (probs > 0)


def head_scores(outputs, valid):
    return np.array([np.abs(head[valid]).sum() for head in outputs])


def keep(scores, count, valid=None, protected=None):
    """The best in their original order: protected ones, then by score, padding last."""
    n = len(scores)
    valid = np.ones(n, bool) if valid is None else valid
    protected = np.zeros(n, bool) if protected is None else protected

    def rank(i):
        if not valid[i]:
            return (2, 0.0, i)
        return (0, 0.0, i) if protected[i] else (1, -float(scores[i]), i)

    return sorted(sorted(range(n), key=rank)[:count])


def is_best(kept, scores, valid, protected, slack):
    """Whether no choice is better by more than `slack`."""
    free = valid & ~protected
    inside = np.isin(np.arange(len(scores)), kept)
    last = min(scores[inside & free], default=np.inf)
    if last < max(scores[~inside & free], default=-np.inf) - slack:
        return False
    room = len(kept)
    return inside[protected & valid].sum() == min(
        room, (protected & valid).sum()
    ) and inside[valid].sum() == min(room, valid.sum())


def quantize(x, bits, real=None):
    """Integers of one head, and their unit; scaled in float32, as is defined."""
    x = np.asarray(x, np.float32)
    most = 2 ** (bits - 1) - 1
    counted = x if real is None else x[real]
    top = np.abs(counted).max() if counted.size else np.float32(0)
    if top == 0:
        return np.zeros(x.shape, np.int64), 1.0
    integers = np.rint(x * (np.float32(most) / top))
    return np.clip(integers, -most, most).astype(np.int64), float(top) / most


def progressive(q, k, v, mask, keys, bits, threshold):
    """Outputs, probabilities, refetched rows and the largest first probabilities."""
    heads, queries = q.shape[:2]
    probs = np.zeros((heads, queries, k.shape[1]))
    refetched = np.zeros((heads, queries), bool)
    largest = np.zeros((heads, queries))
    for h in range(heads):
        a, unit_q = quantize(q[h], bits.query)
        b, unit_k = quantize(k[h * len(k) // heads], bits.msb + bits.lsb, keys)
        upper = (b >> bits.lsb) << bits.lsb  # what the upper plane stands for
        unit = unit_q * unit_k / math.sqrt(q.shape[2])
        first = softmax(a @ upper.T * unit, mask)
        second = softmax(a @ b.T * unit, mask)
        largest[h] = first.max(1)
        refetched[h] = (largest[h] < threshold) & mask.any(1) & (bits.lsb > 0)
        probs[h] = np.where(refetched[h][:, None], second, first)
    if bits.value:
        pairs = [quantize(head, bits.value, keys) for head in v]
        v = np.stack([integers * unit for integers, unit in pairs])
    return weigh(probs, np.asarray(v, np.float64)), probs, refetched, largest


def encode(x, layers, plan, valid, protected, choose_tokens, choose_heads):
    """A cascade over a batch: lists of samples, one set of heads for all of them.

    Args:
      x: (batch, tokens, hidden).
      layers: dicts of q, k, v (hidden, heads, dim), o (heads, dim, hidden), up, down.
      plan: with `tokens` and `heads` of each layer.
      valid: (batch, tokens).
      protected: (batch, tokens).
      choose_tokens: (layer, sample, scores, valid, protected) -> ids among those left.
      choose_heads: (layer, scores) -> ids among those left.
    """
    batch = len(x)
    samples = [np.asarray(x[b], np.float64) for b in range(batch)]
    where = [np.arange(x.shape[1]) for _ in range(batch)]
    importance = [np.zeros(x.shape[1]) for _ in range(batch)]
    left = np.arange(layers[0]["q"].shape[1])
    total = np.zeros(len(left))
    for i, w in enumerate(layers):
        if plan.heads[i] < len(left):
            left = left[choose_heads(i, total[left])]
        for b in range(batch):
            real, x_b = valid[b][where[b]], samples[b]
            q, k, v = (np.einsum("td,dhk->htk", x_b, w[n][:, left]) for n in "qkv")
            mask = np.broadcast_to(real, (len(real), len(real)))
            out, probs = attention(q, k, v, mask)
            importance[b] = importance[b] + token_scores(probs, real)
            total[left] += head_scores(out, real)
            ids = np.arange(len(real))
            if plan.tokens[i] < len(real):
                safe = protected[b][where[b]]
                ids = choose_tokens(i, b, importance[b], real, safe)
            x_b, where[b], importance[b] = x_b[ids], where[b][ids], importance[b][ids]
            x_b = x_b + np.einsum("htk,hkd->td", out[:, ids], w["o"][left])
            samples[b] = x_b + np.tanh(x_b @ w["up"]) @ w["down"]
    return samples, where, importance, left, total
