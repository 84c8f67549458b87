"""One decoding step over a pruned KV cache, with the importance update.

A layer is `cache.append`, `attend`, `credit`; `step` is all three. After the last layer
of a token comes `cache.advance`. Any model can use it that has projected its queries,
keys and values:

    for each layer:  out, caches[l], stream = step(q, k, v, caches[l], stream)
    stream = advance(stream)

under `jit` with the caches donated, or in `lax.scan` with both carried.
"""

import math

import jax
import jax.numpy as jnp

from jprune._core import base
from jprune.attention import _bounds
from jprune.attention._attend import softmax
from jprune.attention.cache import Cache, Stream, append, live_slots


def step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Cache,
    stream: Stream,
    *,
    sinks: int = 0,
    recent: int = 0,
) -> tuple[jax.Array, Cache, Stream]:
    """Attends from the new token to the tokens left in a layer's cache, and itself.

    All layers share the importance of a token,

        s[j] += sum_heads p[head, j],

    which accumulates over layers and generated tokens: the scores after this layer
    decide what the next layer evicts, those after the last layer what the first layer
    evicts for the next token. A layer evicts at most one token per step, for good. With
    budgets that do not grow with depth this is the paper's cascade: every earlier layer
    has all tokens that a layer has.

    Args:
      q: `(batch, heads, dim)`; head h reads the keys of head h // (heads / kv_heads).
      k: `(batch, kv_heads, dim)`; q and k with rotary positions already applied.
      v: `(batch, kv_heads, dim)`.
      cache: the layer's cache.
      stream: stream from the previous layer.
      sinks: number of first tokens of the sequence that are never evicted.
      recent: number of last tokens that are never evicted, including this one; see
        `jprune.attention.cache.append`.

    Returns:
      `(out, cache, stream)`: the output `(batch, heads, dim)`, and the cache and stream
      after this layer. Of a token that does not fit (`cache.append`), such as one past
      the stream's length, the output is NaN, and cache and scores do not change.

    Raises:
      PruningError: if shapes do not match, the protected tokens fill all slots, or the
        token does not fit; of a traced position, that is a `checkify` debug check.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache as caches
      >>> cache = caches.init(1, 1, 2, 4, dtype=jnp.float32)
      >>> stream = caches.start(1, 8)
      >>> for value in (1.0, 2.0, 3.0):  # the third finds both slots full
      ...     x = jnp.full((1, 1, 4), value)
      ...     out, cache, stream = step(x, x, x, cache, stream)
      ...     stream = caches.advance(stream)
      >>> cache.positions.tolist(), out.shape
      ([[0, 2]], (1, 1, 4))

    References:
      Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade Token
      and Head Pruning, 2021, arXiv:2012.09852, Algorithm 2. There a layer selects anew
      among all tokens that the previous layer kept; here, as its keys are gone, no
      evicted token comes back.
    """
    _bounds.check_token(cache, k, v)
    _check_heads(q, cache)
    fits = _bounds.fits(cache, stream)
    cache, stream = append(cache, stream, k, v, sinks=sinks, recent=recent)
    out, probs = attend(q, cache)
    stream = _credit(stream, cache, probs, fits)
    return jnp.where(fits[:, None, None], out, jnp.nan), cache, stream


def attend(
    q: jax.Array, cache: Cache, *, scale: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Attends from one query of each head to the tokens of a cache.

    Args:
      q: `(batch, heads, dim)`.
      cache: cache that includes the query's own token.
      scale: factor of the logits; 1 / sqrt(dim) if None.

    Returns:
      `(out, probs)`: the output `(batch, heads, dim)` in the type of q, and the
      probabilities `(batch, heads, slots)` in float32, zero for empty slots.

    Raises:
      PruningError: if shapes do not match, or more slots are used than there are; of a
        traced number, that is a `checkify` debug check, and all slots are read.

    Example:
      Two slots hold tokens with equal keys, the third is empty:

      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache as caches
      >>> cache = caches.init(1, 1, slots=3, dim=2, dtype=jnp.float32)
      >>> out, probs = attend(jnp.ones((1, 1, 2)), cache._replace(used=jnp.array([2])))
      >>> out.shape, probs.tolist()
      ((1, 1, 2), [[[0.5, 0.5, 0.0]]])
    """
    _bounds.check_used(cache)
    logits = query(q, cache, scale=scale)
    probs = softmax(logits, live_slots(cache)[:, None])
    return mix(probs, cache).astype(q.dtype), probs


def query(q: jax.Array, cache: Cache, *, scale: float | None = None) -> jax.Array:
    """Returns the logits of one query of each head for all slots.

    Args:
      q: `(batch, heads, dim)`.
      cache: any cache.
      scale: factor of the logits; 1 / sqrt(dim) if None.

    Returns:
      `(batch, heads, slots)` in float32; undefined for empty slots.

    Raises:
      PruningError: if the queries do not match the cache.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache as caches
      >>> cache = caches.init(1, 1, slots=2, dim=1, dtype=jnp.float32)
      >>> cache = cache._replace(keys=jnp.array([[[1.0, 2.0]]]))
      >>> query(jnp.array([[[3.0]]]), cache).tolist()
      [[[3.0, 6.0]]]
    """
    _check_heads(q, cache)
    batch, heads, dim = q.shape
    rows, _, slots = cache.keys.shape
    group = q.reshape(rows, batch * heads // max(rows, 1), dim)
    logits = jnp.einsum(
        "ngd,nds->ngs", group, cache.keys, preferred_element_type=jnp.float32
    )
    scale = 1 / math.sqrt(dim) if scale is None else scale
    return scale * logits.reshape(batch, heads, slots)


def mix(probs: jax.Array, cache: Cache) -> jax.Array:
    """Returns the weighted sum of a cache's values.

    Args:
      probs: `(batch, heads, slots)`, 0 where a head does not fetch a value.
      cache: any cache.

    Returns:
      `(batch, heads, dim)` in float32.

    Raises:
      PruningError: if the probabilities do not match the cache.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache as caches
      >>> cache = caches.init(1, 1, slots=2, dim=1, dtype=jnp.float32)
      >>> cache = cache._replace(values=jnp.array([[[8.0], [4.0]]]))
      >>> mix(jnp.array([[[0.75, 0.25]]]), cache).tolist()
      [[[7.0]]]
    """
    _check_probs(probs, cache)
    batch, heads, slots = probs.shape
    rows, _, dim = cache.values.shape
    group = probs.reshape(rows, batch * heads // max(rows, 1), slots)
    out = jnp.einsum(
        "ngs,nsd->ngd",
        group.astype(cache.values.dtype),
        cache.values,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(batch, heads, dim)


def credit(stream: Stream, cache: Cache, probs: jax.Array) -> Stream:
    """Adds a layer's attention to the accumulated importance of tokens.

        s[j] += sum_heads p[head, j]

    Nothing is added for a token past the stream's length.

    Args:
      stream: the layer's stream.
      cache: the layer's cache.
      probs: `(batch, heads, slots)`, zero for empty slots.

    Returns:
      The stream with the new scores, `(batch, length)` float32.

    Raises:
      PruningError: if the probabilities or the stream do not match the cache.

    Example:
      Two heads look at the tokens of positions 2 and 0:

      >>> import jax.numpy as jnp
      >>> from jprune.attention import cache as caches
      >>> cache = caches.init(1, 1, slots=2, dim=1, dtype=jnp.float32)
      >>> cache = cache._replace(positions=jnp.array([[2, 0]]))
      >>> probs = jnp.array([[[0.75, 0.25], [0.5, 0.5]]])
      >>> credit(caches.start(1, 4), cache, probs).scores.tolist()
      [[0.75, 0.0, 1.25, 0.0]]
    """
    _check_probs(probs, cache)
    _bounds.check_batch(cache, stream)
    inside = _bounds.within(stream.position, stream.scores.shape[1])
    return _credit(stream, cache, probs, inside)


def _credit(
    stream: Stream, cache: Cache, probs: jax.Array, counts: jax.Array
) -> Stream:
    """Credits the sequences whose token counts: `(batch,)` booleans."""
    # The places are masked, not the sums, since XLA has to compute the places anyway.
    length = stream.scores.shape[1]
    places = jnp.where(counts[:, None], cache.positions, length)
    seen = probs.astype(jnp.float32).sum(1)
    return stream._replace(scores=_add(stream.scores, places, seen))


@jax.vmap
def _add(scores: jax.Array, places: jax.Array, seen: jax.Array) -> jax.Array:
    return scores.at[places].add(seen, mode="drop")


def _check_heads(q: jax.Array, cache: Cache) -> None:
    batch, heads, dim = _bounds.sizes(cache, 1)
    if q.ndim != 3 or q.shape[::2] != (batch, dim) or q.shape[1] % max(heads, 1):
        raise base.PruningError(
            f"Queries {q.shape} do not match a cache of {batch} sequences, {heads} KV "
            f"heads, dim {dim}: batch and dim have to be equal, and heads a multiple "
            "of KV heads."
        )


def _check_probs(probs: jax.Array, cache: Cache) -> None:
    batch, slots = cache.positions.shape
    heads = _bounds.sizes(cache, 1)[1]
    if probs.ndim != 3 or probs.shape[::2] != (batch, slots) or probs.shape[1] % heads:
        raise base.PruningError(
            f"Probabilities {probs.shape} do not match a cache of {batch} sequences, "
            f"{heads} KV heads and {slots} slots."
        )
