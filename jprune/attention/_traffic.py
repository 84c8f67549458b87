"""Memory traffic of a machine that fetches rows and bit planes on demand.

XLA reads every array whole. SpAtten's hardware reads only the rows of Q, K and V that
are needed, in the bit planes that are needed. The counts here are exact and feed the
cost model. Rows are counted on the device, in int32; bits are Python integers, which
cannot overflow.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.attention._attend import heads_per_kv
from jprune.attention._heads import sum_per_kv_head
from jprune.attention._quantize import Bits


class Fetched(NamedTuple):
    """Rows of `dim` numbers read, (..., kv heads) integers; or their bits.

    Attributes:
      queries: rows of Q.
      keys: rows of the upper bit plane of K.
      lower: rows of the lower bit plane of K.
      values: rows of V.
    """

    queries: Any
    keys: Any
    lower: Any
    values: Any


def fetched(
    visible: jax.Array,
    kv_heads: int,
    *,
    refetched: jax.Array | None = None,
    kept: jax.Array | None = None,
    shared: bool = True,
) -> Fetched:
    """Counts the rows of Q, K and V that are read.

    Query heads that share a KV head read its rows together. While a prompt or an
    encoder's input is processed (the summarization stage), K and V of a head stay on
    the chip for all queries (`shared`): a row is read once if any query needs it. While
    text is generated, each query reads anew.

    Args:
      visible: (..., heads, queries, keys) booleans, True where a query sees a key;
        False for padded queries and keys and for pruned heads.
      kv_heads: static, number of KV heads, a divisor of heads.
      refetched: (..., heads, queries) booleans, True for rows of probabilities that
        fetch the lower bit plane. None do by default.
      kept: (..., heads, queries, keys) booleans, True for values that are fetched. All
        visible ones are by default.
      shared: static; whether a row is read once for all queries.

    Returns:
      `Fetched`, in rows.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> visible = jnp.tri(3, dtype=bool)[None]  # one head, three queries
      >>> kept = jnp.eye(3, dtype=bool)[None]
      >>> [int(n[0]) for n in fetched(visible, 1, kept=kept)]
      [3, 3, 0, 3]
      >>> [int(n[0]) for n in fetched(visible, 1, kept=kept, shared=False)]
      [3, 6, 0, 3]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, sections IV.A and IV.C.
    """
    heads = visible.shape[-3]
    each = heads_per_kv(heads, kv_heads)
    kept = visible if kept is None else visible & kept
    if refetched is None:
        refetched = jnp.zeros(visible.shape[:-1], bool)

    def rows(needed: jax.Array) -> jax.Array:
        shape = (*needed.shape[:-3], kv_heads, each, *needed.shape[-2:])
        needed = needed.reshape(shape).any(axis=-3)  # of the heads that share a KV head
        needed = needed.any(axis=-2, keepdims=True) if shared else needed
        return jnp.sum(needed, axis=(-2, -1), dtype=jnp.int32)

    asks = jnp.sum(visible.any(axis=-1), axis=-1, dtype=jnp.int32)
    return Fetched(
        queries=sum_per_kv_head(asks, kv_heads),
        keys=rows(visible),
        lower=rows(visible & refetched[..., None]),
        values=rows(kept),
    )


def fetched_bits(rows: Fetched, dim: int, bits: Bits) -> Fetched:
    """Returns the total number of bits in the fetched rows.

    Args:
      rows: result of `fetched`, on the host or the device; blocks until it is computed.
      dim: numbers in a row.
      bits: bit widths; a `value` of 0 bits counts as 32.

    Returns:
      `Fetched` of Python integers, in bits; their sum is the traffic.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = fetched(jnp.ones((1, 4, 4), bool), 1)
      >>> fetched_bits(rows, 64, Bits(query=12, msb=8, lsb=4, value=8))
      Fetched(queries=3072, keys=2048, lower=0, values=2048)
    """
    widths = (bits.query, bits.msb, bits.lsb, bits.value or 32)
    totals = (int(np.asarray(n, np.int64).sum()) for n in rows)
    return Fetched(*(n * dim * width for n, width in zip(totals, widths, strict=True)))


def refetch_fraction(refetched: jax.Array, visible: jax.Array) -> jax.Array:
    """Returns the fraction of rows of probabilities that fetched the lower bits.

    Args:
      refetched: (..., heads, queries) booleans.
      visible: (..., heads, queries, keys) booleans; rows that see nothing, such as
        padding, do not count.

    Returns:
      A float32 scalar in [0, 1]; 0 if there are no rows.

    Example:
      Of three rows one is padding; one of the other two fetched the lower bits:

      >>> import jax.numpy as jnp
      >>> visible = jnp.array([[[True, True], [True, True], [False, False]]])
      >>> float(refetch_fraction(jnp.array([[False, True, True]]), visible))
      0.5
    """
    real = visible.any(axis=-1)
    asked = jnp.sum(refetched & real, dtype=jnp.float32)
    return asked / jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1)
