"""Fused attention with token importance, without the probabilities in memory, for GPUs.

The importance of a token is a column sum of probabilities. To add them up, XLA writes
all of them to memory in float32, which takes several times longer than the products.
Here one kernel computes outputs block by block, as FlashAttention does, and keeps only
the log-sum-exp of each row; a second kernel recomputes the probabilities column by
column and keeps only their sums. XLA computes the same where there is no GPU, and where
JAX no longer has Triton in Pallas, which it warns of from 0.12 on.

    mix = lambda w, x, valid, heads: fused.attend_summed(*ja.project(w, x), valid)

is a `mix` for `jprune.attention.cascade`, which accepts the sums for probabilities.
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
    """Returns attention, and the attention that each key receives from each head.

    E = P V,   l[h, j] = sum_i P[h, i, j],   P = softmax(scale Q K^T)

    On an NVIDIA or AMD GPU, two kernels keep P out of memory; elsewhere it is `attend`.
    Gradients are those of `attend`, which recomputes P; reverse mode only. The sum of l
    over heads is `token_importance`.

    Args:
      q: (..., heads, tokens, dim).
      k: (..., kv heads, tokens, dim); heads is a multiple of kv heads.
      v: (..., kv heads, tokens, dim).
      valid: (..., tokens) booleans, False for padding, which neither sees nor is seen;
        its output is undefined. All are real by default.
      causal: static; query i sees keys 0 to i.
      scale: static, factor of the logits, 1 / sqrt(dim) by default.

    Returns:
      `(outputs, looks)`: (..., heads, tokens, dim) in the type of `v`, and
      (..., heads, tokens) float32.

    Raises:
      PruningError: if heads is not a multiple of kv heads, or shapes do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.eye(2)[None]
      >>> out, looks = attend_summed(x, x, x, causal=True)
      >>> out.shape, looks.shape, round(float(looks.sum()), 5)
      ((1, 2, 2), (1, 2), 2.0)
    """
    _check(q, k, v, valid)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    valid = jnp.ones((*q.shape[:-3], q.shape[-2]), bool) if valid is None else valid
    by_xla = functools.partial(reference, causal=causal, scale=scale)
    if not _fits(q, k, v):
        return by_xla(q, k, v, valid)
    try:
        # Imported here, as Pallas takes a second to import and few need it.
        from jprune.attention import _fused_kernels
    except ImportError:  # JAX 0.12 announces the end of Triton in Pallas
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
    """Returns the same by `attend`: the reference that the kernels are tested against.

    Args:
      q: (..., heads, tokens, dim).
      k: (..., kv heads, tokens, dim).
      v: (..., kv heads, tokens, dim).
      valid: (..., tokens) booleans, True for real tokens.
      causal: static; query i sees keys 0 to i.
      scale: static, factor of the logits.

    Returns:
      `(outputs, looks)`, as `attend_summed`.

    Raises:
      PruningError: if heads is not a multiple of kv heads.

    Example:
      The second of two tokens is padding, so the first sees only itself:

      >>> import jax.numpy as jnp
      >>> x, valid = jnp.eye(2)[None], jnp.array([True, False])
      >>> reference(x, x, x, valid, causal=False, scale=1.0)[1].tolist()
      [[1.0, 0.0]]
    """
    mask = valid[..., None, None, :]
    outputs, probs = attend(q, k, v, mask=mask, causal=causal, scale=scale)
    real = valid[..., None, :, None] & mask
    return outputs, jnp.sum(jnp.where(real, probs, 0), axis=-2)


def _fits(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Returns whether the kernels apply: dims powers of two, one type, not empty."""
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
        raise base.PruningError(
            f"Shapes of queries, keys, values {shapes}{mask} do not fit."
        )
