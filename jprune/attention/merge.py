"""Token merging (ToMe): similar tokens are replaced by their mean, weighted by size.

Every second token of a layer may merge into the most similar of the others; the `count`
most similar pairs do. A token that represents s others counts s times in attention,

    P_ij = s_j exp(q_i . k_j) / sum_l s_l exp(q_i . k_l),

which is `soft.gated_attend(q, k, v, sizes)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.attention import _choose


class Matching(NamedTuple):
    """Assignment of merged tokens to their targets.

    Attributes:
      kept: (..., n - count) int32, indices of the tokens that are left, ascending.
      source: (..., n) int32, for each token the index into `kept` of the token that
        represents it.
    """

    kept: jax.Array
    source: jax.Array


def match(
    metric: jax.Array,
    count: int,
    *,
    valid: jax.Array | None = None,
    protected: jax.Array | None = None,
) -> Matching:
    """Matches tokens for merging: bipartite, by cosine similarity of a metric.

    Tokens at even indices (A) may merge into tokens at odd indices (B). Each of A has
    one candidate, the most similar of B; the `count` most similar pairs merge. Ties go
    to the earlier token.

    Args:
      metric: (..., n, dim), the vectors compared: usually a layer's keys, averaged over
        heads.
      count: static, tokens to merge away, in [0, n // 2].
      valid: (..., n) booleans, False for padding. Nothing merges into padding, and
        padding merges only where real tokens do not suffice.
      protected: (..., n) booleans, True for tokens, such as the class token, into which
        nothing merges and which do not merge unless all of A have to.

    Returns:
      `Matching`.

    Raises:
      PruningError: if the count is not in [0, n // 2].

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.1]])
      >>> matching = match(x, 1)
      >>> matching.kept.tolist(), matching.source.tolist()
      ([1, 2, 3], [2, 0, 1, 2])

    References:
      Bolya et al., Token Merging: Your ViT But Faster, 2023, arXiv:2210.09461,
      section 3: bipartite soft matching.
    """
    n = metric.shape[-2]
    if not 0 <= count <= n // 2:
        raise base.PruningError(f"Cannot merge {count} of {n} tokens: half at most.")
    wide = lax.stop_gradient(metric).astype(jnp.float32)
    norm = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    unit = wide / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
    cosine = jnp.einsum("...id,...jd->...ij", unit[..., ::2, :], unit[..., 1::2, :])
    free = jnp.ones(metric.shape[:-1], bool) if valid is None else valid
    free = free if protected is None else free & ~protected
    pairs = free[..., ::2, None] & free[..., None, 1::2]
    cosine = jnp.where(pairs, cosine, -2)
    best = jnp.max(cosine, axis=-1, initial=-2)
    # If too few others can merge, padding does, and protected tokens last.
    safe = jnp.zeros(free.shape, bool) if protected is None else protected
    best = jnp.where(safe[..., ::2], -3, best)
    goes = _choose.top_mask(_choose.sort_keys(best), count)
    whither = 2 * jnp.argmax(cosine, axis=-1).astype(jnp.int32) + 1
    return _matching(goes, whither, n, count)


def merge(
    x: jax.Array, sizes: jax.Array, matching: Matching
) -> tuple[jax.Array, jax.Array]:
    """Replaces merged tokens by their means, weighted by size.

    Args:
      x: (..., n, dim).
      sizes: (..., n), input tokens that each token represents: 1 at first, and 0 for
        padding.
      matching: result of `match`.

    Returns:
      `(x, sizes)` of the n - count tokens that are left, in the types given.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[2.0], [5.0], [4.0], [6.0]])
      >>> matching = Matching(jnp.array([1, 2, 3]), jnp.array([2, 0, 1, 2]))
      >>> merged, sizes = merge(x, jnp.array([3.0, 1.0, 1.0, 1.0]), matching)
      >>> merged[:, 0].tolist(), sizes.tolist()
      ([5.0, 4.0, 3.0], [1.0, 1.0, 4.0])
    """
    weight = sizes.astype(jnp.float32)
    total = _summed(weight, matching)
    sums = _summed(weight[..., None] * x.astype(jnp.float32), matching)
    # Tokens that represent only padding are never seen: any finite value will do.
    mean = sums / jnp.where(total > 0, total, 1)[..., None]
    return mean.astype(x.dtype), total.astype(sizes.dtype)


def unmerge(x: jax.Array, source: jax.Array) -> jax.Array:
    """Returns for each input token the token that represents it.

    Args:
      x: (..., m, dim), the tokens that are left.
      source: (..., n) int32, `Matching.source`; for two layers, the second's taken at
        the first's: `take(second.source, first.source)`.

    Returns:
      (..., n, dim).

    Example:
      Token 0 was merged into token 3, which is the last of those that are left:

      >>> import jax.numpy as jnp
      >>> left, source = jnp.array([[5.0], [4.0], [3.0]]), jnp.array([2, 0, 1, 2])
      >>> unmerge(left, source)[:, 0].tolist()
      [3.0, 5.0, 4.0, 3.0]
    """
    return _choose.take(x, source)


def _matching(goes: jax.Array, whither: jax.Array, n: int, count: int) -> Matching:
    """Builds a matching from which tokens of A merge, and into which token."""
    place = lax.broadcasted_iota(jnp.int32, (*goes.shape[:-1], n), goes.ndim - 1)
    left = place.at[..., ::2].set(jnp.where(goes, whither, place[..., ::2]))
    stays = left == place
    kept = _choose.top_indices(stays.astype(jnp.float32), n - count)
    index = jnp.cumsum(stays, axis=-1, dtype=jnp.int32) - 1
    return Matching(kept, _choose.take(index, left))


def _summed(x: jax.Array, matching: Matching) -> jax.Array:
    """Sums (..., n) or (..., n, dim) over the tokens with the same representative."""
    count = matching.kept.shape[-1]

    def row(x: jax.Array, source: jax.Array) -> jax.Array:
        return jnp.zeros((count, *x.shape[1:]), x.dtype).at[source].add(x)

    for _ in range(matching.source.ndim - 1):
        row = jax.vmap(row)
    return row(x, matching.source)
