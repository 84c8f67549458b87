"""Layers as functions over plain dicts, and their random parameters.

Shapes are tuples in a tree of dicts and lists, such as `dense_shapes(4, 8)`; `draw`
converts each to an array.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.zoo import base

Params = dict[str, Any]
Shapes = dict[str, Any]


def draw(key: jax.Array, shapes: Any) -> Any:
    """Returns random float32 parameters of these shapes, as `base.draw` does.

    Args:
      key: PRNG key.
      shapes: tree of dicts and lists whose leaves are shapes (tuples).
    """
    abstract = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return base.draw(key, abstract)


def stack(key: jax.Array, shapes: Any, copies: int) -> Any:
    """Returns `copies` independent draws, stacked along new leading axes."""
    draws = [draw(k, shapes) for k in jax.random.split(key, copies)]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *draws)


def dense_shapes(inputs: int, outputs: int) -> Shapes:
    """Returns the shapes for `dense`."""
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def norm_shapes(width: int) -> Shapes:
    """Returns the shapes for `layer_norm`."""
    return {"scale": (width,), "bias": (width,)}


def dense(layer: Params, x: jax.Array) -> jax.Array:
    """Returns `x @ kernel + bias` for `x` of shape `(..., in)`."""
    return x @ layer["kernel"] + layer["bias"]


def layer_norm(layer: Params, x: jax.Array) -> jax.Array:
    """Returns the layer normalization over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["bias"]


def rms_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Divides `x` by its root mean square along the last axis, and scales."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: Any = None,
    *,
    scale: float | None = None,
) -> jax.Array:
    """Returns dot-product attention.

    Args:
      q: Queries, `(batch, queries, heads, dim)`.
      k: Keys, `(batch, keys, heads, dim)`.
      v: Values, `(batch, keys, heads, values)`.
      bias: Added to the logits `(batch, heads, queries, keys)`, or a boolean mask
        of those that count; None for neither.
      scale: Factor of the products; None for 1 / sqrt(dim).
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    logits = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k)
    if bias is not None:
        masked = bias.dtype == bool
        logits = jnp.where(bias, logits, -1e9) if masked else logits + bias
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def causal(length: int) -> jax.Array:
    """Returns the causal mask `(length, length)`."""
    return jnp.tril(jnp.ones((length, length), bool))


def heads(x: jax.Array, count: int) -> jax.Array:
    """Returns `(batch, length, width)` as `(batch, length, count, width / count)`."""
    return x.reshape(*x.shape[:-1], count, -1)


def merge(x: jax.Array) -> jax.Array:
    """Merges the last two axes of `(batch, length, heads, dim)`."""
    return x.reshape(*x.shape[:-2], -1)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Returns sines and cosines `(n, width)` of positions or times `(n,)`."""
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(width // 2) / (width // 2))
    angles = positions[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
