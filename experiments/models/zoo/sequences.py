"""Later sequence mixers: Mamba-2, RWKV, a gated MLP and KAN (plain functions)."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.plain import (
    Params,
    causal,
    dense,
    dense_shapes,
    draw,
    heads,
    layer_norm,
    merge,
    norm_shapes,
    rms_norm,
)

WIDTH, HEADS, DIM, STATE, WINDOW = 16, 4, 6, 8, 4
INNER = HEADS * DIM
_SSD_BLOCK = {
    "norm": {"scale": (WIDTH,)},
    "gate": (WIDTH, INNER),
    "mixed": (WIDTH, INNER + 2 * STATE),
    "conv": {"kernel": (WINDOW, 1, INNER + 2 * STATE), "bias": (INNER + 2 * STATE,)},
    "step": dense_shapes(WIDTH, HEADS),
    "decay": {"bias": (HEADS,)},
    "skip": {"scale": (HEADS,)},
    "norm2": {"scale": (INNER,)},
    "out": (INNER, WIDTH),
}


def mamba_2(key: jax.Array) -> Architecture:
    """Two blocks with one decay for each head, in the form of masked attention.

    References:
      Transformers are SSMs, 2024, arXiv:2405.21060, section 7.1 and listing 1.
    """
    param_key, input_key = jax.random.split(key)
    shapes = {
        "in": dense_shapes(5, WIDTH),
        "blocks": [_SSD_BLOCK, _SSD_BLOCK],
        "out": dense_shapes(WIDTH, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        for p in params["blocks"]:
            x = x + _ssd_block(p, rms_norm(p["norm"]["scale"], x))
        return dense(params["out"], x)

    inputs = (normal(input_key, 3, 12, 5),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t, _",))


def _ssd_block(p: Params, x: jax.Array) -> jax.Array:
    step = jax.nn.softplus(dense(p["step"], x))
    gate = jax.nn.silu(x @ p["gate"])
    mixed = x @ p["mixed"]
    mixed = jax.lax.conv_general_dilated(
        mixed,
        p["conv"]["kernel"],
        window_strides=(1,),
        padding=[(WINDOW - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=mixed.shape[-1],
    )
    mixed = jax.nn.silu(mixed + p["conv"]["bias"])
    x, b, c = jnp.split(mixed, [INNER, INNER + STATE], axis=-1)
    x = heads(x, HEADS)
    y = ssd(x, step, -jnp.exp(p["decay"]["bias"]), b, c)
    y = merge(y + x * p["skip"]["scale"][:, None])
    return rms_norm(p["norm2"]["scale"], y * gate) @ p["out"]


def ssd(
    x: jax.Array, step: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array
) -> jax.Array:
    """Returns `y_t = c_t h_t` of `h_t = exp(step_t a) h_{t-1} + step_t b_t x_t`.

    Args:
      x: `(batch, time, heads, dim)`.
      step: `(batch, time, heads)`.
      a: `(heads,)`, negative.
      b: `(batch, time, state)`.
      c: `(batch, time, state)`.
    """
    total = jnp.cumsum(step * a, axis=1)
    decay = total[:, :, None] - total[:, None]
    decay = jnp.exp(jnp.where(causal(x.shape[1])[..., None], decay, -jnp.inf))
    products = jnp.einsum("btn,bsn->bts", c, b)
    return jnp.einsum("bts,btsh,bsh,bshp->bthp", products, decay, step, x)


_TIME_MIX = {
    "norm": norm_shapes(WIDTH),
    "mix": {name: {"scale": (WIDTH,)} for name in "rkvg"},
    **dict.fromkeys("rkvg", (WIDTH, INNER)),
    "decay": (HEADS, DIM),
    "bonus": (HEADS, DIM),
    "norm2": norm_shapes(INNER),
    "out": (INNER, WIDTH),
}
_CHANNEL_MIX = {
    "norm": norm_shapes(WIDTH),
    "mix": {"scale": (WIDTH,)},
    "up": (WIDTH, 40),
    "down": (40, WIDTH),
}


def rwkv(key: jax.Array) -> Architecture:
    """Two blocks of linear attention with a decay for each channel, step by step.

    References:
      Eagle and Finch, 2024, arXiv:2404.05892, section 4.1 (RWKV-5).
    """
    param_key, input_key = jax.random.split(key)
    shapes = {
        "in": dense_shapes(5, WIDTH),
        "blocks": [{"time": _TIME_MIX, "channel": _CHANNEL_MIX} for _ in range(2)],
        "out": dense_shapes(WIDTH, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        for block in params["blocks"]:
            x = x + _time_mix(block["time"], x)
            x = x + _channel_mix(block["channel"], x)
        return dense(params["out"], x)

    inputs = (normal(input_key, 3, 9, 5),)
    return Architecture(fn, draw(param_key, shapes), inputs, dimensions=("b, t, _",))


def _shifted(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Mixes each step with the one before."""
    before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return before + (x - before) * scale


def _time_mix(p: Params, x: jax.Array) -> jax.Array:
    x = layer_norm(p["norm"], x)
    r, k, v, g = (_shifted(x, p["mix"][name]["scale"]) @ p[name] for name in "rkvg")
    r, k, v = (heads(y, HEADS) for y in (r, k, v))
    y = linear_attention(r, k, v, jnp.exp(-jnp.exp(p["decay"])), p["bonus"])
    y = jax.nn.standardize(y, axis=-1, epsilon=1e-3)
    y = merge(y) * p["norm2"]["scale"] + p["norm2"]["bias"]
    return (y * jax.nn.silu(g)) @ p["out"]


def linear_attention(
    r: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, bonus: jax.Array
) -> jax.Array:
    """Returns `y_t = r_t (s_t + bonus k_t v_t)` of `s_{t+1} = decay s_t + k_t v_t`.

    Args:
      r: receptances, `(batch, time, heads, dim)`.
      k: keys, of the same shape.
      v: values, `(batch, time, heads, values)`.
      decay: factors of the state, `(heads, dim)`.
      bonus: weights of the present step, `(heads, dim)`.
    """

    def turn(state: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        r, k, v = now
        new = k[..., None] * v[..., None, :]
        y = jnp.einsum("bhd,bhdv->bhv", r, state + bonus[..., None] * new)
        return decay[..., None] * state + new, y

    start = jnp.zeros((r.shape[0], *r.shape[2:], v.shape[-1]), r.dtype)
    steps = tuple(jnp.moveaxis(x, 1, 0) for x in (r, k, v))
    return jnp.moveaxis(jax.lax.scan(turn, start, steps)[1], 0, 1)


def _channel_mix(p: Params, x: jax.Array) -> jax.Array:
    x = _shifted(layer_norm(p["norm"], x), p["mix"]["scale"])
    return jnp.square(jax.nn.relu(x @ p["up"])) @ p["down"]


def gated_mlp(key: jax.Array) -> Architecture:
    """gMLP: half of the channels gate the others after a mix over positions.

    References:
      Pay Attention to MLPs, 2021, arXiv:2105.08050, figure 1.
    """
    param_key, input_key = jax.random.split(key)
    length = 9
    block = {
        "norm": norm_shapes(WIDTH),
        "up": dense_shapes(WIDTH, 48),
        "norm2": norm_shapes(24),
        "mix": {"kernel": (length, length), "bias": (length,)},
        "down": dense_shapes(24, WIDTH),
    }
    shapes = {
        "in": dense_shapes(5, WIDTH),
        "blocks": [block, block],
        "out": dense_shapes(WIDTH, 10),
    }

    def fn(params: Params, x: jax.Array) -> jax.Array:
        x = dense(params["in"], x)
        for p in params["blocks"]:
            y = jax.nn.gelu(dense(p["up"], layer_norm(p["norm"], x)))
            y, gate = jnp.split(y, 2, axis=-1)
            gate = jnp.einsum(
                "bsc,ts->btc", layer_norm(p["norm2"], gate), p["mix"]["kernel"]
            )
            x = x + dense(p["down"], y * (gate + p["mix"]["bias"][:, None]))
        return dense(params["out"], x.mean(1))

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, length, 5),))


def kan(key: jax.Array) -> Architecture:
    """A learned function on each edge: SiLU, and a sum of Gaussians on a grid.

    References:
      KAN, 2024, arXiv:2404.19756, equations 2.7 and 2.10; with the Gaussians of
      FastKAN, 2024, arXiv:2405.06721, equation 9.
    """
    param_key, input_key = jax.random.split(key)
    grid = 6
    shapes = [
        {"base": (n, m), "coefficients": (n, grid, m)}
        for n, m in [(14, 20), (20, 24), (24, 10)]
    ]

    def fn(layers: list[Params], x: jax.Array) -> jax.Array:
        centres = jnp.linspace(-2.0, 2.0, grid)
        for p in layers:
            bumps = jnp.exp(-jnp.square((x[..., None] - centres) / 0.8))
            edges = jnp.einsum("bik,iko->bo", bumps, p["coefficients"])
            x = jax.nn.silu(x) @ p["base"] + edges
        return x

    return Architecture(fn, draw(param_key, shapes), (normal(input_key, 3, 14),))


ARCHITECTURES: dict[str, Builder] = {
    "Mamba-2 (plain)": mamba_2,
    "RWKV-5 (plain)": rwkv,
    "gMLP (plain)": gated_mlp,
    "KAN (plain)": kan,
}
