"""The attention of decoding with a dense, a masked and an evicting KV cache.

All three have the same memory layout: keys are columns and values are rows of a token.
Dense caches with rows only, or columns only, are also timed, so that the fastest dense
cache is known.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.tasks.spatten_traces import GPT2_SMALL
from jprune.attention import cache as caches
from jprune.attention import decode, sort_keys, top_mask

DENSE = ("dense", "rows", "columns")  # layouts of a dense cache, see `forms`
_POSITIONS = 2**16  # more than any run decodes


class Context(NamedTuple):
    """A setting of decoding.

    Attributes:
      batch: number of sequences.
      length: tokens that a dense cache holds.
      tokens: tokens that a call decodes.
      heads: heads per layer.
      dim: dimension of a head.
    """

    batch: int
    length: int
    tokens: int = 32
    heads: int = 12
    dim: int = 64


def budgets(context: Context) -> tuple[int, ...]:
    """Returns the budgets of the authors' schedule of GPT-2 small."""
    return tuple(n * context.length // 1024 for n in GPT2_SMALL.tokens)


def ideal(context: Context) -> float:
    """Returns the ideal speed-up: the reduction of rows of keys and values."""
    kept = budgets(context)
    return context.length * len(kept) / sum(kept)


def dense_bytes(context: Context) -> int:
    """Returns the bytes of keys and values that a token reads from a dense cache."""
    rows = context.batch * context.heads * context.length * len(budgets(context))
    return 2 * 4 * context.dim * rows


def start(context: Context, slots: Sequence[int], seed: int) -> Any:
    """Returns full caches with these numbers of slots, and the stream."""
    key = jax.random.key(seed)
    batch, length = context.batch, context.length
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, length))
    order = shuffled(jax.random.split(key, batch)).astype(jnp.int32)
    layers = []
    for i, n in enumerate(slots):
        rows, dim = batch * context.heads, context.dim
        one, two = jax.random.split(jax.random.fold_in(key, i))
        keys = jax.random.normal(one, (rows, dim, n))
        values = jax.random.normal(two, (rows, n, dim))
        used = jnp.full(batch, n, jnp.int32)
        # A copy, since donated buffers must not be shared.
        layers.append(caches.Cache(keys, values, jnp.copy(order[:, :n]), used))
    scores = jax.random.uniform(key, (batch, length))
    return tuple(layers), caches.start(batch, _POSITIONS, scores=scores)


def attend_dense(
    q: jax.Array, k: jax.Array, v: jax.Array, cache: caches.Cache, stream: caches.Stream
) -> tuple[jax.Array, caches.Cache, caches.Stream]:
    """Attends to a dense cache; the slot of the oldest token is overwritten.

    It has the same structure as the other forms; the bandwidth shows that XLA compiles
    it well.
    """
    cache = _overwrite_oldest(cache, stream, k, v)
    logits = decode.query(q, cache)
    return decode.mix(jax.nn.softmax(logits), cache), cache, stream


def attend_laid(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: caches.Cache,
    stream: caches.Stream,
    axis: int,
) -> tuple[jax.Array, caches.Cache, caches.Stream]:
    """Attends to a dense cache with slots of keys and values on the same axis.

    Axis 1 is for rows, `(rows, slots, dim)`; axis 2 for columns, `(rows, dim, slots)`.
    """
    put, lie = (_put_row, "nsd") if axis == 1 else (_put_column, "nds")
    slot = stream.position[0] % cache.positions.shape[1]
    keys, values = put(cache.keys, k, slot), put(cache.values, v, slot)
    query = q.reshape(keys.shape[0], 1, -1) / math.sqrt(q.shape[-1])
    probs = jax.nn.softmax(jnp.einsum(f"ngd,{lie}->ngs", query, keys))
    out = jnp.einsum(f"ngs,{lie}->ngd", probs, values).reshape(q.shape)
    return out, cache._replace(keys=keys, values=values), stream


def attend_masked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: caches.Cache,
    stream: caches.Stream,
    count: int,
) -> tuple[jax.Array, caches.Cache, caches.Stream]:
    """Attends to the `count` best tokens of a dense cache, by a mask."""
    cache = _overwrite_oldest(cache, stream, k, v)
    kept = top_mask(sort_keys(caches.slot_scores(cache, stream)), count)
    logits = jnp.where(kept[:, None], decode.query(q, cache), -jnp.inf)
    probs = jax.nn.softmax(logits)
    return decode.mix(probs, cache), cache, decode.credit(stream, cache, probs)


def _overwrite_oldest(
    cache: caches.Cache, stream: caches.Stream, k: jax.Array, v: jax.Array
) -> caches.Cache:
    slot = stream.position[0] % cache.positions.shape[1]
    positions = lax.dynamic_update_slice(
        cache.positions, stream.position[:, None], (0, slot)
    )
    return cache._replace(
        keys=_put_column(cache.keys, k, slot),
        values=_put_row(cache.values, v, slot),
        positions=positions,
    )


def _put_row(x: jax.Array, row: jax.Array, slot: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice(x, row.reshape(-1, 1, row.shape[-1]), (0, slot, 0))


def _put_column(x: jax.Array, row: jax.Array, slot: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice(x, row.reshape(-1, row.shape[-1], 1), (0, 0, slot))


def tokens(steps: Sequence[Callable[..., Any]], carry: Any, qkv: Any) -> Any:
    """Decodes some tokens; the input of each layer depends on the previous one."""

    def token(carry: Any, qkv: Any) -> Any:
        layers, stream = list(carry[0]), carry[1]
        out = jnp.zeros_like(qkv[0][0])
        for i, step in enumerate(steps):
            # A negligible term, so that no layer starts before the previous one ends.
            q, k, v = (x[i] + 1e-9 * out for x in qkv)
            out, layers[i], stream = step(q, k, v, layers[i], stream)
        return (tuple(layers), caches.advance(stream)), out

    return lax.scan(token, carry, qkv)


def forms(
    context: Context, seed: int, compiled: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Returns the functions to time; a call decodes `context.tokens` tokens."""
    kept = budgets(context)
    whole = [context.length] * len(kept)
    masks = [functools.partial(attend_masked, count=n) for n in kept]
    programs = {
        "dense": ([attend_dense] * len(kept), whole),
        "rows": ([functools.partial(attend_laid, axis=1)] * len(kept), whole),
        "columns": ([functools.partial(attend_laid, axis=2)] * len(kept), whole),
        "masked": (masks, whole),
        "evicting": ([decode.step] * len(kept), kept),
    }
    shape = (context.tokens, len(kept), context.batch, context.heads, context.dim)
    qkv = tuple(
        jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(seed), 3)
    )
    made: dict[str, Callable[[], Any]] = {"streaming": streaming(context, compiled)}
    for name, (steps, slots) in programs.items():
        run = functools.partial(tokens, steps)
        program = compiled.setdefault(name, jax.jit(run, donate_argnums=0))
        state = start(context, slots, seed)
        if name in ("rows", "columns"):
            state = _turned(state, "keys" if name == "rows" else "values")
        made[name] = functools.partial(_call, program, [state], qkv)
    return made


def _turned(state: Any, what: str) -> Any:
    layers, stream = state
    turn = lambda c: {what: jnp.swapaxes(getattr(c, what), 1, 2)}  # noqa: E731
    return tuple(c._replace(**turn(c)) for c in layers), stream


def _call(program: Any, state: list[Any], qkv: Any) -> jax.Array:
    state[0], out = program(state[0], qkv)  # the caches are donated
    return out


def streaming(context: Context, compiled: dict[str, Any]) -> Callable[[], Any]:
    """Returns a matrix-vector product with a matrix of the size of the caches."""
    columns = 4096
    rows = max(1, math.ceil(dense_bytes(context) / 4 / columns))
    matrix = jnp.ones((rows, columns))
    program = compiled.setdefault("streaming", jax.jit(lambda m, x: m @ x))
    return functools.partial(program, matrix, jnp.ones(columns))
