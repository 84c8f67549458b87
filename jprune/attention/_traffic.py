"""What a machine that fetches on demand reads from memory, counted row by row.

XLA reads every array whole. SpAtten's hardware reads the rows of Q, K and V that are
needed, in the planes that are needed; these counts are exact and feed the cost model.
Rows are counted on the device, in int32; bits are Python integers, which do not
overflow.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.attention._attend import heads_per_kv
from jprune.attention._heads import sum_per_kv_head
from jprune.attention._quantize import Bits


class Fetched(NamedTuple):
    """Rows of `dim` numbers that are read, (..., kv heads) integers, or their bits.

    Attributes:
      queries: of Q.
      keys: of the upper plane of K.
      lower: of the lower plane of K.
      values: of V.
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
    """Returns how many rows of Q, K and V are read.

    The query heads of a group use a row together. In the summarization stage K and V
    of a head stay on the chip for all queries (`shared`): a row is read once if any
    query needs it. In the generation stage each query reads anew.

    Args:
      visible: (..., heads, queries, keys) booleans, True where a row of probabilities
        sees a key; False for padding of either kind and for pruned heads.
      kv_heads: static, how many key heads; they divide heads.
      refetched: (..., heads, queries) booleans, rows that fetch the lower plane. None
        do by default.
      kept: (..., heads, queries, keys) booleans, whose values are fetched. All that
        are visible by default.
      shared: static; whether a row is read once for all queries.

    Returns:
      `Fetched`.

    Raises:
      PruningError: if kv heads do not divide heads.

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
        needed = needed.reshape(shape).any(axis=-3)  # of a group
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
    """Returns how many bits those rows are, in all.

    Args:
      rows: as of `fetched`, on the host or the device; is waited for.
      dim: numbers in a row.
      bits: of each; a `value` of 0 bits is counted as 32.

    Returns:
      `Fetched` of Python integers; their sum is the traffic.

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
    """Returns the share of rows of probabilities that fetched the lower bits.

    Args:
      refetched: (..., heads, queries) booleans.
      visible: (..., heads, queries, keys) booleans; a row that sees nothing, of
        padding, say, is not counted.

    Returns:
      A float32 scalar; 0 if there are no rows.
    """
    real = visible.any(axis=-1)
    asked = jnp.sum(refetched & real, dtype=jnp.float32)
    return asked / jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1)
