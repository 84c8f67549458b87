"""Decoding token by token with a cache, and an encoder-decoder (plain functions)."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.models.zoo import language
from experiments.models.zoo.base import Architecture, Builder, tokens
from experiments.models.zoo.plain import (
    Params,
    Shapes,
    attend,
    causal,
    dense,
    dense_shapes,
    draw,
    heads,
    layer_norm,
    merge,
    norm_shapes,
    rms_norm,
)

STEPS = 9


def _empty_cache(batch: int, depth: int) -> list[tuple[jax.Array, jax.Array]]:
    shape = batch, STEPS, language.KV_HEADS, language.DIM
    return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(depth)]


def _step(params: Params, cache: Any, now: jax.Array, words: jax.Array) -> Any:
    """Returns the logits `(batch, vocabulary)` after these tokens, and the cache."""
    x = params["embed"][words][:, None]
    position = now[None]
    seen = jnp.arange(STEPS) <= now
    written = []
    for p, (keys, values) in zip(params["blocks"], cache, strict=True):
        q, k, v = language.qkv_of(p, x, position)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k, now, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values, v, now, axis=1)
        written.append((keys, values))
        y = language.grouped_attend(q, keys, values, seen)
        x = language.gated_mlp(p, x + merge(y) @ p["o"])
    x = rms_norm(params["norm"]["scale"], x[:, 0])
    return x @ params["head"], written


def cached(key: jax.Array) -> Architecture:
    """Llama's logits for a given sequence, token by token in a `fori_loop`."""
    param_key, input_key = jax.random.split(key)

    def fn(params: Params, words: jax.Array) -> jax.Array:
        def body(now: jax.Array, carry: Any) -> Any:
            cache, outputs = carry
            word = jax.lax.dynamic_index_in_dim(words, now, axis=1, keepdims=False)
            logits, cache = _step(params, cache, now, word)
            outputs = jax.lax.dynamic_update_slice_in_dim(
                outputs, logits[:, None], now, axis=1
            )
            return cache, outputs

        batch = words.shape[0]
        cache = _empty_cache(batch, len(params["blocks"]))
        outputs = jnp.zeros((batch, STEPS, language.VOCABULARY))
        return jax.lax.fori_loop(0, STEPS, body, (cache, outputs))[1]

    words = tokens(input_key, language.VOCABULARY, 3, STEPS)
    params = draw(param_key, language.llama_shapes())
    return Architecture(fn, params, (words,), dimensions=("b, t",))


def greedy(key: jax.Array) -> Architecture:
    """Llama's greedy continuation in a `while_loop`, and its last logits."""
    param_key, input_key = jax.random.split(key)

    def fn(params: Params, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        def body(carry: Any) -> Any:
            now, cache, words, _ = carry
            word = jax.lax.dynamic_index_in_dim(words, now, axis=1, keepdims=False)
            logits, cache = _step(params, cache, now, word)
            chosen = logits.argmax(-1).astype(words.dtype)[:, None]
            words = jax.lax.dynamic_update_slice_in_dim(words, chosen, now + 1, axis=1)
            return now + 1, cache, words, logits

        batch = first.shape[0]
        words = jnp.zeros((batch, STEPS + 1), first.dtype).at[:, 0].set(first)
        cache = _empty_cache(batch, len(params["blocks"]))
        logits = jnp.zeros((batch, language.VOCABULARY))
        carry = jnp.int32(0), cache, words, logits
        _, _, words, logits = jax.lax.while_loop(lambda c: c[0] < STEPS, body, carry)
        return words, logits

    first = tokens(input_key, language.VOCABULARY, 3)
    return Architecture(fn, draw(param_key, language.llama_shapes()), (first,))


def _attention_shapes(width: int, memory: int, inner: int = 24) -> Shapes:
    return {
        "norm": norm_shapes(width),
        "q": dense_shapes(width, inner),
        "k": dense_shapes(memory, inner),
        "v": dense_shapes(memory, inner),
        "o": dense_shapes(inner, width),
    }


def _mlp_shapes(width: int) -> Shapes:
    return {
        "norm": norm_shapes(width),
        "up": dense_shapes(width, 40),
        "down": dense_shapes(40, width),
    }


def encoder_decoder(key: jax.Array) -> Architecture:
    """The original transformer with a narrower encoder; pre-normalized.

    References:
      Attention Is All You Need, 2017, arXiv:1706.03762, figure 1.
    """
    keys = jax.random.split(key, 3)
    shapes = {
        "source": (26, 16),
        "source_positions": (9, 16),
        "target": (30, 20),
        "target_positions": (7, 20),
        "encoder": [
            {"self": _attention_shapes(16, 16), "mlp": _mlp_shapes(16)}
            for _ in range(2)
        ],
        "memory_norm": norm_shapes(16),
        "decoder": [
            {
                "self": _attention_shapes(20, 20),
                "cross": _attention_shapes(20, 16),
                "mlp": _mlp_shapes(20),
            }
            for _ in range(2)
        ],
        "norm": norm_shapes(20),
        "head": dense_shapes(20, 30),
    }
    inputs = tokens(keys[1], 26, 3, 9), tokens(keys[2], 30, 3, 7)
    params, dimensions = draw(keys[0], shapes), ("b, _", "b, t")
    return Architecture(_encode_decode, params, inputs, dimensions=dimensions)


def _encode_decode(params: Params, source: jax.Array, target: jax.Array) -> jax.Array:
    x = params["source"][source] + params["source_positions"]
    for p in params["encoder"]:
        x = _mlp(p["mlp"], _attention(p["self"], x))
    memory = layer_norm(params["memory_norm"], x)
    x = params["target"][target] + params["target_positions"]
    for p in params["decoder"]:
        x = _attention(p["self"], x, mask=causal(x.shape[1]))
        x = _mlp(p["mlp"], _attention(p["cross"], x, memory))
    return dense(params["head"], layer_norm(params["norm"], x))


def _attention(
    p: Params, x: jax.Array, memory: jax.Array | None = None, mask: Any = None
) -> jax.Array:
    y = layer_norm(p["norm"], x)
    memory = y if memory is None else memory
    q, k, v = dense(p["q"], y), dense(p["k"], memory), dense(p["v"], memory)
    return x + dense(p["o"], merge(attend(heads(q, 4), heads(k, 4), heads(v, 4), mask)))


def _mlp(p: Params, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(dense(p["up"], layer_norm(p["norm"], x)))
    return x + dense(p["down"], hidden)


ARCHITECTURES: dict[str, Builder] = {
    "Decoder with a KV cache (plain)": cached,
    "Greedy decoder in a while loop (plain)": greedy,
    "Encoder-decoder with cross-attention (plain)": encoder_decoder,
}
