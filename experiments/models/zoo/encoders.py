"""Text encoders: BERT (Flax Linen), T5's and a fused one (plain functions)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.zoo.base import Architecture, Builder, normal, tokens
from experiments.models.zoo.frameworks import from_linen
from experiments.models.zoo.plain import (
    Params,
    Shapes,
    attend,
    dense,
    dense_shapes,
    draw,
    heads,
    layer_norm,
    merge,
    norm_shapes,
    rms_norm,
)


class BERT(nn.Module):
    """BERT: three embeddings, post-normalized layers, two outputs.

    Returns the logits of every token, by the tied embedding, and of the pair.

    References:
      BERT, 2018, arXiv:1810.04805, figures 1 and 2.
    """

    vocabulary: int = 30
    width: int = 24
    depth: int = 2

    @nn.compact
    def __call__(
        self, words: jax.Array, types: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        embed = nn.Embed(self.vocabulary, self.width)
        positions = nn.Embed(16, self.width)(jnp.arange(words.shape[1]))
        x = embed(words) + nn.Embed(2, self.width)(types) + positions
        x = nn.LayerNorm()(x)
        mask = nn.make_attention_mask(jnp.ones_like(valid), valid)
        for _ in range(self.depth):
            attention: Any = nn.MultiHeadDotProductAttention(4)
            x = nn.LayerNorm()(x + attention(x, mask=mask))
            hidden = nn.gelu(nn.Dense(40)(x))
            x = nn.LayerNorm()(x + nn.Dense(self.width)(hidden))
        pooled = nn.tanh(nn.Dense(20)(x[:, 0]))
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        hidden = nn.LayerNorm()(nn.gelu(nn.Dense(self.width)(x)))
        return embed.attend(hidden) + bias, nn.Dense(2)(pooled)


def bert(key: jax.Array) -> Architecture:
    """A batch of three sentences, two of them padded."""
    keys = jax.random.split(key, 3)
    words, types = tokens(keys[1], 30, 3, 12), tokens(keys[2], 2, 3, 12)
    valid = jnp.arange(12) < jnp.asarray([12, 9, 7])[:, None]
    dimensions = ("b, t",) * 3
    return from_linen(keys[0], BERT(), words, types, valid, dimensions=dimensions)


T5_HEADS, T5_DIM, BUCKETS = 4, 8, 8


def _t5_shapes() -> Shapes:
    inner = T5_HEADS * T5_DIM
    return {
        "norm1": {"scale": (24,)},
        "q": (24, inner),
        "k": (24, inner),
        "v": (24, inner),
        "o": (inner, 24),
        "norm2": {"scale": (24,)},
        "gate": (24, 40),
        "up": (24, 40),
        "down": (40, 24),
    }


def t5(key: jax.Array) -> Architecture:
    """Two encoder blocks of T5 that share a table of relative position biases.

    References:
      Exploring the Limits of Transfer Learning, 2019, arXiv:1910.10683, section 2.1,
      with the gated MLP of its version 1.1 (GLU Variants, 2020, arXiv:2002.05202).
    """
    param_key, input_key = jax.random.split(key)
    shapes = {
        "embed": (30, 24),
        "distances": (BUCKETS, T5_HEADS),
        "blocks": [_t5_shapes() for _ in range(2)],
        "norm": {"scale": (24,)},
    }

    def fn(params: Params, words: jax.Array) -> jax.Array:
        x = params["embed"][words]
        length = words.shape[1]
        offsets = np.arange(length) - np.arange(length)[:, None]
        bias = params["distances"][buckets(offsets)].transpose(2, 0, 1)
        for p in params["blocks"]:
            y = rms_norm(p["norm1"]["scale"], x)
            q, k, v = (heads(y @ p[name], T5_HEADS) for name in "qkv")
            x = x + merge(attend(q, k, v, bias, scale=1.0)) @ p["o"]
            y = rms_norm(p["norm2"]["scale"], x)
            x = x + (jax.nn.gelu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return rms_norm(params["norm"]["scale"], x)

    inputs = (tokens(input_key, 30, 3, 12),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t",))


def buckets(offsets: np.ndarray, furthest: int = 16) -> np.ndarray:
    """Returns buckets: half per direction, exact if near, and logarithmic if far."""
    half = BUCKETS // 2
    near = half // 2
    distance = np.abs(offsets)
    ratio = np.log(np.maximum(distance, 1) / near) / math.log(furthest / near)
    far = np.minimum(near + (ratio * (half - near)).astype(int), half - 1)
    return np.where(distance < near, distance, far) + half * (offsets > 0)


FUSED_HEADS, FUSED_DIM = 4, 6


def fused_qkv(key: jax.Array) -> Architecture:
    """A block whose fused projection is reshaped to `(3, heads, dim)`, as in ViTs."""
    param_key, input_key = jax.random.split(key)
    inner = FUSED_HEADS * FUSED_DIM
    shapes = {
        "in": dense_shapes(5, 20),
        "norm1": norm_shapes(20),
        "qkv": dense_shapes(20, 3 * inner),
        "o": dense_shapes(inner, 20),
        "norm2": norm_shapes(20),
        "up": dense_shapes(20, 40),
        "down": dense_shapes(40, 20),
        "out": dense_shapes(20, 10),
    }

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = dense(p["in"], x)
        qkv = dense(p["qkv"], layer_norm(p["norm1"], x))
        qkv = qkv.reshape(*x.shape[:2], 3, FUSED_HEADS, FUSED_DIM)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        x = x + dense(p["o"], merge(attend(q, k, v)))
        x = x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["norm2"], x))))
        return dense(p["out"], x)

    inputs = (normal(input_key, 3, 7, 5),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t, _",))


ARCHITECTURES: dict[str, Builder] = {
    "BERT encoder (Linen)": bert,
    "T5 encoder (plain)": t5,
    "Attention with (3, heads, dim) QKV (plain)": fused_qkv,
}
