"""KV cache of a fixed number of slots: a new token overwrites the least important one.

    init, Cache            an empty cache
    start, Stream          importance, positions and times of the tokens beside it
    fill                   a cache after a prompt: its most important tokens
    append                 writes one token, over the least important one if need be
    advance                the stream at the next token
    compact                keeps the most important tokens, in another number of slots

    live_slots, slot_scores, protected_slots, check_protected       what eviction reads

`jprune.attention.decode.step` joins them. Attention reads as many slots as the budget
allows, nothing is gathered while decoding, and XLA compiles one step.

Keys are `(batch * kv_heads, dim, slots)`, values `(batch * kv_heads, slots, dim)`, so
that both products of a token are weighted sums of rows: on a CPU a tenth faster for
caches larger than the processor's. With a separate axis for a batch of one, XLA's
products are several times slower.

`_slots` holds the types and what eviction reads; this module, what writes caches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.attention import _bounds, _choose, _slots
from jprune.attention._slots import Cache as Cache
from jprune.attention._slots import Stream as Stream
from jprune.attention._slots import check_protected as check_protected
from jprune.attention._slots import live_slots as live_slots
from jprune.attention._slots import protected_slots as protected_slots
from jprune.attention._slots import slot_scores as slot_scores


def init(
    batch: int, kv_heads: int, slots: int, dim: int, *, dtype: jax.typing.DTypeLike
) -> Cache:
    """Returns an empty cache.

    Args:
      batch: number of sequences.
      kv_heads: number of KV heads, which query heads may share.
      slots: the layer's budget: the largest number of tokens that it holds.
      dim: dimension of a head.
      dtype: type of keys and values.

    Returns:
      A `Cache` of zeros.

    Raises:
      PruningError: if a size is not positive (a batch may be empty).

    Example:
      >>> import jax.numpy as jnp
      >>> init(2, 4, 16, 8, dtype=jnp.bfloat16).keys.shape
      (8, 8, 16)
    """
    if batch < 0 or min(kv_heads, slots, dim) < 1:
        raise base.PruningError(
            f"Sizes of a cache have to be positive; got batch={batch}, "
            f"kv_heads={kv_heads}, slots={slots}, dim={dim}."
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
      batch: number of sequences.
      length: static, number of tokens in all, prompt included.
      scores: `(batch, prompt)`, importance of the prompt's tokens, summed over layers
        (`token_importance`); None for an empty prompt.
      position: `(batch,)`, position of the next token, where prompts are padded at
        their end, in [0, length]; the width of the prompt if None.

    Returns:
      A `Stream`.

    Raises:
      PruningError: if the prompt is longer than `length`, arrays have another batch, or
        a position is outside of the length. A traced one is a `checkify` debug check.

    Example:
      >>> stream = start(1, 6, scores=jnp.array([[2.0, 0.5, 0.5]]))
      >>> stream.scores.tolist(), stream.position.tolist()
      ([[2.0, 0.5, 0.5, 0.0, 0.0, 0.0]], [3])
    """
    if scores is None:
        scores = jnp.zeros((batch, 0), jnp.float32)
    prompt = scores.shape[1]
    if position is None:
        position = jnp.full(batch, prompt, jnp.int32)
    _bounds.check_start(batch, length, scores, position)
    real = jnp.arange(prompt, dtype=jnp.int32)[None] < position[:, None]
    scores = jnp.where(real, scores.astype(jnp.float32), 0)
    scores = jnp.pad(scores, ((0, 0), (0, length - prompt)))
    return Stream(scores, position.astype(jnp.int32), jnp.full(batch, -1, jnp.int32))


def advance(stream: Stream) -> Stream:
    """Returns the stream for the next token, after the last layer.

    Args:
      stream: stream after the last layer.

    Returns:
      The stream with the same scores, one position on: pruning continues from the last
      layer of this token to the first layer of the next.

    Example:
      >>> advance(start(2, length=6)).position.tolist()
      [1, 1]
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
      stream: stream after the prompt, with its scores and the next token's position.
        Use the same one for all layers, so that a layer keeps a subset of what the
        previous layer keeps.
      slots: the layer's budget.
      positions: `(batch, prompt)`, positions of the given tokens, if some were already
        pruned; negative ones and those from `stream.position` on are padding.
      sinks: number of first tokens of the sequence that are never evicted.
      recent: number of last tokens that are never evicted, including the next one.

    Returns:
      A `Cache`, its slots in the order of the sequence.

    Raises:
      PruningError: if `sinks` and `recent` leave no slot to evict, shapes do not match,
        or the prompt is longer than the stream.

    Example:
      Of a prompt of three tokens, the first and the last stay:

      >>> import jax.numpy as jnp
      >>> x = jnp.array([5.0, 6.0, 7.0]).reshape(1, 1, 3, 1)
      >>> cache = fill(x, x, start(1, 4, scores=jnp.array([[2.0, 0.5, 1.0]])), slots=2)
      >>> cache.positions.tolist(), cache.values.ravel().tolist()
      ([[0, 2]], [5.0, 7.0])
    """
    _bounds.check_prompt(keys, values, positions, stream)
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
    """Keeps the most important tokens of a cache, in another number of slots.

    The only gather of a generation. In the paper's traces the first generated token
    still reads all keys: fill caches with room for it too, and compact them after it.

    Args:
      cache: cache of any number of slots.
      stream: stream with the scores, between two tokens.
      slots: the new budget, smaller or larger.
      sinks: number of first tokens of the sequence that are never evicted.
      recent: number of last tokens that are never evicted, including the next one.

    Returns:
      A `Cache`, its slots in the order of the sequence if those of `cache` were.

    Raises:
      PruningError: if `sinks` and `recent` leave no slot to evict.

    Example:
      >>> import jax.numpy as jnp
      >>> x, scores = jnp.ones((1, 1, 3, 8)), jnp.array([[1.0, 2.0, 3.0]])
      >>> stream = start(1, length=6, scores=scores)
      >>> cache = fill(x, x, stream, slots=4)  # three tokens, and a free slot
      >>> compact(cache, stream, 2).positions.tolist()
      [[1, 2]]
      >>> compact(cache, stream, 2, sinks=1).positions.tolist()
      [[0, 2]]
    """
    check_protected(slots, sinks, recent)
    _bounds.check_batch(cache, stream)
    old, at = cache.positions.shape[1], cache.positions
    live = live_slots(cache) & (at >= 0) & (at < stream.position[:, None])
    ids = jnp.broadcast_to(jnp.arange(old, dtype=jnp.int32), cache.positions.shape)
    if slots < old:
        stays = protected_slots(cache, stream, sinks, recent)
        scores = slot_scores(cache, stream)
        ids = _choose.top_indices(scores, slots, valid=live, protected=stays)
    # Tokens first, then padding.
    order = jnp.argsort(~_slots.pick(live, ids), axis=1, stable=True)
    ids = _slots.pick(ids, order)
    rows = _for_heads(ids, cache.keys.shape[0] // max(ids.shape[0], 1))

    def room(x: jax.Array, axis: int = 1) -> jax.Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, max(slots - old, 0))
        return jnp.pad(x, width)

    return Cache(
        room(_pick_columns(cache.keys, rows), axis=2),
        room(_slots.pick(cache.values, rows)),
        room(_slots.pick(cache.positions, ids)),
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
    """Writes a token into a free slot, or over the least important token.

    The token that the previous layer evicted in this step is overwritten first, so that
    what a layer prunes is pruned in all later layers; otherwise the token of the lowest
    score, the latest among equals. Two rows are written; no other key or value moves.

    A token past the stream's length, or past the slots of a cache that evicts nothing
    as it has `length` of them, is not written and evicts nothing.

    Args:
      cache: the layer's cache.
      stream: stream from the previous layer.
      k: `(batch, kv_heads, dim)`, key of the token at `stream.position`.
      v: `(batch, kv_heads, dim)`, its value.
      sinks: number of first tokens of the sequence that are never evicted.
      recent: number of last tokens that are never evicted, including this one. With
        0, scores that are summed over tokens favour old ones: once the cache is full,
        each token soon evicts the one before it.

    Returns:
      `(cache, stream)`: the cache with the token, the stream with the evicted position.

    Raises:
      PruningError: if `sinks` and `recent` leave no slot to evict, shapes do not match,
        or the token does not fit; of a traced position, that is a `checkify` debug
        check.

    Example:
      >>> import jax.numpy as jnp
      >>> x, stream = jnp.ones((1, 1, 2, 1)), start(1, 4, scores=jnp.array([[0.5, 2]]))
      >>> cache, stream = append(fill(x, x, stream, 2), stream, x[:, :, 0], x[:, :, 0])
      >>> cache.positions.tolist(), stream.evicted.tolist()
      ([[2, 1]], [0])
    """
    slots = cache.positions.shape[1]
    check_protected(slots, sinks, recent)
    _bounds.check_batch(cache, stream)
    _bounds.check_token(cache, k, v)
    _bounds.check_fits(cache, stream)
    fits = _bounds.fits(cache, stream)
    slot, evicted = cache.used, jnp.full_like(stream.evicted, -1)
    if slots < stream.scores.shape[1]:  # otherwise a slot is always free
        scores = slot_scores(cache, stream)
        stays = protected_slots(cache, stream, sinks, recent)
        scores = jnp.where(stays, jnp.inf, scores)
        gone = cache.positions == stream.evicted[:, None]
        worst = jax.vmap(_least)(jnp.where(gone, -jnp.inf, scores), cache.positions)
        full = fits & (cache.used == slots)
        slot = jnp.where(full, worst, cache.used)
        evicted = _slots.pick(cache.positions, worst[:, None])[:, 0]
        evicted = jnp.where(full, evicted, -1)
    slot = jnp.where(fits, slot, slots)  # there is none: writes are dropped
    rows = _for_heads(slot, k.shape[1])
    cache = Cache(
        _bounds.write_column(cache.keys, k.reshape(-1, k.shape[-1]), rows),
        _bounds.write(cache.values, v.reshape(-1, v.shape[-1]), rows),
        _bounds.write(cache.positions, stream.position, slot),
        jnp.minimum(cache.used + fits.astype(jnp.int32), slots),
    )
    return cache, stream._replace(evicted=evicted)


def _least(scores: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the slot of the lowest score, of the latest token among equals."""

    def lesser(x: tuple[Any, ...], y: tuple[Any, ...]) -> tuple[Any, ...]:
        first = (x[0] < y[0]) | ((x[0] == y[0]) & (x[1] > y[1]))
        return tuple(jnp.where(first, a, b) for a, b in zip(x, y, strict=True))

    # One reduction, since a CPU spends as long on starting each as on its entries.
    slots = jnp.arange(scores.size, dtype=jnp.int32)
    none = (jnp.array(jnp.inf, scores.dtype), jnp.int32(-1), jnp.int32(0))
    held = (lax.stop_gradient(scores), positions, slots)
    return lax.reduce(held, none, lesser, (0,))[2]


def _for_heads(x: jax.Array, heads: int) -> jax.Array:
    """Repeats entries of sequences for each of their heads: `(batch * heads, ...)`."""
    # Not `jnp.repeat`, which gathers a sharded batch on every device.
    wide = jnp.broadcast_to(x[:, None], (x.shape[0], heads, *x.shape[1:]))
    return wide.reshape(-1, *x.shape[1:])


@jax.vmap
def _pick_columns(x: jax.Array, ids: jax.Array) -> jax.Array:
    return x.at[:, ids].get(mode="promise_in_bounds")
