"""Language models for training: GPT-2 (Flax NNX), Llama and others (plain)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.zoo.base import Architecture, Builder, tokens
from experiments.models.zoo.frameworks import from_nnx
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
    stack,
)

VOCABULARY, LENGTH = 30, 7


class GPT2Block(nnx.Module):
    """Causal attention with a fused projection, and an MLP, both pre-normalized."""

    def __init__(self, width: int, count: int, rngs: nnx.Rngs):
        self.count = count
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 40, rngs=rngs)
        self.down = nnx.Linear(40, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (heads(y, self.count) for y in qkv)
        x = x + self.out(merge(attend(q, k, v, causal(x.shape[1]))))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT2(nnx.Module):
    """Learned positions, two blocks, and an output layer tied to the embedding."""

    def __init__(self, rngs: nnx.Rngs):
        embed = partial(nnx.Embed, param_dtype=jnp.result_type(float))
        self.embed = embed(VOCABULARY, 24, rngs=rngs)
        self.positions = embed(12, 24, rngs=rngs)
        self.blocks = nnx.Sequential(*[GPT2Block(24, 4, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(24, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        x = self.embed(words) + self.positions(jnp.arange(words.shape[1]))
        return self.embed.attend(self.norm(self.blocks(x)))


def gpt2(key: jax.Array) -> Architecture:
    """A batch of three sequences."""
    param_key, input_key = jax.random.split(key)
    words = tokens(input_key, VOCABULARY, 3, LENGTH)
    return from_nnx(param_key, GPT2, words, dimensions=("b, t",))


HEADS, KV_HEADS, DIM = 4, 2, 8


def llama_shapes(width: int = 24, hidden: int = 40, depth: int = 2) -> Shapes:
    """Returns the shapes of Llama: grouped queries, a gated MLP, no biases."""
    block = {
        "norm1": {"scale": (width,)},
        "q": (width, HEADS * DIM),
        "k": (width, KV_HEADS * DIM),
        "v": (width, KV_HEADS * DIM),
        "o": (HEADS * DIM, width),
        "norm2": {"scale": (width,)},
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    return {
        "embed": (VOCABULARY, width),
        "blocks": [block] * depth,
        "norm": {"scale": (width,)},
        "head": (width, VOCABULARY),
    }


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Applies rotary positions to heads; the two halves are the pairs.

    Args:
      x: `(batch, length, heads, dim)`.
      positions: `(length,)`.

    References:
      RoFormer, 2021, arXiv:2104.09864, equation 34, which pairs neighbours.
    """
    first, second = jnp.split(x, 2, axis=-1)
    frequencies = 10_000.0 ** (-jnp.arange(DIM // 2) / (DIM // 2))
    angles = (positions[:, None] * frequencies)[:, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1)


def qkv_of(
    p: Params, x: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the rotated queries, rotated keys, and values of a block."""
    y = rms_norm(p["norm1"]["scale"], x)
    q, k = heads(y @ p["q"], HEADS), heads(y @ p["k"], KV_HEADS)
    return rotate(q, positions), rotate(k, positions), heads(y @ p["v"], KV_HEADS)


def gated_mlp(p: Params, x: jax.Array) -> jax.Array:
    """Gated MLP of a block, with its residual connection."""
    y = rms_norm(p["norm2"]["scale"], x)
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def grouped_attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any) -> jax.Array:
    """Grouped-query attention; each key head serves neighbouring query heads."""
    group = q.shape[2] // k.shape[2]
    return attend(q, jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2), mask)


def llama(key: jax.Array) -> Architecture:
    """Two blocks; keys and values are repeated for their query heads.

    References:
      LLaMA, 2023, arXiv:2302.13971, section 2.2; grouped queries: GQA, 2023,
      arXiv:2305.13245.
    """
    return _llama(key, lambda q, k, v: grouped_attend(q, k, v, causal(q.shape[1])))


def llama_library(key: jax.Array) -> Architecture:
    """Llama with `jax.nn.dot_product_attention`, which handles grouped queries."""
    return _llama(
        key, lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
    )


def _llama(key: jax.Array, attention: Any) -> Architecture:
    param_key, input_key = jax.random.split(key)

    def fn(params: Params, words: jax.Array) -> jax.Array:
        x = params["embed"][words]
        positions = jnp.arange(words.shape[1])
        for p in params["blocks"]:
            x = x + merge(attention(*qkv_of(p, x, positions))) @ p["o"]
            x = gated_mlp(p, x)
        return rms_norm(params["norm"]["scale"], x) @ params["head"]

    words = tokens(input_key, VOCABULARY, 3, LENGTH)
    params = draw(param_key, llama_shapes())
    return Architecture(fn, params, (words,), dimensions=("b, t",))


def scanned(key: jax.Array) -> Architecture:
    """Four layers with stacked parameters, scanned and rematerialized."""
    keys = jax.random.split(key, 3)
    layer = {
        "norm1": norm_shapes(20),
        "qkv": dense_shapes(20, 3 * 24),
        "o": dense_shapes(24, 20),
        "norm2": norm_shapes(20),
        "up": dense_shapes(20, 40),
        "down": dense_shapes(40, 20),
    }
    params = {
        "layers": stack(keys[0], layer, 4),
        "ends": draw(
            keys[1],
            {
                "embed": (VOCABULARY, 20),
                "positions": (LENGTH, 20),
                "norm": norm_shapes(20),
                "head": dense_shapes(20, VOCABULARY),
            },
        ),
    }

    @jax.checkpoint
    def block(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        qkv = jnp.split(dense(p["qkv"], layer_norm(p["norm1"], x)), 3, axis=-1)
        q, k, v = (heads(y, 4) for y in qkv)
        x = x + dense(p["o"], merge(attend(q, k, v, causal(x.shape[1]))))
        hidden = jax.nn.gelu(dense(p["up"], layer_norm(p["norm2"], x)))
        return x + dense(p["down"], hidden), None

    def fn(params: Params, words: jax.Array) -> jax.Array:
        ends = params["ends"]
        x = ends["embed"][words] + ends["positions"]
        x, _ = jax.lax.scan(block, x, params["layers"])
        return dense(ends["head"], layer_norm(ends["norm"], x))

    words = tokens(keys[2], VOCABULARY, 3, LENGTH)
    return Architecture(fn, params, (words,), dimensions=("b, t",))


ARCHITECTURES: dict[str, Builder] = {
    "GPT-2 (NNX)": gpt2,
    "Llama (plain)": llama,
    "Llama with jax.nn.dot_product_attention (plain)": llama_library,
    "Transformer scanned over layers (plain)": scanned,
}
