"""Pruned attention in the shape in which Flax calls it.

Flax's attention modules, of Linen and of NNX, take an `attention_fn(query, key, value,
mask=..., dropout_rate=..., ...)` in the layout (..., tokens, heads, dim). The one that
`attention_fn` makes prunes values and quantizes, and reports what it saw, from which a
block of the user's own carries importance on:

    seen = []
    y = nn.MultiHeadDotProductAttention(8, attention_fn=attention_fn(
        lambda *saw: seen.append(saw)))(x, mask=valid[:, None, None, :])
    state = after_attention(state._replace(x=x + y), *seen[0], tokens=64)

No Flax is imported here: the signature is all that there is to adapt to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune.attention import cascade
from jprune.attention._attend import attend, weigh
from jprune.attention._quantize import Bits, fake_quantize, progressive_attend
from jprune.attention._values import count_values, keep_values

Report = Callable[[jax.Array, jax.Array], Any]
"""`(outputs, probs)`: (..., heads, queries, dim) and (..., heads, queries, keys)."""


def attention_fn(
    report: Report | None = None,
    *,
    values: Any = None,
    bits: Bits | None = None,
    threshold: Any = 0.1,
) -> Callable[..., jax.Array]:
    """Returns a function for the `attention_fn` of Flax's attention modules.

    Args:
      report: called while the function is traced; what it does with its arguments, to
        append them to a list or to sow them, is the caller's business. Under `nn.remat`
        or `nn.scan` a list would hold tracers that have ended: sow there.
      values: the share of the visible keys whose values each row fetches, in (0, 1];
        None for all. May be traced.
      bits: of progressive quantization; None for none.
      threshold: as in `progressive_attend`.

    Returns:
      `(query, key, value, **options) -> outputs` in the layout of Flax. Of the options
      it knows mask, is_causal, dropout (dropout_rng, dropout_rate, deterministic,
      broadcast_dropout) and dtype; precision and module are ignored.

    Raises:
      ValueError: if dropout is asked for without a key.

    Example:
      >>> import jax.numpy as jnp
      >>> q = jnp.ones((2, 5, 4, 8))  # batch, tokens, heads, dim
      >>> attention_fn(values=0.5)(q, q, q).shape
      (2, 5, 4, 8)
    """

    def apply(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        *,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = False,
        is_causal: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
    ) -> jax.Array:
        del precision, module
        q, k, v = (_heads_first(x, dtype) for x in (query, key, value))
        mask = _whole_mask(mask, is_causal, q, k)
        out, probs, v = _attended(q, k, v, mask, bits, threshold)
        used = probs
        if values is not None:
            seen = jnp.broadcast_to(mask, probs.shape)
            kept = keep_values(probs, count_values(values, seen))
            used = jnp.where(kept, probs, 0)
        if not deterministic and dropout_rate > 0:
            used = _dropped(used, dropout_rng, dropout_rate, broadcast_dropout)
        if used is not probs:
            out = weigh(used, v)
        if report is not None:
            report(out, probs)
        return jnp.swapaxes(out, -3, -2)

    return apply


def after_attention(
    state: cascade.Cascade,
    outputs: jax.Array,
    probs: jax.Array,
    tokens: int | None = None,
) -> cascade.Cascade:
    """Returns the state with importance credited, and the least important pruned.

    For blocks whose attention module has already projected its outputs: the residual
    sum is in `state.x`, and what follows sees `tokens` tokens. The result is that of
    `cascade.cascade_layer`, which also spares pruned tokens the output projection.

    Args:
      state: whose `x` already has the attention's output added.
      outputs: as reported.
      probs: as reported.
      tokens: static, how many stay; all by default.

    Returns:
      A `Cascade`.

    Raises:
      PruningError: if there are fewer tokens than that.
    """
    state = cascade.credit(state, outputs, probs)
    return cascade.prune_tokens(state, tokens, outputs)[0]


def _attended(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bits: Any, threshold: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if bits is None:
        return *attend(q, k, v, mask=mask), v
    # What no query sees is padding.
    rows = jnp.broadcast_to(mask, (*q.shape[:-1], k.shape[-2]))
    keys = rows.any(axis=(-3, -2))
    found = progressive_attend(
        q, k, v, bits=bits, threshold=threshold, mask=mask, keys=keys
    )
    v = fake_quantize(v, bits.value, where=keys[..., None, :, None])
    return found.out, found.probs, v


def _whole_mask(
    mask: jax.Array | None, causal: bool, q: jax.Array, k: jax.Array
) -> jax.Array:
    shape = (*(1,) * (q.ndim - 2), q.shape[-2], k.shape[-2])
    seen = jnp.ones(shape, bool) if mask is None else mask.astype(bool)
    if causal:
        seen = seen & jnp.tri(*shape[-2:], dtype=bool).reshape(shape)
    return seen


def _dropped(
    probs: jax.Array, key: jax.Array | None, rate: float, broadcast: bool
) -> jax.Array:
    if key is None:
        raise ValueError(f"Dropout at a rate of {rate} needs dropout_rng.")
    shape = probs.shape
    if broadcast:  # the same for all of a batch and all heads, as in Flax
        shape = (*(1,) * (probs.ndim - 2), *probs.shape[-2:])
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, probs / (1 - rate), 0)


def _heads_first(x: jax.Array, dtype: Any) -> jax.Array:
    x = x if dtype is None else x.astype(dtype)
    return jnp.swapaxes(x, -3, -2)
