"""Mamba-2 as plain functions: blocks of a state space dual, in chunks.

References:
  Transformers are SSMs, 2024, arXiv:2405.21060, listing 1 and figure 6.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, draw, tokens
from experiments.models.zoo.plain import Params, rms_norm


class Mamba2(NamedTuple):
    """Sizes of Mamba-2; here those of its model with 130 million parameters."""

    depth: int = 24
    width: int = 768
    heads: int = 24
    dim: int = 64
    state: int = 128
    window: int = 4
    chunk: int = 64
    vocabulary: int = 50288


def build(key: jax.Array, sizes: Mamba2, length: int, batch: int = 1) -> Architecture:
    """A language model whose last token's logits are returned.

    Args:
      key: PRNG key.
      sizes: its sizes.
      length: tokens of a sequence, a multiple of the chunk.
      batch: number of sequences.
    """
    inner, state = sizes.heads * sizes.dim, sizes.state
    block = {
        "norm": {"scale": (sizes.width,)},
        "in": {"kernel": (sizes.width, 2 * inner + 2 * state + sizes.heads)},
        "conv": {
            "kernel": (sizes.window, inner + 2 * state),
            "bias": (inner + 2 * state,),
        },
        "step": {"bias": (sizes.heads,)},
        "decay": {"bias": (sizes.heads,)},
        "skip": {"scale": (sizes.heads,)},
        "out_norm": {"scale": (inner,)},
        "out": {"kernel": (inner, sizes.width)},
    }
    shapes = {
        "embed": {"kernel": (sizes.vocabulary, sizes.width)},
        "blocks": [block for _ in range(sizes.depth)],
        "norm": {"scale": (sizes.width,)},
    }
    abstract = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )

    def fn(params: Params, words: jax.Array) -> jax.Array:
        x = params["embed"]["kernel"][words]
        for p in params["blocks"]:
            x = x + mixer(p, rms_norm(p["norm"]["scale"], x), sizes)
        last = rms_norm(params["norm"]["scale"], x[:, -1])
        return last @ params["embed"]["kernel"].T

    first, second = jax.random.split(key)
    words = tokens(second, sizes.vocabulary, batch, length)
    return Architecture(fn, draw(first, abstract), (words,))


def mixer(p: Params, x: jax.Array, sizes: Mamba2) -> jax.Array:
    """Returns the output of a block for the normalized `(batch, length, width)`."""
    inner, state = sizes.heads * sizes.dim, sizes.state
    mixed = x @ p["in"]["kernel"]
    gate, mixed, step = jnp.split(mixed, [inner, 2 * inner + 2 * state], axis=-1)
    mixed = causal_conv(p["conv"]["kernel"], mixed)
    mixed = jax.nn.silu(mixed + p["conv"]["bias"])
    x, b, c = jnp.split(mixed, [inner, inner + state], axis=-1)
    x = x.reshape(*x.shape[:2], sizes.heads, sizes.dim)
    step = jax.nn.softplus(step + p["step"]["bias"])
    decay = -step * jnp.exp(p["decay"]["bias"])
    y = state_space_dual(x * step[..., None], decay, b, c, sizes.chunk)
    y = y + x * p["skip"]["scale"][:, None]
    y = y.reshape(*y.shape[:2], inner) * jax.nn.silu(gate)
    return rms_norm(p["out_norm"]["scale"], y) @ p["out"]["kernel"]


def causal_conv(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the convolution of each channel of `(batch, length, channels)`.

    It is a sum of shifted inputs: XLA's depthwise convolution takes a CPU 80 times as
    long, as much as half of all products of this network.

    Args:
      kernel: `(window, channels)`; the last row multiplies the present.
      x: `(batch, length, channels)`.
    """
    window, length = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (window - 1, 0), (0, 0)))
    shifted = [padded[:, i : i + length] * kernel[i] for i in range(window)]
    return functools.reduce(jnp.add, shifted)


def state_space_dual(
    x: jax.Array, decay: jax.Array, b: jax.Array, c: jax.Array, chunk: int
) -> jax.Array:
    """Returns `y_t = c_t h_t` of `h_t = exp(decay_t) h_{t-1} + b_t x_t`.

    Within chunks of tokens it is a product with a lower triangular matrix, and the
    states of chunks are passed on by a second one.

    Args:
      x: `(batch, length, heads, dim)`.
      decay: logarithms of the factors, `(batch, length, heads)`.
      b: inputs of states, `(batch, length, state)`, for all heads.
      c: outputs of states, likewise.
      chunk: its tokens; it divides the length.
    """
    n, length, heads, dim = x.shape
    x = x.reshape(n, -1, chunk, heads, dim)
    b, c = (y.reshape(n, -1, chunk, y.shape[-1]) for y in (b, c))
    decay = decay.reshape(n, -1, chunk, heads).transpose(0, 3, 1, 2)
    total = jnp.cumsum(decay, axis=-1)  # (batch, heads, chunks, chunk)
    inside = jnp.exp(between(total))
    scores = jnp.einsum("ncls,ncms->nclm", c, b)
    y = jnp.einsum("nclm,nhclm,ncmhd->nclhd", scores, inside, x)
    to_end = jnp.exp(total[..., -1:] - total)
    states = jnp.einsum("ncms,nhcm,ncmhd->nchds", b, to_end, x)
    ends = jnp.cumsum(total[..., -1], axis=-1)
    before = jnp.pad(ends, ((0, 0), (0, 0), (1, 0)))
    passed = jnp.exp(between(before)[:, :, :-1, 1:])  # to the chunks after
    states = jnp.einsum("nhzc,nchds->nzhds", passed, states)
    y = y + jnp.einsum("ncls,nchds,nhcl->nclhd", c, states, jnp.exp(total))
    return y.reshape(n, length, heads, dim)


def between(total: jax.Array) -> jax.Array:
    """Returns `total_i - total_j` where j <= i, else -inf, on two last axes."""
    length = total.shape[-1]
    differences = total[..., :, None] - total[..., None, :]
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), differences, -jnp.inf)
