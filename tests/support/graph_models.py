"""Small functions that the tests of `jprune.graph` share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Two hidden layers."""
    x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    x = jnp.tanh(x @ params["b"]["kernel"])
    return x @ params["c"]["kernel"]


def mlp_params(seed: int = 0) -> Any:
    """Params of `mlp` for inputs of 5 features: 12 and 8 hidden units."""
    draw = np.random.default_rng(seed).normal
    return {
        "a": {"kernel": _f32(draw(size=(5, 12))), "bias": _f32(draw(size=12))},
        "b": {"kernel": _f32(draw(size=(12, 8)))},
        "c": {"kernel": _f32(draw(size=(8, 3)))},
    }


def grouped_attention(params: Any, x: jax.Array) -> jax.Array:
    """Two residual blocks: attention with 2 heads of keys for 4 of queries; an MLP."""
    n, heads = x.shape[0], params["k"].shape[1]
    q = jnp.einsum("nd,dkgh->nkgh", x, params["q"])
    k = jnp.einsum("nd,dkh->nkh", x, params["k"])
    v = jnp.einsum("nd,dkh->nkh", x, params["v"])
    weights = jax.nn.softmax(jnp.einsum("nkgh,mkh->kgnm", q, k), axis=-1)
    mixed = jnp.einsum("kgnm,mkh->nkgh", weights, v)
    x = x + jnp.einsum("nkgh,kghd->nd", mixed, params["o"])
    assert mixed.shape[:2] == (n, heads)
    return x + jax.nn.silu(x @ params["up"]) @ params["down"]


def attention_params(seed: int = 0) -> Any:
    """Params of `grouped_attention` for inputs of 6 features."""
    draw = np.random.default_rng(seed).normal
    shapes = {
        "q": (6, 2, 2, 4),
        "k": (6, 2, 4),
        "v": (6, 2, 4),
        "o": (2, 2, 4, 6),
        "up": (6, 10),
        "down": (10, 6),
    }
    return {name: _f32(draw(size=s)) for name, s in shapes.items()}


def _f32(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
