"""Pruned attention for Flax's attention modules.

Flax's attention modules, in Linen and NNX, take an `attention_fn(query, key, value,
mask=..., dropout_rate=..., ...)` in the layout (..., tokens, heads, dim). The function
that `attention_fn` makes prunes values and quantizes, and reports outputs and
probabilities, from which the caller's block accumulates importance:

    seen = []
    y = nn.MultiHeadDotProductAttention(8, attention_fn=attention_fn(
        lambda *saw: seen.append(saw)))(x, mask=valid[:, None, None, :])
    state = after_attention(state._replace(x=x + y), *seen[0], tokens=64)

Flax is not imported: only the signature is adapted to.
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
"""`(outputs, probs) -> Any`, with (..., heads, queries, dim) and
(..., heads, queries, keys)."""


def attention_fn(
    report: Report | None = None,
    *,
    values: Any = None,
    bits: Bits | None = None,
    threshold: Any = 0.1,
) -> Callable[..., jax.Array]:
    """Returns an `attention_fn` for Flax's attention modules.

    Args:
      report: `(outputs, probs)` callback, called while the function is traced, to
        append to a list or to sow. Under `nn.remat` or `nn.scan` a list would hold
        tracers whose trace has ended: sow there.
      values: fraction of the visible keys whose values each row fetches, in (0, 1];
        None for all. May be traced.
      bits: bit widths of progressive quantization; None for none.
      threshold: as in `progressive_attend`.

    Returns:
      `(query, key, value, **options) -> outputs` in Flax's layout. Of the options it
      supports mask, is_causal, dropout (dropout_rng, dropout_rate, deterministic,
      broadcast_dropout) and dtype; precision and module are ignored.

    Raises:
      ValueError: by that function, if dropout has no key.

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
    """Accumulates importance after an attention module, and prunes tokens.

    For blocks whose attention module has already projected its outputs, with the
    residual sum in `state.x`; later layers see `tokens` tokens. The result equals that
    of `cascade.cascade_layer`, which also saves the output projection of pruned tokens.

    Args:
      state: state whose `x` already includes the attention's output.
      outputs: (..., heads, tokens, dim), as reported.
      probs: (..., heads, tokens, tokens), as reported.
      tokens: static, tokens that stay; all by default.

    Returns:
      A `Cascade`.

    Raises:
      PruningError: if there are fewer tokens than `tokens`, or the query heads are not
        a multiple of the KV heads that are left.

    Example:
      The second token receives the least attention:

      >>> import jax.numpy as jnp
      >>> from jprune.attention import cascade
      >>> state = cascade.start(jnp.array([[1.0], [2.0], [3.0]]), kv_heads=1)
      >>> probs = jnp.tile(jnp.array([0.5, 0.1, 0.4]), (1, 3, 1))
      >>> state = after_attention(state, jnp.ones((1, 3, 1)), probs, tokens=2)
      >>> state.positions.tolist(), state.x.tolist()
      ([0, 2], [[1.0], [3.0]])
    """
    state = cascade.credit(state, outputs, probs)
    return cascade.prune_tokens(state, tokens, outputs)[0]


def _attended(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bits: Any, threshold: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if bits is None:
        return *attend(q, k, v, mask=mask), v
    # A key that no query may see is padding.
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
        raise ValueError(f"Dropout at a rate of {rate} needs dropout_rng, a key.")
    shape = probs.shape
    if broadcast:  # one mask for all of the batch and all heads, as in Flax
        shape = (*(1,) * (probs.ndim - 2), *probs.shape[-2:])
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, probs / (1 - rate), 0)


def _heads_first(x: jax.Array, dtype: Any) -> jax.Array:
    x = x if dtype is None else x.astype(dtype)
    return jnp.swapaxes(x, -3, -2)
