"""Attention and its importance without the probabilities in memory, for GPUs.

The importance of a token is a column sum of probabilities. XLA writes all of them to
memory, in float32, to add them up; that takes several times longer than the products.
Here one kernel computes outputs block by block, as FlashAttention does, and keeps of
each row only the logarithm of its sum; a second computes the probabilities again,
column by column, and keeps their sums alone. Where there is no GPU, XLA does it; and
where JAX has no Triton in Pallas any more, of which it warns from 0.12 on.

    mix = lambda w, x, valid, heads: fused.attend_summed(*ja.project(w, x), valid)

is a `mix` for `jprune.attention.cascade`, which takes the sums for probabilities.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.attention._attend import attend, heads_per_kv


def attend_summed(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns attention and how much each head looks at each key.

    E = P V,   l[h, j] = sum_i P[h, i, j],   P = softmax(scale Q K^T)

    On a GPU of NVIDIA or AMD by two kernels that leave P out of memory, elsewhere by
    `attend`. Gradients are those of `attend`, which computes P again, in reverse mode
    only. The sum of l over heads is `token_importance`.

    Args:
      q: (..., heads, tokens, dim).
      k: (..., kv heads, tokens, dim); kv heads divide heads.
      v: (..., kv heads, tokens, dim).
      valid: (..., tokens) booleans, False for padding, which neither looks nor is
        looked at; its output means nothing. All are real by default.
      causal: static; a query sees the keys up to itself.
      scale: static, of the products, 1 / sqrt(dim) by default.

    Returns:
      `(outputs, looks)`: (..., heads, tokens, dim) in the type of `v`, and
      (..., heads, tokens) float32.

    Raises:
      PruningError: if kv heads do not divide heads, or shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.eye(2)[None]
      >>> out, looks = attend_summed(x, x, x, causal=True)
      >>> out.shape, looks.shape, round(float(looks.sum()), 5)
      ((1, 2, 2), (1, 2), 2.0)

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, algorithm 1. Blocks: Dao et al.,
      FlashAttention, 2022, arXiv:2205.14135.
    """
    _check(q, k, v, valid)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    valid = jnp.ones((*q.shape[:-3], q.shape[-2]), bool) if valid is None else valid
    by_xla = functools.partial(reference, causal=causal, scale=scale)
    if not _fits(q, k, v):
        return by_xla(q, k, v, valid)
    try:
        # Not before: Pallas takes a second to import, and few need it.
        from jprune.attention import _fused_kernels
    except ImportError:  # JAX 0.12 announces that Pallas will lose Triton
        return by_xla(q, k, v, valid)

    by_kernels = functools.partial(_fused_kernels.run, causal=causal, scale=scale)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> Any:
        return lax.platform_dependent(
            q, k, v, valid, cuda=by_kernels, rocm=by_kernels, default=by_xla
        )

    def backward(args: Any, cotangents: Any) -> Any:
        q, k, v, valid = args
        _, pull = jax.vjp(lambda q, k, v: by_xla(q, k, v, valid), q, k, v)
        return (*pull(cotangents), None)

    f = jax.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f(q, k, v, valid)


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    *,
    causal: bool,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns the same by `attend`: what the kernels are held against.

    Args:
      q: as of `attend_summed`, like the others.
      k: keys.
      v: values.
      valid: which tokens are real.
      causal: static.
      scale: static.

    Returns:
      `(outputs, looks)`.
    """
    mask = valid[..., None, None, :]
    outputs, probs = attend(q, k, v, mask=mask, causal=causal, scale=scale)
    real = valid[..., None, :, None] & mask
    return outputs, jnp.sum(jnp.where(real, probs, 0), axis=-2)


def _fits(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Whether the kernels' blocks exist: powers of two of one type, not empty."""
    dims = (q.shape[-1], v.shape[-1])
    short = all(16 <= d <= 128 and d & (d - 1) == 0 for d in dims)
    one_type = q.dtype == k.dtype == v.dtype and q.dtype.itemsize <= 4
    return short and one_type and q.size > 0


def _check(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> None:
    *rows, heads, tokens, dim = q.shape
    kv_heads = k.shape[-3]
    heads_per_kv(heads, kv_heads)
    fits = k.shape == (*rows, kv_heads, tokens, dim) and v.shape[:-1] == k.shape[:-1]
    if not fits or (valid is not None and valid.shape != (*rows, tokens)):
        shapes = [x.shape for x in (q, k, v)]
        mask = "" if valid is None else f" and valid {valid.shape}"
        raise base.PruningError(f"Queries, keys, values {shapes}{mask} do not fit.")
