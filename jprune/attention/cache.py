"""A cache of keys and values in a static budget of slots, pruned by overwriting.

A token that is pruned gives its slot to the next one, so what attention reads is the
budget and no more, nothing is gathered while decoding, and XLA compiles one step.

Keys are `(batch * kv_heads, dim, slots)`, values `(batch * kv_heads, slots, dim)`, so
that both products of a token are weighted sums of rows: on CPU a tenth faster where
caches are larger than its own. With a separate axis for a batch of one, XLA's products
are several times slower.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.attention import _choose


class Cache(NamedTuple):
    """The tokens that a layer of a decoder still attends to.

    Attributes:
      keys: `(batch * kv_heads, dim, slots)`; with rotary positions already applied.
      values: `(batch * kv_heads, slots, dim)`.
      positions: `(batch, slots)` int32, of each slot's token in its sequence.
      used: `(batch,)` int32: so many slots hold a token, the first ones.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    used: jax.Array


class Stream(NamedTuple):
    """What passes from layer to layer, and from the last one to the next token.

    Attributes:
      scores: `(batch, length)` float32: each position's importance so far, summed over
        heads, layers and queries. `length` bounds the positions that can be decoded.
      position: `(batch,)` int32, of the token that is decoded now.
      evicted: `(batch,)` int32: the position that the layer before has given up in
        this step, or -1.
    """

    scores: jax.Array
    position: jax.Array
    evicted: jax.Array


def init(
    batch: int, kv_heads: int, slots: int, dim: int, *, dtype: jax.typing.DTypeLike
) -> Cache:
    """Returns an empty cache.

    Args:
      batch: sequences.
      kv_heads: heads of keys and values, which queries may share.
      slots: tokens that it holds at most: the layer's budget.
      dim: of a head.
      dtype: of keys and values.

    Returns:
      The cache, all zeros.

    Raises:
      PruningError: A size is not positive (a batch may be empty).

    Example:
      >>> import jax.numpy as jnp
      >>> init(2, 4, 16, 8, dtype=jnp.bfloat16).keys.shape
      (8, 8, 16)
    """
    if batch < 0 or min(kv_heads, slots, dim) < 1:
        raise base.PruningError(
            f"no cache has batch {batch}, {kv_heads} heads, {slots} slots of {dim}"
        )
    rows = batch * kv_heads
    return Cache(
        jnp.zeros((rows, dim, slots), dtype),
        jnp.zeros((rows, slots, dim), dtype),
        jnp.zeros((batch, slots), jnp.int32),
        jnp.zeros(batch, jnp.int32),
    )


def start(
    batch: int,
    length: int,
    *,
    scores: jax.Array | None = None,
    position: jax.Array | None = None,
) -> Stream:
    """Returns the stream before the first token, or after a prompt.

    Args:
      batch: sequences.
      length: static, more than any position that will be decoded.
      scores: `(batch, prompt)`: the importance of the prompt's tokens, summed over
        layers (`importance.token_importance`); none for an empty prompt.
      position: `(batch,)`: of the next token, where prompts are padded at their end;
        the prompt's width if None.

    Returns:
      The stream.

    Raises:
      PruningError: The prompt is longer than `length`.

    Example:
      >>> stream = start(1, 6, scores=jnp.array([[2.0, 0.5, 0.5]]))
      >>> stream.scores.tolist(), stream.position.tolist()
      ([[2.0, 0.5, 0.5, 0.0, 0.0, 0.0]], [3])
    """
    if scores is None:
        scores = jnp.zeros((batch, 0), jnp.float32)
    prompt = scores.shape[1]
    if prompt > length:
        raise base.PruningError(f"a prompt of {prompt} tokens, a length of {length}")
    if position is None:
        position = jnp.full(batch, prompt, jnp.int32)
    real = jnp.arange(prompt, dtype=jnp.int32)[None] < position[:, None]
    scores = jnp.where(real, scores.astype(jnp.float32), 0)
    scores = jnp.pad(scores, ((0, 0), (0, length - prompt)))
    return Stream(scores, position.astype(jnp.int32), jnp.full(batch, -1, jnp.int32))


def advance(stream: Stream) -> Stream:
    """Returns the stream for the next token, after the last layer.

    Args:
      stream: after the last layer.

    Returns:
      The same scores, one position on: the cascade goes on from the last layer of this
      token to the first of the next.
    """
    return stream._replace(
        position=stream.position + 1, evicted=jnp.full_like(stream.evicted, -1)
    )


def fill(
    keys: jax.Array,
    values: jax.Array,
    stream: Stream,
    slots: int,
    *,
    positions: jax.Array | None = None,
    sinks: int = 0,
    recent: int = 0,
) -> Cache:
    """Returns a layer's cache after a prompt: its most important tokens, packed.

    Args:
      keys: `(batch, kv_heads, prompt, dim)`.
      values: `(batch, kv_heads, prompt, dim)`.
      stream: after the prompt, with its scores and the next token's position, as for
        all layers, so that what a layer keeps is among what the one before keeps.
      slots: the layer's budget.
      positions: `(batch, prompt)` of the given tokens, if they are already pruned ones;
        those at or beyond `stream.position` are padding.
      sinks: the first tokens of the sequence that stay.
      recent: the last tokens that stay, the one to come among them.

    Returns:
      The cache, its slots in the order of the sequence.

    Raises:
      PruningError: `sinks` and `recent` leave no slot to prune.
    """
    batch, heads, prompt, dim = keys.shape
    if positions is None:
        positions = jnp.broadcast_to(
            jnp.arange(prompt, dtype=jnp.int32), (batch, prompt)
        )
    whole = Cache(
        keys.reshape(batch * heads, prompt, dim).swapaxes(1, 2),
        values.reshape(batch * heads, prompt, dim),
        positions,
        jnp.full(batch, prompt, jnp.int32),
    )
    return compact(whole, stream, slots, sinks=sinks, recent=recent)


def compact(
    cache: Cache, stream: Stream, slots: int, *, sinks: int = 0, recent: int = 0
) -> Cache:
    """Returns the most important tokens of a cache in another budget of slots.

    The one gather of a generation. In the paper's traces the first token still reads
    all keys: fill caches with room for the prompt and that token, and compact them
    after it.

    Args:
      cache: of any budget.
      stream: with the scores, between two tokens.
      slots: the new budget, smaller or larger.
      sinks: the first tokens of the sequence that stay.
      recent: the last tokens that stay, the one to come among them.

    Returns:
      The cache, its slots in the order of the sequence if those of `cache` were.

    Raises:
      PruningError: `sinks` and `recent` leave no slot to prune.
    """
    check_protected(slots, sinks, recent)
    old = cache.positions.shape[1]
    live = live_slots(cache) & (cache.positions < stream.position[:, None])
    ids = jnp.broadcast_to(jnp.arange(old, dtype=jnp.int32), cache.positions.shape)
    if slots < old:
        stays = protected_slots(cache, stream, sinks, recent)
        scores = slot_scores(cache, stream)
        ids = _choose.top_indices(scores, slots, valid=live, protected=stays)
    # Tokens first, then what is left of padding.
    order = jnp.argsort(~_pick(live, ids), axis=1, stable=True)
    ids = _pick(ids, order)
    rows = _for_heads(ids, cache.keys.shape[0] // max(ids.shape[0], 1))

    def room(x: jax.Array, axis: int = 1) -> jax.Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, max(slots - old, 0))
        return jnp.pad(x, width)

    return Cache(
        room(_pick_columns(cache.keys, rows), axis=2),
        room(_pick(cache.values, rows)),
        room(_pick(cache.positions, ids)),
        jnp.minimum(live.sum(1, dtype=jnp.int32), slots),
    )


def append(
    cache: Cache,
    stream: Stream,
    k: jax.Array,
    v: jax.Array,
    *,
    sinks: int = 0,
    recent: int = 0,
) -> tuple[Cache, Stream]:
    """Writes a token, over the least important one where no slot is free.

    The one that the layer before has given up in this step goes first, so that what is
    pruned in a layer is pruned in all after it; else the one of the least score, of
    equal ones the latest. Two rows are written; no other key or value moves.

    Args:
      cache: the layer's.
      stream: from the layer before.
      k: `(batch, kv_heads, dim)`, the key of the token at `stream.position`.
      v: `(batch, kv_heads, dim)`, its value.
      sinks: the first tokens of the sequence that stay.
      recent: the last tokens that stay, this one among them.

    Returns:
      The cache with the token, and the stream with the position that was given up.

    Raises:
      PruningError: `sinks` and `recent` leave no slot to prune.
    """
    slots = cache.positions.shape[1]
    check_protected(slots, sinks, recent)
    slot, evicted = cache.used, jnp.full_like(stream.evicted, -1)
    if slots < stream.scores.shape[1]:  # else there is always one free
        scores = slot_scores(cache, stream)
        stays = protected_slots(cache, stream, sinks, recent)
        scores = jnp.where(stays, jnp.inf, scores)
        gone = cache.positions == stream.evicted[:, None]
        worst = jax.vmap(_least)(jnp.where(gone, -jnp.inf, scores), cache.positions)
        full = cache.used == slots
        slot = jnp.where(full, worst, cache.used)
        evicted = jnp.where(full, _pick(cache.positions, worst[:, None])[:, 0], -1)
    rows = _for_heads(slot, k.shape[1])
    cache = Cache(
        _write_column(cache.keys, k.reshape(-1, k.shape[-1]), rows),
        _write(cache.values, v.reshape(-1, v.shape[-1]), rows),
        _write(cache.positions, stream.position, slot),
        jnp.minimum(cache.used + 1, slots),
    )
    return cache, stream._replace(evicted=evicted)


def live_slots(cache: Cache) -> jax.Array:
    """Returns `(batch, slots)`: True where a slot holds a token.

    Args:
      cache: any.

    Returns:
      A boolean array.
    """
    slots = jnp.arange(cache.positions.shape[1], dtype=jnp.int32)
    return slots[None] < cache.used[:, None]


def slot_scores(cache: Cache, stream: Stream) -> jax.Array:
    """Returns `(batch, slots)`: the importance so far of each slot's token.

    Args:
      cache: any.
      stream: of its sequences.

    Returns:
      Float32; that of an empty slot means nothing.
    """
    return _pick(stream.scores, cache.positions)


def protected_slots(cache: Cache, stream: Stream, sinks: int, recent: int) -> jax.Array:
    """Returns `(batch, slots)`: True for tokens that are not to be pruned.

    Args:
      cache: any.
      stream: of its sequences, with the position that is decoded now.
      sinks: the first tokens of the sequence that stay.
      recent: the last tokens that stay, that one among them.

    Returns:
      A boolean array.
    """
    late = cache.positions > (stream.position - recent)[:, None]
    return (cache.positions < sinks) | late


def check_protected(slots: int, sinks: int, recent: int) -> None:
    """Refuses a budget that its protected tokens fill.

    Args:
      slots: the budget.
      sinks: the first tokens that stay.
      recent: the last tokens that stay.

    Raises:
      PruningError: They leave no slot to prune.
    """
    if min(sinks, recent) < 0 or slots < 1 or sinks + max(recent, 1) > slots:
        raise base.PruningError(
            f"{slots} slots do not hold {sinks} sinks and the last {recent} tokens"
        )


def _least(scores: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the slot of the least score; of equal ones that of the latest token."""
    least = scores == scores.min()
    return jnp.argmax(jnp.where(least, positions, -1)).astype(jnp.int32)


def _for_heads(x: jax.Array, heads: int) -> jax.Array:
    """Returns `(batch * heads, ...)`, each sequence's entry for all of its heads."""
    # Not `jnp.repeat`, which gathers a batch over several devices on each of them.
    wide = jnp.broadcast_to(x[:, None], (x.shape[0], heads, *x.shape[1:]))
    return wide.reshape(-1, *x.shape[1:])


@jax.vmap
def _pick(x: jax.Array, ids: jax.Array) -> jax.Array:
    return x.at[ids].get(mode="promise_in_bounds")


@jax.vmap
def _pick_columns(x: jax.Array, ids: jax.Array) -> jax.Array:
    return x.at[:, ids].get(mode="promise_in_bounds")


@jax.vmap
def _write(x: jax.Array, row: jax.Array, slot: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, row.astype(x.dtype), slot, 0)


@jax.vmap
def _write_column(x: jax.Array, column: jax.Array, slot: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, column.astype(x.dtype), slot, 1)
