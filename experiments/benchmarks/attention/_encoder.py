"""An encoder of BERT-base's shape: dense, masked, cut without scores, and pruned."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models import layers as model_layers
from jprune import attention as ja
from jprune.attention import cascade, sort_keys, top_mask

Layers = Sequence[dict[str, Any]]


class Shape(NamedTuple):
    """Shape of an encoder.

    Attributes:
      depth: number of layers.
      width: width of the residual stream.
      heads: heads per layer.
      hidden: width of the feed-forward layers.
    """

    depth: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072


def init(key: jax.Array, shape: Shape) -> list[dict[str, Any]]:
    """Returns random weights, float32."""
    return [_layer(k, shape) for k in jax.random.split(key, shape.depth)]


def _layer(key: jax.Array, shape: Shape) -> dict[str, Any]:
    keys = jax.random.split(key, 6)
    dim = shape.width // shape.heads

    def normal(i: int, *sizes: int) -> jax.Array:
        return jax.random.normal(keys[i], sizes) / math.sqrt(shape.width)

    weights = ja.HeadWeights(
        *(normal(i, shape.width, shape.heads, dim) for i in range(3)),
        output=normal(3, shape.heads, dim, shape.width),
        query_bias=jnp.zeros((shape.heads, dim)),
        key_bias=jnp.zeros((shape.heads, dim)),
        value_bias=jnp.zeros((shape.heads, dim)),
        output_bias=jnp.zeros(shape.width),
    )
    up = {
        "kernel": normal(4, shape.hidden, shape.width),
        "bias": jnp.zeros(shape.hidden),
    }
    down = {
        "kernel": normal(5, shape.width, shape.hidden),
        "bias": jnp.zeros(shape.width),
    }
    norms = {f"norm{i}": model_layers.init_norm(shape.width) for i in (1, 2)}
    return {"heads": weights, "up": up, "down": down, **norms}


def mix(
    layer: dict[str, Any], x: jax.Array, valid: jax.Array, heads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns attention and its probabilities, without padding."""
    del valid, heads
    return ja.attend(*ja.project(layer["heads"], x))


def mix_fused(
    layer: dict[str, Any], x: jax.Array, valid: jax.Array, heads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns attention and the probabilities of each token, summed over queries."""
    del heads
    return ja.fused.attend_summed(*ja.project(layer["heads"], x), valid)


def finish(
    layer: dict[str, Any], x: jax.Array, outputs: jax.Array, heads: Any = None
) -> jax.Array:
    """Returns the rest of a layer of BERT, which is normalized after each sum."""
    del heads
    x = x + ja.combine(layer["heads"], outputs)
    x = model_layers.layer_norm(layer["norm1"], x)
    said = feed_forward(layer, jnp.moveaxis(x, -1, 0))
    return model_layers.layer_norm(layer["norm2"], x + jnp.moveaxis(said, 0, -1))


def feed_forward(layer: dict[str, Any], x: jax.Array) -> jax.Array:
    """Applies the feed-forward layer to `(width, ...)`, with features first.

    Kernels are (outputs, inputs) and on the left of the product: with few tokens, that
    is up to twice as fast on CPUs as `x @ kernel`, for the dense encoder, too.
    """
    for name, act in (("up", jax.nn.gelu), ("down", lambda y: y)):
        bias = layer[name]["bias"]
        x = jnp.tensordot(layer[name]["kernel"], x, 1)
        x = act(x + bias.reshape(-1, *(1,) * (x.ndim - 1)))
    return x


def half(shape: Shape, length: int, multiple: int) -> ja.Schedule:
    """Returns the paper's ramp of tokens that costs at most half the multiply-adds.

    It starts at 60 % if possible: products of few rows run at a fraction of the speed,
    and a ramp that starts higher ends with fewer tokens.
    """
    whole = ja.dense(shape.depth, length, shape.heads)
    for start in (60, 50, 70):
        for average in range(start, start // 2, -1):  # what `ramp` supports
            counts = ja.ramp(
                shape.depth,
                length,
                average / 100,
                start=start / 100,
                multiple=multiple,
            )
            plan = ja.schedule(length, counts, whole.heads)
            if 2 * cost(shape, plan) <= cost(shape, whole):
                return plan
    raise ValueError(f"no ramp halves the multiply-adds of {shape} at length {length}")


def cost(shape: Shape, plan: ja.Schedule) -> int:
    """Returns the multiply-adds under a schedule."""
    return sum(ja.multiply_adds(plan, shape.width, shape.hidden))


def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention by XLA."""
    return ja.attend(q, k, v)[0]


def flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention by cuDNN's kernel, which has no importances."""
    qkv = (jnp.swapaxes(x, -3, -2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*qkv, implementation="cudnn")
    return jnp.swapaxes(out, -3, -2)


def dense(
    layers: Layers, x: jax.Array, attend: Callable[..., jax.Array] = attended
) -> jax.Array:
    """Returns the output of the encoder, without pruning and scores."""
    for layer in layers:
        x = finish(layer, x, attend(*ja.project(layer["heads"], x)))
    return x


def cut(
    layers: Layers,
    x: jax.Array,
    plan: ja.Schedule,
    attend: Callable[..., jax.Array] = attended,
) -> jax.Array:
    """Keeps the first tokens: the same products, without scores and selection."""
    for layer, count in zip(layers, plan.tokens, strict=True):
        outputs = attend(*ja.project(layer["heads"], x))
        x = finish(layer, x[:, :count], outputs[:, :, :count])
    return x


def pruned(
    layers: Layers, x: jax.Array, plan: ja.Schedule, mix: Callable[..., Any] = mix
) -> jax.Array:
    """Returns the tokens that remain after the cascade."""
    kv_heads = plan.heads[0]
    first = jnp.broadcast_to(jnp.arange(x.shape[1]) == 0, x.shape[:2])
    state = cascade.start(x, kv_heads, protected=first)
    return cascade.encode(state, layers, plan, mix, finish).x


def masked(
    layers: Layers, x: jax.Array, plan: ja.Schedule
) -> tuple[jax.Array, jax.Array]:
    """Returns the same tokens at full length, and their mask."""
    first = jnp.broadcast_to(jnp.arange(x.shape[1]) == 0, x.shape[:2])
    valid, scores = jnp.ones_like(first), jnp.zeros(x.shape[:2])
    for layer, count in zip(layers, plan.tokens, strict=True):
        q, k, v = ja.project(layer["heads"], x)
        outputs, probs = ja.attend(q, k, v, mask=valid[:, None, None])
        scores += ja.token_importance(probs, valid, valid)
        valid = top_mask(sort_keys(scores, valid=valid, protected=first), count)
        x = finish(layer, x, outputs)
    return x, valid


def forms(
    layers: Layers, x: jax.Array, plan: ja.Schedule, compiled: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Returns the functions to time; they are compiled once for all seeds."""
    functions = {
        "dense": dense,
        **{f.__name__: functools.partial(f, plan=plan) for f in (masked, cut, pruned)},
    }
    for name, f in functions.items():
        compiled.setdefault(name, jax.jit(f))
    return {name: functools.partial(compiled[name], layers, x) for name in functions}
