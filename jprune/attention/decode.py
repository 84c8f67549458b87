"""A token of decoding: attention over a pruned cache, and what it says of importance.

A layer is `cache.append`, `attend`, `credit`; `step` is the three. Between tokens comes
`cache.advance`. Any model that has projected its queries, keys and values can use it:

    for each layer:  out, caches[l], stream = step(q, k, v, caches[l], stream)
    stream = advance(stream)

under `jit` with the caches donated, or in `lax.scan` with both carried.
"""

import math

import jax
import jax.numpy as jnp

from jprune._core import base
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
    """Attends from one token to those of a layer that are left, itself among them.

    The importance of a token is shared by all layers,

        s[j] += sum_heads p[head, j],

    and accumulates over layers and generated tokens: the scores that this layer leaves
    decide what the next one prunes, those of the last layer what the first one prunes
    for the next token. A layer prunes at most one token in a step, for good. Budgets
    that do not grow with depth keep the paper's cascade: what a layer has, all before
    it have.

    Args:
      q: `(batch, heads, dim)`; head h reads the keys of head h // (heads / kv_heads).
      k: `(batch, kv_heads, dim)`; q and k with rotary positions already applied.
      v: `(batch, kv_heads, dim)`.
      cache: the layer's.
      stream: from the layer before.
      sinks: the first tokens of the sequence that stay.
      recent: the last tokens that stay, this one among them.

    Returns:
      The output `(batch, heads, dim)`, and the cache and stream after this layer.

    Raises:
      PruningError: Shapes that do not belong together, or a budget that the protected
        tokens fill.

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
      and Head Pruning, 2021, arXiv:2012.09852, Algorithm 2. There a layer chooses anew
      among all tokens that the layer before has kept; here, as its keys are gone, no
      token comes back.
    """
    _check(q, k, v, cache)
    cache, stream = append(cache, stream, k, v, sinks=sinks, recent=recent)
    out, probs = attend(q, cache)
    return out, cache, credit(stream, cache, probs)


def attend(
    q: jax.Array, cache: Cache, *, scale: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Attends from one query of each head to the tokens of a cache.

    Args:
      q: `(batch, heads, dim)`.
      cache: with the query's own token.
      scale: of the logits; 1 / sqrt(dim) if None.

    Returns:
      The output `(batch, heads, dim)` of q's type, and the probabilities
      `(batch, heads, slots)` in float32, zero for empty slots.
    """
    logits = query(q, cache, scale=scale)
    probs = softmax(logits, live_slots(cache)[:, None])
    return mix(probs, cache).astype(q.dtype), probs


def query(q: jax.Array, cache: Cache, *, scale: float | None = None) -> jax.Array:
    """Returns the logits of a query of each head, for all slots.

    Args:
      q: `(batch, heads, dim)`.
      cache: any.
      scale: of the logits; 1 / sqrt(dim) if None.

    Returns:
      `(batch, heads, slots)` in float32; those of empty slots mean nothing.
    """
    batch, heads, dim = q.shape
    rows, _, slots = cache.keys.shape
    group = q.reshape(rows, batch * heads // max(rows, 1), dim)
    logits = jnp.einsum(
        "ngd,nds->ngs", group, cache.keys, preferred_element_type=jnp.float32
    )
    scale = 1 / math.sqrt(dim) if scale is None else scale
    return scale * logits.reshape(batch, heads, slots)


def mix(probs: jax.Array, cache: Cache) -> jax.Array:
    """Returns the values of a cache, weighted.

    Args:
      probs: `(batch, heads, slots)`; a head that does not fetch a value has 0 there.
      cache: any.

    Returns:
      `(batch, heads, dim)` in float32.
    """
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
    """Adds what a layer's heads have looked at to the tokens' importance.

    Args:
      stream: of the layer.
      cache: of the layer.
      probs: `(batch, heads, slots)`, zero for empty slots.

    Returns:
      The stream with s[j] += sum_heads p[head, j].
    """
    seen = probs.astype(jnp.float32).sum(1)
    return stream._replace(scores=_add(stream.scores, cache.positions, seen))


@jax.vmap
def _add(scores: jax.Array, positions: jax.Array, seen: jax.Array) -> jax.Array:
    return scores.at[positions].add(seen, mode="promise_in_bounds")


def _check(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache) -> None:
    rows, dim, _ = cache.keys.shape
    batch = cache.positions.shape[0]
    heads = rows // max(batch, 1) or k.shape[1]
    if k.shape != (batch, heads, dim) or v.shape[:2] != k.shape[:2]:
        raise base.PruningError(
            f"keys {k.shape} and values {v.shape} for a cache of {batch} sequences, "
            f"{heads} heads, {dim} channels"
        )
    if q.shape[0] != batch or q.shape[2] != dim or q.shape[1] % heads:
        raise base.PruningError(
            f"queries {q.shape} for keys {k.shape}: heads must share theirs evenly"
        )
