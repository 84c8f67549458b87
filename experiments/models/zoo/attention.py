"""Later attention: Gemma-2, latent or gated heads, rolling caches (plain)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.zoo import language
from experiments.models.zoo.base import Architecture, Builder, normal, tokens
from experiments.models.zoo.plain import (
    Params,
    attend,
    causal,
    dense,
    dense_shapes,
    draw,
    heads,
    merge,
    rms_norm,
)

VOCABULARY, LENGTH, WIDTH = 30, 7, 24


def gemma_2(key: jax.Array) -> Architecture:
    """Two blocks, one with a window; capped logits, norms before and after.

    References:
      Gemma 2, 2024, arXiv:2408.00118, section 2.
    """
    param_key, input_key = jax.random.split(key)
    norms = {name: {"bias": (WIDTH,)} for name in ("norm1", "norm2", "norm3", "norm4")}
    block = {
        **norms,
        "q": (WIDTH, 4 * 8),
        "k": (WIDTH, 8),
        "v": (WIDTH, 8),
        "o": (4 * 8, WIDTH),
        "gate": (WIDTH, 40),
        "up": (WIDTH, 40),
        "down": (40, WIDTH),
    }
    shapes = {"embed": (VOCABULARY, WIDTH), "blocks": [block] * 2, "norm": norms}

    def fn(params: Params, words: jax.Array) -> jax.Array:
        x = params["embed"][words] * WIDTH**0.5
        near = causal(words.shape[1])
        for p, mask in zip(
            params["blocks"], (near & ~_far(near, 3), near), strict=True
        ):
            y = _capped_attend(p, _norm(p["norm1"], x), mask)
            x = x + _norm(p["norm2"], y)
            y = _norm(p["norm3"], x)
            y = (jax.nn.gelu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
            x = x + _norm(p["norm4"], y)
        return _cap(_norm(params["norm"]["norm1"], x) @ params["embed"].T, 30.0)

    words = tokens(input_key, VOCABULARY, 3, LENGTH)
    params = draw(param_key, shapes)
    return Architecture(fn, params, (words,), dimensions=("b, t",))


def _norm(p: Params, x: jax.Array) -> jax.Array:
    return rms_norm(1 + p["bias"], x)


def _cap(x: jax.Array, limit: float) -> jax.Array:
    return limit * jnp.tanh(x / limit)


def _far(near: jax.Array, window: int) -> jax.Array:
    """Returns which keys lie `window` or more positions before their query."""
    places = jnp.arange(near.shape[0])
    return places[:, None] - places >= window


def _capped_attend(p: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Multi-query attention with capped logits."""
    positions = jnp.arange(x.shape[1])
    q = language.rotate(heads(x @ p["q"], 4), positions)
    k = language.rotate(heads(x @ p["k"], 1), positions)[:, :, 0]
    logits = _cap(jnp.einsum("bqhd,bkd->bhqk", q, k) / 8**0.5, 50.0)
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e9))
    y = jnp.einsum("bhqk,bkd->bqhd", weights, x @ p["v"])
    return merge(y) @ p["o"]


def latent(key: jax.Array) -> Architecture:
    """Keys and values from one narrow latent; a part of the keys has positions.

    References:
      DeepSeek-V2, 2024, arXiv:2405.04434, section 2.1, equations 9 to 19.
    """
    param_key, input_key = jax.random.split(key)
    block = {
        "norm": {"scale": (WIDTH,)},
        "q": (WIDTH, 4 * 6),
        "q_turned": (WIDTH, 4 * 8),
        "latent": (WIDTH, 12),
        "norm2": {"scale": (12,)},
        "k": (12, 4 * 6),
        "k_turned": (WIDTH, 8),
        "v": (12, 4 * 10),
        "o": (4 * 10, WIDTH),
    }
    shapes = {"in": dense_shapes(5, WIDTH), "blocks": [block] * 2}
    shapes["out"] = dense_shapes(WIDTH, 10)

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        for p in params["blocks"]:
            x = x + _latent_attend(p, rms_norm(p["norm"]["scale"], x))
        return dense(params["out"], x)

    inputs = (normal(input_key, 3, LENGTH, 5),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t, _",))


def _latent_attend(p: Params, x: jax.Array) -> jax.Array:
    positions = jnp.arange(x.shape[1])
    code = rms_norm(p["norm2"]["scale"], x @ p["latent"])
    k, v = heads(code @ p["k"], 4), heads(code @ p["v"], 4)
    turned = language.rotate(heads(x @ p["k_turned"], 1), positions)
    turned = jnp.broadcast_to(turned, (*k.shape[:3], turned.shape[-1]))
    q = heads(x @ p["q"], 4)
    q_turned = language.rotate(heads(x @ p["q_turned"], 4), positions)
    q = jnp.concatenate([q, q_turned], axis=-1)
    k = jnp.concatenate([k, turned], axis=-1)
    return merge(attend(q, k, v, causal(x.shape[1]))) @ p["o"]


def gated(key: jax.Array, dtype: Any = jnp.float32) -> Architecture:
    """One layer whose heads are gated, with rotary tables of the given type.

    Tables of a lower precision round the queries and the keys, too.

    References:
      Gated Attention for Large Language Models, 2025, arXiv:2505.06708, section 2.2.
    """
    param_key, input_key = jax.random.split(key)
    low = jnp.dtype(dtype).itemsize < 4
    shapes = {
        "in": dense_shapes(5, WIDTH),
        "norm": {"scale": (WIDTH,)},
        **dict.fromkeys(("q", "k", "v", "gate"), (WIDTH, 4 * 8)),
        "o": (4 * 8, WIDTH),
        "out": dense_shapes(WIDTH, 10),
    }

    angles = np.arange(16)[:, None] / 10_000.0 ** (np.arange(4) / 4)
    sin, cos = (jnp.asarray(f(angles)[:, None], dtype) for f in (np.sin, np.cos))

    def turn(x: jax.Array) -> jax.Array:
        a, b = (table[jnp.arange(x.shape[1])] for table in (cos, sin))
        first, second = jnp.split(x.astype(dtype) if low else x, 2, axis=-1)
        turned = [first * a - second * b, second * a + first * b]
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = dense(p["in"], x)
        y = rms_norm(p["norm"]["scale"], x)
        q, k, v, gate = (heads(y @ p[name], 4) for name in ("q", "k", "v", "gate"))
        mixed = attend(turn(q), turn(k), v, causal(x.shape[1])) * jax.nn.sigmoid(gate)
        return dense(p["out"], x + merge(mixed) @ p["o"])

    inputs = (normal(input_key, 3, LENGTH, 5),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t, _",))


CACHED = 9


def _cache(batch: int) -> list[dict[str, tuple[int, ...]]]:
    shape = batch, CACHED, language.KV_HEADS, language.DIM
    return [{"keys": shape, "values": shape} for _ in range(2)]


def _rolling_step(params: Params, cache: Any, words: jax.Array) -> Any:
    """Returns the logits after these tokens; the cache forgets its first position."""
    x = params["embed"][words][:, None]
    new = []
    for p, old in zip(params["blocks"], cache, strict=True):
        q, k, v = language.qkv_of(p, x, jnp.full((1,), CACHED))
        keys = jnp.roll(old["keys"], -1, axis=1).at[:, -1].set(k[:, 0])
        values = jnp.concatenate([old["values"][:, 1:], v], axis=1)
        new.append({"keys": keys, "values": values})
        y = language.grouped_attend(q, keys, values, None)
        x = language.gated_mlp(p, x + merge(y) @ p["o"])
    x = rms_norm(params["norm"]["scale"], x[:, 0])
    return x @ params["head"], new


def rolling_input(key: jax.Array) -> Architecture:
    """A step of Llama; the cache is an input, whose heads stay as they are."""
    keys = jax.random.split(key, 3)
    cache = draw(keys[1], _cache(3))
    words = tokens(keys[2], VOCABULARY, 3)

    def fn(params: Params, words: jax.Array, cache: Any) -> Any:
        return _rolling_step(params, cache, words)

    params = draw(keys[0], language.llama_shapes())
    return Architecture(fn, params, (words, cache))


def rolling_state(key: jax.Array) -> Architecture:
    """A step of Llama; the cache is state, and loses the heads that the params lose."""
    param_key, input_key = jax.random.split(key)
    shapes = {"weights": language.llama_shapes(), "cache": _cache(3)}

    def fn(params: Params, words: jax.Array) -> Any:
        logits, cache = _rolling_step(params["weights"], params["cache"], words)
        return logits, {"cache": cache}

    inputs = (tokens(input_key, VOCABULARY, 3),)
    return Architecture(fn, draw(param_key, shapes), inputs, stateful=True)


ARCHITECTURES: dict[str, Builder] = {
    "Gemma-2 (plain)": gemma_2,
    "Latent attention (plain)": latent,
    "Gated attention (plain)": gated,
    "Gated attention, bfloat16 rotary tables (plain)": partial(
        gated, dtype=jnp.bfloat16
    ),
    "Llama step, rolling KV cache as input (plain)": rolling_input,
    "Llama step, rolling KV cache as state (plain)": rolling_state,
}
