"""Random queries, keys and values, and three layers to decode them with."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune.attention import cache as caches
from jprune.attention import decode

LENGTH, BUDGETS, HEADS, KV_HEADS, DIM = 40, (16, 9, 6), 4, 2, 8


def draw(seed, batch, prompt, steps, layers=3):
    """Heads that look hard at few tokens, or softly at many."""
    rng = np.random.default_rng(seed)
    sharp = rng.choice([0.3, 1.0, 3.0], (batch, 1, 1, 1))

    def normal(*shape):
        return rng.standard_normal((layers, batch, *shape)).astype("f4")

    return {
        "keys": normal(KV_HEADS, prompt, DIM),
        "values": normal(KV_HEADS, prompt, DIM),
        "scores": rng.uniform(0, 3, (batch, prompt)).astype("f4"),
        "q": (sharp * normal(steps, HEADS, DIM)).astype("f4"),
        "k": normal(steps, KV_HEADS, DIM),
        "v": normal(steps, KV_HEADS, DIM),
    }


def token(carry, qkv, *, sinks=0, recent=0):
    """One token through all layers; `qkv` are `(layers, batch, ...)`."""
    layers, stream = list(carry[0]), carry[1]
    outs, kept, gone = [], [], []
    for i, (q, k, v) in enumerate(zip(*qkv, strict=True)):
        out, layers[i], stream = decode.step(
            q, k, v, layers[i], stream, sinks=sinks, recent=recent
        )
        outs.append(out)
        kept.append(members(layers[i], stream))
        gone.append(stream.evicted)
    stream = caches.advance(stream)
    return (tuple(layers), stream), (jnp.stack(outs), jnp.stack(kept), jnp.stack(gone))


def members(cache, stream):
    """(batch, length): which positions a layer holds."""
    set_at = jax.vmap(lambda row, at, live: row.at[at].max(live))
    none = jnp.zeros(stream.scores.shape, bool)
    return set_at(none, cache.positions, caches.live_slots(cache))


def begin(data, lengths, budgets=BUDGETS, length=LENGTH, **protected):
    batch = data["scores"].shape[0]
    stream = caches.start(batch, length, scores=data["scores"], position=lengths)
    layers = tuple(
        caches.fill(k, v, stream, n, **protected)
        for k, v, n in zip(data["keys"], data["values"], budgets, strict=True)
    )
    return layers, stream


def decoded(data, lengths, budgets=BUDGETS, length=LENGTH, **protected):
    """Outputs (steps, layers, batch, ...), kept sets and what was given up."""
    data = jax.tree.map(jnp.asarray, data)
    carry = begin(data, lengths, budgets, length, **protected)
    first = tuple(members(c, carry[1]) for c in carry[0])
    qkv = tuple(jnp.moveaxis(data[n], 2, 0) for n in "qkv")
    carry, found = lax.scan(lambda c, x: token(c, x, **protected), carry, qkv)
    return carry, found, jnp.stack(first)
