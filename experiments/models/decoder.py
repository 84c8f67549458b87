"""Language models as four pure functions, with attention left to the caller.

A decoder is `embed`, then `qkv`, attention and `finish` for each layer, then `logits`.
`forward` uses standard causal attention; the study of decoding uses a pruned KV cache.
`llama` is Llama's architecture, and `gpt` is GPT-2's.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models import layers

Params = dict[str, Any]


class Decoder(NamedTuple):
    """A language model as pure functions of its parameters.

    Attributes:
      embed: `(params, ids (..., n), positions (n,)) -> x (..., n, width)`.
      qkv: `(layer, x, positions) -> q (..., heads, n, dim), k, v (..., kv heads, n,
        dim)`, with rotary positions if the model has them.
      finish: `(layer, x, out (..., heads, n, dim)) -> x`: the output projection and
        the feed-forward layer, each with a residual connection.
      logits: `(params, x) -> (..., n, vocabulary)`.
    """

    embed: Callable[..., jax.Array]
    qkv: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    finish: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns causal attention with grouped queries.

    Args:
      q: `(..., heads, n, dim)`.
      k: `(..., kv heads, n, dim)`, where kv heads divide heads.
      v: as k.

    Returns:
      `(..., heads, n, dim)`.
    """
    *batch, heads, n, dim = q.shape
    kv_heads = k.shape[-3]
    q = q.reshape(*batch, kv_heads, heads // kv_heads, n, dim)
    scores = jnp.einsum("...gqnd,...gmd->...gqnm", q, k) / math.sqrt(dim)
    seen = jnp.tril(jnp.ones((n, n), bool))
    probs = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    out = jnp.einsum("...gqnm,...gmd->...gqnd", probs, v)
    return out.reshape(*batch, heads, n, dim)


def forward(decoder: Decoder, params: Params, ids: jax.Array) -> jax.Array:
    """Returns the logits `(..., n, vocabulary)` of the ids `(..., n)`."""
    positions = jnp.arange(ids.shape[-1])
    x = decoder.embed(params, ids, positions)
    for layer in params["layers"]:
        x = decoder.finish(
            layer, x, causal_attention(*decoder.qkv(layer, x, positions))
        )
    return decoder.logits(params, x)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Applies rotary positions to heads `(..., n, dim)`; pairs are neighbours.

    References:
      RoFormer, 2021, arXiv:2104.09864, equation 34.
    """
    dim = x.shape[-1]
    frequencies = 10_000.0 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., 0::2], x[..., 1::2]
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.stack(turned, axis=-1).reshape(x.shape)


def _llama_qkv(heads: int, kv_heads: int, layer: Params, x: Any, positions: Any) -> Any:
    y = layers.rms_norm(layer["norm1"], x)
    q = layers.split_heads(y @ layer["q"], heads)
    k, v = (layers.split_heads(y @ layer[name], kv_heads) for name in "kv")
    return rotate(q, positions), rotate(k, positions), v


def _llama_finish(layer: Params, x: jax.Array, out: jax.Array) -> jax.Array:
    x = x + layers.merge_heads(out) @ layer["o"]
    y = layers.rms_norm(layer["norm2"], x)
    gated = jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])
    return x + gated @ layer["down"]


def llama(heads: int, kv_heads: int) -> Decoder:
    """Returns Llama: grouped queries, rotary positions, a gated feed-forward layer.

    The output layer is tied to the embedding, as in the small published checkpoints.

    References:
      LLaMA, 2023, arXiv:2302.13971, section 2.2; GQA, 2023, arXiv:2305.13245.
    """
    return Decoder(
        embed=lambda params, ids, positions: params["embed"][ids],
        qkv=functools.partial(_llama_qkv, heads, kv_heads),
        finish=_llama_finish,
        logits=lambda params, x: layers.rms_norm(params["norm"], x) @ params["embed"].T,
    )


def _gpt_qkv(heads: int, layer: Params, x: jax.Array, positions: Any) -> Any:
    del positions  # positions are added to the embedding
    y = layers.layer_norm(layer["norm1"], x)
    return tuple(layers.split_heads(layers.dense(layer[n], y), heads) for n in "qkv")


def _gpt_finish(layer: Params, x: jax.Array, out: jax.Array) -> jax.Array:
    x = x + layers.dense(layer["o"], layers.merge_heads(out))
    y = layers.layer_norm(layer["norm2"], x)
    return x + layers.dense(layer["down"], jax.nn.gelu(layers.dense(layer["up"], y)))


def gpt(heads: int) -> Decoder:
    """Returns GPT-2: learned positions, pre-normalization, a tied output layer.

    References:
      Language Models are Unsupervised Multitask Learners, 2019, section 2.3.
    """
    return Decoder(
        embed=lambda params, ids, positions: (
            params["embed"][ids] + params["positions"][positions]
        ),
        qkv=functools.partial(_gpt_qkv, heads),
        finish=_gpt_finish,
        logits=lambda params, x: (
            layers.layer_norm(params["norm"], x) @ params["embed"].T
        ),
    )


def init_gpt(
    key: jax.Array, *, vocabulary: int, length: int, width: int, depth: int
) -> Params:
    """Returns the parameters of a GPT, float32.

    Args:
      key: PRNG key.
      vocabulary: size of the vocabulary.
      length: maximum length of the context.
      width: width of the residual stream; feed-forward layers are four times as wide.
      depth: number of layers.
    """
    first, second, *keys = jax.random.split(key, 2 + depth)
    small = 0.02
    return {
        "embed": small * jax.random.normal(first, (vocabulary, width), jnp.float32),
        "positions": small * jax.random.normal(second, (length, width), jnp.float32),
        "layers": [_init_gpt_layer(k, width, depth) for k in keys],
        "norm": layers.init_norm(width),
    }


def _init_gpt_layer(key: jax.Array, width: int, depth: int) -> Params:
    keys = jax.random.split(key, 6)
    sizes = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    sizes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    layer: Params = {
        name: layers.init_dense(k, *size)
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    for name in ("o", "down"):  # these are added to the stream 2 * depth times
        layer[name]["kernel"] /= math.sqrt(2 * depth)
    return layer | {f"norm{i}": layers.init_norm(width) for i in (1, 2)}
