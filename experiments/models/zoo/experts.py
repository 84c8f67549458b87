"""Mixtures of experts; each expert is a slice of a stacked kernel (plain functions)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.plain import Params, dense, dense_shapes, draw

EXPERTS = 6
_SHAPES = {
    "in": dense_shapes(14, 16),
    "router": {"kernel": (16, EXPERTS)},
    "experts": {
        "up": (EXPERTS, 16, 20),
        "up_bias": (EXPERTS, 20),
        "down": (EXPERTS, 20, 16),
        "down_bias": (EXPERTS, 16),
    },
    "out": dense_shapes(16, 10),
}


def soft(key: jax.Array) -> Architecture:
    """All experts for every example, mixed by the softmax of the router."""

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        gates = jax.nn.softmax(x @ params["router"]["kernel"])
        return dense(params["out"], x + _mix(params["experts"], gates, x))

    return _build(key, fn)


def top_two(key: jax.Array) -> Architecture:
    """The two experts with the largest logits, computed densely (arXiv:1701.06538)."""

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        best, chosen = jax.lax.top_k(x @ params["router"]["kernel"], 2)
        one_hot = jax.nn.one_hot(chosen, EXPERTS)
        gates = jnp.einsum("nk,nke->ne", jax.nn.softmax(best), one_hot)
        return dense(params["out"], x + _mix(params["experts"], gates, x))

    return _build(key, fn)


def ragged(key: jax.Array) -> Architecture:
    """The best expert for each example; examples are sorted for `ragged_dot`.

    References:
      MegaBlocks, 2022, arXiv:2211.15841, section 4 (products of ragged groups).
    """

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        gates = jax.nn.softmax(x @ params["router"]["kernel"])
        chosen = gates.argmax(-1)
        order = jnp.argsort(chosen)
        counts = jnp.bincount(chosen, length=EXPERTS).astype(jnp.int32)
        p, rows, expert = params["experts"], x[order], chosen[order]
        hidden = jax.lax.ragged_dot(rows, p["up"], counts) + p["up_bias"][expert]
        y = jax.lax.ragged_dot(jax.nn.gelu(hidden), p["down"], counts)
        y = jnp.zeros_like(x).at[order].set(y + p["down_bias"][expert])
        return dense(params["out"], x + gates.max(-1, keepdims=True) * y)

    return _build(key, fn)


def _build(key: jax.Array, fn: Callable[..., jax.Array]) -> Architecture:
    param_key, input_key = jax.random.split(key)
    return Architecture(fn, draw(param_key, _SHAPES), (normal(input_key, 5, 14),))


def _mix(experts: Params, gates: jax.Array, x: jax.Array) -> jax.Array:
    hidden = jnp.einsum("ni,eih->neh", x, experts["up"]) + experts["up_bias"]
    outputs = jnp.einsum("neh,eho->neo", jax.nn.gelu(hidden), experts["down"])
    return jnp.einsum("ne,neo->no", gates, outputs + experts["down_bias"])


ARCHITECTURES: dict[str, Builder] = {
    "Soft mixture of experts (plain)": soft,
    "Top-2 mixture of experts (plain)": top_two,
    "Mixture of experts by ragged_dot (plain)": ragged,
}
