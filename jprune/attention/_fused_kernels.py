"""Pallas kernels of `jprune.attention.fused`, over blocks of queries and keys."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_BLOCK = 64  # queries or keys of a program; both axes are padded to multiples
_WARPS, _STAGES = 4, 3
_LEAST = -1e30  # below every product; an infinity would give NaN in its differences


def run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    *,
    causal: bool,
    scale: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns what `fused.attend_summed` does, by the two kernels.

    Args:
      q: as in `attend_summed`, like the others; dims are powers of two, at least 16.
      k: keys.
      v: values.
      valid: booleans, True for real tokens.
      causal: static.
      scale: static.
      interpret: static; whether to interpret the kernels step by step, on any device.

    Returns:
      `(outputs, looks)`.
    """
    *rows, heads, tokens, dim = q.shape
    fill = -tokens % _BLOCK
    pad = lambda x: jnp.pad(x, ((0, 0), (0, fill), (0, 0)))  # noqa: E731
    q, k, v = (pad(x.reshape(-1, tokens, x.shape[-1])) for x in (q, k, v))
    real = jnp.pad(valid.reshape(-1, tokens), ((0, 0), (0, fill))).astype(jnp.int32)
    n, group = tokens + fill, q.shape[0] // max(k.shape[0], 1)

    def whole(*last: int, per: int) -> pl.BlockSpec:
        rest = (0,) * len(last)
        return pl.BlockSpec((None, n, *last), lambda i, _: (i // per, 0, *rest))

    def block(*last: int, per: int = 1) -> pl.BlockSpec:
        rest = (0,) * len(last)
        return pl.BlockSpec((None, _BLOCK, *last), lambda i, j: (i // per, j, *rest))

    call = functools.partial(
        pl.pallas_call,
        grid=(q.shape[0], n // _BLOCK),
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
    )
    options = {"causal": causal, "scale": scale}
    outputs, sums = call(
        functools.partial(_attend_block, **options),
        in_specs=[
            block(dim),
            whole(dim, per=group),
            whole(v.shape[-1], per=group),
            whole(per=heads),
        ],
        out_specs=[block(v.shape[-1]), block()],
        out_shape=[
            jax.ShapeDtypeStruct((*q.shape[:2], v.shape[-1]), v.dtype),
            jax.ShapeDtypeStruct(q.shape[:2], jnp.float32),
        ],
        name="attend",
    )(q, k, v, real)
    looks = call(
        functools.partial(_sum_block, **options),
        in_specs=[
            whole(dim, per=1),
            block(dim, per=group),
            whole(per=heads),
            block(per=heads),
            whole(per=1),
        ],
        out_specs=block(),
        out_shape=jax.ShapeDtypeStruct(q.shape[:2], jnp.float32),
        name="sum_columns",
    )(q, k, real, real, sums)
    outputs = outputs[:, :tokens].reshape(*rows, heads, tokens, v.shape[-1])
    return outputs, looks[:, :tokens].reshape(*rows, heads, tokens)


def _attend_block(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    real_ref: Any,
    out_ref: Any,
    sum_ref: Any,
    *,
    causal: bool,
    scale: float,
) -> None:
    """Computes outputs of a block of queries, and log sum exp of each row."""
    q, mine = q_ref[...], pl.program_id(1)
    blocks = k_ref.shape[0] // _BLOCK

    def add(j: jax.Array, carry: Any) -> Any:
        total, out, top = carry
        at = pl.ds(j * _BLOCK, _BLOCK)
        logits = _products(q, k_ref[at, :], scale)
        part = _takes_part(real_ref[at], mine, j, causal)
        logits = jnp.where(part, logits, _LEAST)
        higher = jnp.maximum(top, logits.max(1))
        e = jnp.where(part, jnp.exp(logits - higher[:, None]), 0)
        shrink = jnp.exp(top - higher)
        value = v_ref[at, :]
        more = jnp.dot(e.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return total * shrink + e.sum(1), out * shrink[:, None] + more, higher

    none = jnp.zeros(_BLOCK, jnp.float32)
    zeros = jnp.zeros((_BLOCK, v_ref.shape[1]), jnp.float32)
    end = mine + 1 if causal else blocks
    total, out, top = lax.fori_loop(0, end, add, (none, zeros, none + _LEAST))
    some = total > 0
    safe = jnp.where(some, total, 1)
    out_ref[...] = (out / safe[:, None]).astype(out_ref.dtype)
    # For a row that sees nothing, so large that exp(logits - sum) is 0.
    sum_ref[...] = jnp.where(some, top + jnp.log(safe), -_LEAST)


def _sum_block(
    q_ref: Any,
    k_ref: Any,
    looking_ref: Any,
    real_ref: Any,
    sum_ref: Any,
    out_ref: Any,
    *,
    causal: bool,
    scale: float,
) -> None:
    """Computes column sums of the probabilities of a block of keys."""
    k, mine = k_ref[...], pl.program_id(1)
    real = real_ref[...]
    blocks = q_ref.shape[0] // _BLOCK

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        at = pl.ds(i * _BLOCK, _BLOCK)
        logits = _products(q_ref[at, :], k, scale)
        part = _takes_part(real, i, mine, causal) & (looking_ref[at] > 0)[:, None]
        p = jnp.where(part, jnp.exp(logits - sum_ref[at][:, None]), 0)
        return total + p.sum(0)

    begin = mine if causal else 0
    out_ref[...] = lax.fori_loop(begin, blocks, add, jnp.zeros(_BLOCK, jnp.float32))


def _products(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    dots = lax.dot_general(
        q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return dots * scale


def _takes_part(real: jax.Array, i: Any, j: Any, causal: bool) -> jax.Array:
    """Returns the mask of the pairs of query block i and key block j that take part."""
    part = jnp.broadcast_to((real > 0)[None, :], (_BLOCK, _BLOCK))
    if not causal:
        return part
    query = i * _BLOCK + lax.broadcasted_iota(jnp.int32, part.shape, 0)
    key = j * _BLOCK + lax.broadcasted_iota(jnp.int32, part.shape, 1)
    return part & (key <= query)
