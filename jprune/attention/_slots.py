"""Slots of a KV cache, and what eviction reads of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jprune._core import base


class Cache(NamedTuple):
    """Keys and values of the tokens that a decoder layer still attends to.

    Attributes:
      keys: `(batch * kv_heads, dim, slots)`; with rotary positions already applied.
      values: `(batch * kv_heads, slots, dim)`.
      positions: `(batch, slots)` int32, position in the sequence of each slot's token.
      used: `(batch,)` int32, number of slots that hold a token: the first ones.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    used: jax.Array


class Stream(NamedTuple):
    """State passed from layer to layer, and from the last layer to the next token.

    Attributes:
      scores: `(batch, length)` float32, accumulated importance of each position, summed
        over heads, layers and queries. Positions from `length` on cannot be decoded.
      position: `(batch,)` int32, position of the token being decoded.
      evicted: `(batch,)` int32, position that the previous layer just evicted, or -1.
    """

    scores: jax.Array
    position: jax.Array
    evicted: jax.Array


def live_slots(cache: Cache) -> jax.Array:
    """Returns which slots hold a token.

    Args:
      cache: any cache.

    Returns:
      `(batch, slots)` booleans.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache
      >>> empty = cache.init(2, kv_heads=1, slots=3, dim=8, dtype=jnp.float32)
      >>> live_slots(empty._replace(used=jnp.array([1, 3]))).tolist()
      [[True, False, False], [True, True, True]]
    """
    slots = jnp.arange(cache.positions.shape[1], dtype=jnp.int32)
    return slots[None] < cache.used[:, None]


def slot_scores(cache: Cache, stream: Stream) -> jax.Array:
    """Returns the accumulated importance of each slot's token.

    Args:
      cache: any cache.
      stream: stream of its sequences.

    Returns:
      `(batch, slots)` float32; undefined for empty slots.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache
      >>> x = jnp.ones((1, 1, 3, 8))
      >>> stream = cache.start(1, length=4, scores=jnp.array([[2.0, 0.5, 1.0]]))
      >>> slot_scores(cache.fill(x, x, stream, slots=2), stream).tolist()
      [[2.0, 1.0]]
    """
    return pick(stream.scores, cache.positions)


def protected_slots(cache: Cache, stream: Stream, sinks: int, recent: int) -> jax.Array:
    """Returns which slots hold a token that must not be evicted.

    Args:
      cache: any cache.
      stream: stream of its sequences, at the position being decoded.
      sinks: number of first tokens of the sequence that are never evicted.
      recent: number of last tokens that are never evicted, including the one decoded.

    Returns:
      `(batch, slots)` booleans; what they say of an empty slot has no meaning.

    Example:
      Token 3 is decoded next; the last two tokens are tokens 2 and 3:

      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache
      >>> x = jnp.ones((1, 1, 3, 8))
      >>> stream = cache.start(1, length=4, scores=jnp.ones((1, 3)))
      >>> held = cache.fill(x, x, stream, slots=3)
      >>> protected_slots(held, stream, sinks=1, recent=2).tolist()
      [[True, False, True]]
    """
    late = cache.positions > (stream.position - recent)[:, None]
    return (cache.positions < sinks) | late


def check_protected(slots: int, sinks: int, recent: int) -> None:
    """Raises if protected tokens fill all slots.

    Args:
      slots: number of slots.
      sinks: number of first tokens that are never evicted.
      recent: number of last tokens that are never evicted, including the one decoded.

    Raises:
      PruningError: if `sinks + max(recent, 1)` is more than the slots, or a number is
        negative.

    Example:
      >>> check_protected(slots=4, sinks=1, recent=3)
      >>> check_protected(slots=4, sinks=2, recent=3)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
          ...
      jprune._core.base.PruningError: 4 slots do not hold 2 sinks and the last 3 ...
    """
    if min(sinks, recent) < 0 or slots < 1 or sinks + max(recent, 1) > slots:
        raise base.PruningError(
            f"{slots} slots do not hold {sinks} sinks and the last {recent} tokens: "
            "give more slots, or protect fewer tokens."
        )


@jax.vmap
def pick(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns the entries of each sequence at the given places.

    Args:
      x: `(batch, n, ...)`.
      ids: `(batch, m)` int32, places in [0, n).

    Returns:
      `(batch, m, ...)`.
    """
    return x.at[ids].get(mode="promise_in_bounds")
