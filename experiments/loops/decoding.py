"""Decoding given texts with a pruned KV cache: likelihoods and memory traffic.

The prompt is processed by dense attention, as in SpAtten's summarization stage, which
yields the importance of tokens and heads. The cache of each layer is then filled up to
its budget of tokens, and all further tokens of the text are decoded with these caches.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.decoder import Decoder
from jprune import attention as ja
from jprune.attention import Planes, progressive_scores, quantize, softmax
from jprune.attention import cache as caches
from jprune.attention import decode as steps


class Plan(NamedTuple):
    """Static settings of decoding, on which shapes depend.

    Attributes:
      budgets: number of slots of each layer's cache.
      bits: bits of keys and values; None for float32.
      sinks: number of first tokens that are never evicted.
      recent: number of last tokens that are never evicted.
    """

    budgets: tuple[int, ...]
    bits: ja.Bits | None = None
    sinks: int = 1
    recent: int = 16


class Kept(NamedTuple):
    """Settings of decoding that may be traced.

    Attributes:
      heads: `(layers,)`, number of KV heads that each layer computes, each with the
        query heads that it serves.
      values: share of the cached values that are read.
      threshold: rows whose largest probability is below it read the keys' lower bits.
    """

    heads: jax.Array
    values: float
    threshold: float = 0.1


class Prompt(NamedTuple):
    """Result of processing prompts.

    Attributes:
      keys: keys of each layer, `(batch, kv heads, prompt, dim)`.
      values: values of each layer; same shape.
      scores: `(batch, prompt)`, importance of tokens, accumulated over layers.
      head_scores: `(layers, batch, kv heads)`, importance of heads, accumulated up to
        each layer.
    """

    keys: list[jax.Array]
    values: list[jax.Array]
    scores: jax.Array
    head_scores: jax.Array


class Read(NamedTuple):
    """Operation counts of the attention of a token, summed over layers and heads.

    Attributes:
      keys: rows of keys that are read.
      lower: rows of lower key bits that are read.
      values: rows of values that are read.
      products: pairs of a query with a key or a value that are multiplied.
      rows: rows of probabilities.
      unsure: rows that read the lower bits.
    """

    keys: jax.Array
    lower: jax.Array
    values: jax.Array
    products: jax.Array
    rows: jax.Array
    unsure: jax.Array


def summarize(decoder: Decoder, params: Any, ids: jax.Array) -> Prompt:
    """Returns keys, values and importances of prompts `(batch, prompt)`."""
    positions = jnp.arange(ids.shape[1])
    x = decoder.embed(params, ids, positions)
    scores = jnp.zeros(ids.shape, jnp.float32)
    keys, values, heads, total = [], [], [], 0.0
    for layer in params["layers"]:
        q, k, v = decoder.qkv(layer, x, positions)
        out, probs = ja.attend(q, k, v, causal=True)
        scores = scores + ja.token_importance(probs)
        said = ja.head_importance(out)
        total = total + said.reshape(*k.shape[:2], -1).sum(-1)
        keys, values, heads = [*keys, k], [*values, v], [*heads, total]
        x = decoder.finish(layer, x, out)
    return Prompt(keys, values, scores, jnp.stack(heads))


@functools.partial(jax.jit, static_argnums=(0, 3, 5))
def score(
    decoder: Decoder, params: Any, ids: jax.Array, prompt: int, kept: Kept, plan: Plan
) -> tuple[jax.Array, Read]:
    """Returns the likelihood of texts after their prompts, and the operation counts.

    Args:
      decoder: the model; static.
      params: its parameters.
      ids: `(batch, length)`.
      prompt: number of tokens of the prompt, static. The next token is the first one
        that is decoded, and the one after it is the first that is predicted.
      kept: how much is kept.
      plan: settings that shapes depend on; static.

    Returns:
      Negative log-likelihoods `(batch, length - prompt - 1)`, and the operation counts
      of each token, `(length - prompt - 1, batch)`.
    """
    batch, length = ids.shape
    found = summarize(decoder, params, ids[:, :prompt])
    stream = caches.start(batch, length, scores=found.scores)
    options = {"sinks": plan.sinks, "recent": plan.recent}
    filled = [
        caches.fill(k, v, stream, slots, **options)
        for k, v, slots in zip(found.keys, found.values, plan.budgets, strict=True)
    ]
    pairs = zip(found.keys, found.values, strict=True)
    units = [_units(k, v, plan.bits) for k, v in pairs]
    alive = _alive(found.head_scores, kept.heads)

    def step(carry: Any, inputs: Any) -> Any:
        cached, stream = carry
        words, targets = inputs
        logits, cached, stream, read = decode(
            decoder, params, words, cached, stream, alive, units, kept, plan
        )
        logs = jax.nn.log_softmax(logits)
        return (cached, stream), (-logs[jnp.arange(batch), targets], read)

    inputs = ids[:, prompt:-1].T, ids[:, prompt + 1 :].T
    _, (losses, read) = jax.lax.scan(step, (filled, stream), inputs)
    return losses.T, read


def decode(
    decoder: Decoder,
    params: Any,
    words: jax.Array,
    cached: Sequence[caches.Cache],
    stream: caches.Stream,
    alive: jax.Array,
    units: Sequence[Any],
    kept: Kept,
    plan: Plan,
) -> tuple[jax.Array, list[caches.Cache], caches.Stream, Read]:
    """Decodes a token: returns logits, updated caches, and operation counts."""
    positions = stream.position[:1]  # all texts have the same length
    x = decoder.embed(params, words[:, None], positions)
    written, reads = [], []
    options = {"sinks": plan.sinks, "recent": plan.recent}
    for i, layer in enumerate(params["layers"]):
        q, k, v = (y[:, :, 0] for y in decoder.qkv(layer, x, positions))
        cache, stream = caches.append(cached[i], stream, k, v, **options)
        out, probs, read = attend(q, cache, alive[i], units[i], kept, plan.bits)
        stream = steps.credit(stream, cache, probs)
        x = decoder.finish(layer, x, out[:, :, None])
        written.append(cache)
        reads.append(read)
    total = jax.tree.map(lambda *rows: sum(rows), *reads)
    return decoder.logits(params, x)[:, 0], written, caches.advance(stream), total


def attend(
    q: jax.Array,
    cache: caches.Cache,
    alive: jax.Array,
    unit: Any,
    kept: Kept,
    bits: ja.Bits | None,
) -> tuple[jax.Array, jax.Array, Read]:
    """Returns a layer's output `(batch, heads, dim)`, probabilities and counts.

    Args:
      q: `(batch, heads, dim)`.
      cache: KV cache, including the token's own key and value.
      alive: `(batch, kv heads)`, mask of the remaining KV heads.
      unit: quantization steps of keys and of values, `(batch, kv heads, 1, 1)`.
      kept: how much is kept.
      bits: bits of keys and values; None for float32.
    """
    batch, kv_heads = alive.shape
    heads = jnp.repeat(alive, q.shape[1] // kv_heads, axis=1)
    live = caches.live_slots(cache)[:, None] & heads[:, :, None]
    unsure = jnp.zeros(heads.shape, bool)
    if bits is None:
        probs = softmax(steps.query(q, cache), live)
    else:
        grouped = cache.keys.swapaxes(1, 2).reshape(batch, kv_heads, -1, q.shape[-1])
        planes = _planes(grouped, unit[0], bits)
        upper, whole = progressive_scores(q[:, :, None], planes, bits)
        probs = softmax(upper[:, :, 0], live)
        unsure = (probs.max(-1) < kept.threshold) & heads & (bits.lsb > 0)
        probs = jnp.where(unsure[..., None], softmax(whole[:, :, 0], live), probs)
        cache = cache._replace(values=_rounded(cache.values, unit[1], bits.value))
    count = ja.count_values(kept.values, caches.live_slots(cache))[:, None]
    chosen = live & ja.keep_values(probs, count)
    out = steps.mix(jnp.where(chosen, probs, 0), cache)
    return out, probs, _read(live, unsure, chosen, kv_heads)


def _read(live: Any, unsure: Any, chosen: Any, kv_heads: int) -> Read:
    rows = ja.fetched(
        live[:, :, None],
        kv_heads,
        refetched=unsure[:, :, None],
        kept=chosen[:, :, None],
        shared=False,
    )
    again = (live & unsure[..., None]).sum((1, 2))  # scores that are recomputed
    return Read(
        keys=rows.keys.sum(-1),
        lower=rows.lower.sum(-1),
        values=rows.values.sum(-1),
        products=live.sum((1, 2)) + again + chosen.sum((1, 2)),
        rows=live.any(-1).sum(-1),
        unsure=unsure.sum(-1),
    )


def _units(k: jax.Array, v: jax.Array, bits: ja.Bits | None) -> Any:
    """Quantization steps of each head's keys and values in the prompt.

    Larger keys and values of later tokens are clipped. Keys are not centred here: later
    keys move away from the mean of the prompt, and centring would clip more of them.
    """
    if bits is None:
        return None
    return quantize(k, bits.msb + bits.lsb)[1], quantize(v, bits.value)[1]


def _planes(keys: jax.Array, unit: jax.Array, bits: ja.Bits) -> Planes:
    whole = _integers(keys, unit, bits.msb + bits.lsb).astype(jnp.int16)
    return Planes(whole >> bits.lsb, whole & np.int16(2**bits.lsb - 1), unit)


def _integers(x: jax.Array, unit: jax.Array, bits: int) -> jax.Array:
    most = 2 ** (bits - 1) - 1
    return jnp.clip(jnp.round(x / unit), -most, most)


def _rounded(values: jax.Array, unit: jax.Array, bits: int) -> jax.Array:
    unit = unit.reshape(-1, 1, 1)
    return _integers(values, unit, bits) * unit


def _alive(head_scores: jax.Array, counts: jax.Array) -> jax.Array:
    """Heads of each layer: the best by the scores up to the previous layer."""
    layers, *shape = head_scores.shape
    alive = [jnp.ones(shape, bool)]
    for i in range(1, layers):
        alive.append(
            ja.keep_heads(head_scores[i - 1], counts[i].astype(jnp.int32), alive[-1])
        )
    return jnp.stack(alive)


def generate(
    decoder: Decoder, params: Any, first: jax.Array, length: int, key: jax.Array
) -> jax.Array:
    """Samples texts `(batch, length)` from a model with a dense cache.

    Args:
      decoder: the model.
      params: its parameters.
      first: `(batch,)`, first token of each text.
      length: length of the texts, static.
      key: PRNG key.
    """
    batch, layers = first.shape[0], params["layers"]
    abstract = jax.eval_shape(
        lambda: decoder.qkv(
            layers[0],
            decoder.embed(params, first[:, None], jnp.arange(1)),
            jnp.arange(1),
        )
    )
    _, kv_heads, _, dim = abstract[1].shape
    empty = [
        caches.init(batch, kv_heads, length, dim, dtype=jnp.float32) for _ in layers
    ]
    alive, none = jnp.ones((len(layers), batch, kv_heads), bool), [None] * len(layers)
    whole = Kept(jnp.full(len(layers), kv_heads), 1.0)
    plan = Plan((length,) * len(layers), recent=1)

    def step(carry: Any, key: jax.Array) -> Any:
        words, cached, stream = carry
        logits, cached, stream, _ = decode(
            decoder, params, words, cached, stream, alive, none, whole, plan
        )
        chosen = jax.random.categorical(key, logits).astype(first.dtype)
        return (chosen, cached, stream), words

    carry = (first, empty, caches.start(batch, length))
    return jax.lax.scan(step, carry, jax.random.split(key, length))[1].T
