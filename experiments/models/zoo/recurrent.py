"""Sequence models: recurrent cells (Linen), state spaces and an ODE (plain)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_linen
from experiments.models.zoo.plain import Params, dense, dense_shapes, draw, rms_norm

LENGTH = 7


class LSTM(nn.Module):
    """An LSTM between two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(12)(x))
        rnn: Any = nn.RNN(nn.OptimizedLSTMCell(20, param_dtype=x.dtype))
        return nn.Dense(10)(rnn(x))


class Bidirectional(nn.Module):
    """A forward GRU and a backward LSTM of different widths, concatenated."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(8)(x))
        forwards = nn.RNN(nn.GRUCell(14, param_dtype=x.dtype))
        backwards = nn.RNN(nn.OptimizedLSTMCell(10, param_dtype=x.dtype))
        rnn: Any = nn.Bidirectional(forwards, backwards)
        return nn.Dense(10)(rnn(x).mean(1))


def lstm(key: jax.Array) -> Architecture:
    """A batch of three sequences."""
    param_key, input_key = jax.random.split(key)
    x = normal(input_key, 3, LENGTH, 6)
    return from_linen(param_key, LSTM(), x, dimensions=("b, t, _",))


def bidirectional(key: jax.Array) -> Architecture:
    """A batch of three sequences."""
    param_key, input_key = jax.random.split(key)
    x = normal(input_key, 3, LENGTH, 6)
    return from_linen(param_key, Bidirectional(), x, dimensions=("b, t, _",))


INNER, STATE, RANK, WINDOW = 32, 6, 2, 4
_MAMBA_BLOCK = {
    "norm": {"scale": (16,)},
    "in": {"kernel": (16, 2 * INNER)},
    "conv": {"kernel": (WINDOW, 1, INNER), "bias": (INNER,)},
    "select": {"kernel": (INNER, RANK + 2 * STATE)},
    "step": dense_shapes(RANK, INNER),
    "log_a": (INNER, STATE),
    "skip": {"scale": (INNER,)},
    "out": {"kernel": (INNER, 16)},
}


def mamba(key: jax.Array) -> Architecture:
    """Two blocks of a causal convolution and a selective scan.

    References:
      Mamba, 2023, arXiv:2312.00752, algorithm 2 and figure 3.
    """
    param_key, input_key = jax.random.split(key)
    shapes = {
        "in": dense_shapes(5, 16),
        "blocks": [_MAMBA_BLOCK, _MAMBA_BLOCK],
        "out": dense_shapes(16, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        for block in params["blocks"]:
            x = x + _mamba_block(block, rms_norm(block["norm"]["scale"], x))
        return dense(params["out"], x)

    inputs = (normal(input_key, 3, 12, 5),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t, _",))


def _mamba_block(p: Params, x: jax.Array) -> jax.Array:
    x, gate = jnp.split(x @ p["in"]["kernel"], 2, axis=-1)
    x = jax.lax.conv_general_dilated(
        x,
        p["conv"]["kernel"],
        window_strides=(1,),
        padding=[(WINDOW - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1],
    )
    x = jax.nn.silu(x + p["conv"]["bias"])
    rank, state = p["step"]["kernel"].shape[0], p["log_a"].shape[1]
    chosen = jnp.split(x @ p["select"]["kernel"], [rank, rank + state], axis=-1)
    step, b, c = chosen
    step = jax.nn.softplus(dense(p["step"], step))
    y = selective_scan(x, step, -jnp.exp(p["log_a"]), b, c)
    return ((y + x * p["skip"]["scale"]) * jax.nn.silu(gate)) @ p["out"]["kernel"]


def selective_scan(
    x: jax.Array, step: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array
) -> jax.Array:
    """Returns `y` of `h_t = exp(step a) h_{t-1} + step b x` and `y_t = c h_t`."""
    decay = jnp.exp(step[..., None] * a)
    drive = (step * x)[..., None] * b[..., None, :]

    def compose(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    _, states = jax.lax.associative_scan(compose, (decay, drive), axis=1)
    return jnp.einsum("btds,bts->btd", states, c)


def neural_ode(key: jax.Array) -> Architecture:
    """Five Euler steps of one residual function of state and time.

    References:
      Neural Ordinary Differential Equations, 2018, arXiv:1806.07366, equation 1.
    """
    param_key, input_key = jax.random.split(key)
    shapes = {
        "in": dense_shapes(14, 16),
        "up": dense_shapes(17, 24),
        "down": dense_shapes(24, 16),
        "out": dense_shapes(16, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        def euler(i: jax.Array, state: jax.Array) -> jax.Array:
            time = jnp.full((state.shape[0], 1), i / 5)
            hidden = dense(params["up"], jnp.concatenate([state, time], axis=-1))
            return state + dense(params["down"], jnp.tanh(hidden)) / 5

        return dense(
            params["out"], jax.lax.fori_loop(0, 5, euler, dense(params["in"], x))
        )

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


ARCHITECTURES: dict[str, Builder] = {
    "LSTM (Linen)": lstm,
    "Bidirectional RNN (Linen)": bidirectional,
    "Mamba (plain)": mamba,
    "Neural ODE (plain)": neural_ode,
}
