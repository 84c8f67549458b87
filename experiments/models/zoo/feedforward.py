"""Multilayer perceptrons and variants of their layers (plain functions)."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.plain import Params, dense, dense_shapes, draw, stack


def mlp(key: jax.Array) -> Architecture:
    """Three dense layers."""
    param_key, input_key = jax.random.split(key)
    params = draw(param_key, _mlp_shapes(14, 20, 24, 10))
    return Architecture(_mlp, params, (normal(input_key, 3, 14),))


def _mlp_shapes(*widths: int) -> list[Params]:
    return [dense_shapes(*pair) for pair in itertools.pairwise(widths)]


def _mlp(layers: list[Params], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(dense(layer, x))
    return dense(layers[-1], x)


def lora(key: jax.Array) -> Architecture:
    """Dense layers with a low-rank update, `W + A B`, of rank 4 (arXiv:2106.09685)."""
    param_key, input_key = jax.random.split(key)
    widths = [(14, 20), (20, 24), (24, 10)]
    shapes = [dense_shapes(n, m) | {"a": (n, 4), "b": (4, m)} for n, m in widths]

    def fn(layers: list[Params], x: jax.Array) -> jax.Array:
        adapted = [
            {"kernel": p["kernel"] + p["a"] @ p["b"], "bias": p["bias"]} for p in layers
        ]
        return _mlp(adapted, x)

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


def ensemble(key: jax.Array) -> Architecture:
    """The mean of an ensemble of four, by `vmap` over stacked parameters."""
    param_key, input_key = jax.random.split(key)
    params = stack(param_key, _mlp_shapes(14, 20, 24, 10), 4)

    def fn(members: list[Params], x: jax.Array) -> jax.Array:
        return jax.vmap(_mlp, in_axes=(0, None))(members, x).mean(0)

    return Architecture(fn, params, (normal(input_key, 3, 14),))


def tied_autoencoder(key: jax.Array) -> Architecture:
    """An autoencoder that decodes with the transposed kernels of its encoder."""
    param_key, input_key = jax.random.split(key)
    shapes = {"kernels": [(18, 24), (24, 8)], "biases": [(24,), (8,), (24,), (18,)]}

    def fn(params: Params, x: jax.Array) -> jax.Array:
        first, second = params["kernels"]
        b1, b2, b3, b4 = params["biases"]
        code = jnp.tanh(jnp.tanh(x @ first + b1) @ second + b2)
        return jnp.tanh(code @ second.T + b3) @ first.T + b4

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 18),))


def weight_normalized(key: jax.Array) -> Architecture:
    """Weight normalization, `g v / |v|` (arXiv:1602.07868)."""
    param_key, input_key = jax.random.split(key)
    shapes = [
        {"direction": (n, m), "scale": (m,), "bias": (m,)}
        for n, m in [(14, 20), (20, 24), (24, 10)]
    ]

    def fn(layers: list[Params], x: jax.Array) -> jax.Array:
        kernels = [
            p["scale"] * p["direction"] / jnp.linalg.norm(p["direction"], axis=0)
            for p in layers
        ]
        pairs = zip(kernels, layers, strict=True)
        return _mlp([{"kernel": k, "bias": p["bias"]} for k, p in pairs], x)

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


def maxout(key: jax.Array) -> Architecture:
    """Maxout units of four affine pieces (arXiv:1302.4389)."""
    param_key, input_key = jax.random.split(key)
    shapes = {
        "hidden": [
            {"kernel": (n, 4, m), "bias": (4, m)} for n, m in [(14, 20), (20, 24)]
        ],
        "out": dense_shapes(24, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        for p in params["hidden"]:
            x = (jnp.einsum("bi,ipo->bpo", x, p["kernel"]) + p["bias"]).max(1)
        return dense(params["out"], x)

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


def highway(key: jax.Array) -> Architecture:
    """Highway layers: gates between transform and carry (arXiv:1505.00387)."""
    param_key, input_key = jax.random.split(key)
    shapes = {
        "in": dense_shapes(14, 20),
        "blocks": [
            {"transform": dense_shapes(20, 20), "gate": dense_shapes(20, 20)}
            for _ in range(2)
        ],
        "out": dense_shapes(20, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        for block in params["blocks"]:
            gate = jax.nn.sigmoid(dense(block["gate"], x))
            x = gate * jax.nn.relu(dense(block["transform"], x)) + (1 - gate) * x
        return dense(params["out"], x)

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


@jax.custom_jvp
def _softsign(x: jax.Array) -> jax.Array:
    return x / (1 + jnp.abs(x))


@_softsign.defjvp
def _softsign_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return _softsign(x), tangent / jnp.square(1 + jnp.abs(x))


_ACTIVATIONS = [
    jax.nn.gelu,
    partial(jax.nn.gelu, approximate=False),
    jax.nn.silu,
    jax.nn.relu6,
    jax.nn.softplus,
    jax.nn.leaky_relu,
    jax.nn.elu,
    _softsign,
]


def activations(key: jax.Array) -> Architecture:
    """A layer for each of eight activations, one of them a `custom_jvp`."""
    param_key, input_key = jax.random.split(key)
    widths = [14, *range(16, 32, 2), 10]

    def fn(layers: list[Params], x: jax.Array) -> jax.Array:
        for layer, activation in zip(layers, [*_ACTIVATIONS, None], strict=True):
            x = dense(layer, x)
            x = x if activation is None else activation(x)
        return x

    params = draw(param_key, _mlp_shapes(*widths))
    return Architecture(fn, params, (normal(input_key, 3, 14),))


@jax.custom_vjp
def _straight_through(x: jax.Array) -> jax.Array:
    return jnp.round(x)


_straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def quantized(key: jax.Array) -> Architecture:
    """Weights and activations rounded to learned steps, straight-through gradients.

    References:
      Learned Step Size Quantization, 2019, arXiv:1902.08153, equations 1 to 3,
      without their clipping.
    """
    param_key, input_key = jax.random.split(key)
    shapes = [
        dense_shapes(n, m) | {"log_step": (2,)}
        for n, m in [(14, 20), (20, 24), (24, 10)]
    ]

    def quantize(x: jax.Array, log_step: jax.Array) -> jax.Array:
        step = jnp.exp(log_step) / 16
        return _straight_through(x / step) * step

    def fn(layers: list[Params], x: jax.Array) -> jax.Array:
        for i, p in enumerate(layers):
            x = x if i == 0 else jax.nn.relu(x)
            of_input, of_kernel = p["log_step"]
            x = quantize(x, of_input) @ quantize(p["kernel"], of_kernel) + p["bias"]
        return x

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


ARCHITECTURES: dict[str, Builder] = {
    "MLP (plain)": mlp,
    "LoRA MLP (plain)": lora,
    "Ensemble by vmap (plain)": ensemble,
    "Weight-tied autoencoder (plain)": tied_autoencoder,
    "Weight-normalized MLP (plain)": weight_normalized,
    "Maxout network (plain)": maxout,
    "Highway network (plain)": highway,
    "Eight activations (plain)": activations,
    "Straight-through quantizer (plain)": quantized,
}
