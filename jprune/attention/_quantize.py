"""Progressive quantization: attention from the keys' upper bits, lower bits on demand.

    x ~ scale (2^lsb M + L)      M signed, the upper bits;  0 <= L < 2^lsb, the lower

The bit planes M and L are stored at different addresses. Scores are computed from M;
only a row whose probabilities are flat, max_j p_j < threshold, fetches L and is
recomputed. A quantization error of one score changes the probabilities by at most half
of it, and by little where one of them is near 1: hence the rule.

The mean of what M leaves out is about the same for all keys, and a softmax is invariant
to a constant, so no half unit has to be added.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import gates
from jprune._core import base
from jprune.attention._attend import dot_heads, scores, softmax, weigh

_EXACT_FLOAT = 2**24  # integers up to this are exact in float32
_EXACT_INT = 2**31 - 1


class Bits(NamedTuple):
    """Bit widths of attention's operands; static.

    Attributes:
      query: bits of the queries, 2 to 16.
      msb: bits of the keys' upper plane, 2 to 16; 4, 6, 8, 10 or 12 in practice.
      lsb: bits of the keys' lower plane, 4 in practice; 0 for static quantization.
      value: bits of the values, 2 to 16; 0 leaves them unquantized.
    """

    query: int = 12
    msb: int = 8
    lsb: int = 4
    value: int = 8


class Planes(NamedTuple):
    """Quantized numbers in two bit planes.

    Attributes:
      msb: the upper bits, signed integers.
      lsb: the lower bits, integers in [0, 2^lsb).
      scale: float32, the value of one unit of the lowest bit; broadcasts to the
        numbers.
    """

    msb: jax.Array
    lsb: jax.Array
    scale: jax.Array


class Progressive(NamedTuple):
    """The result of progressive attention.

    Attributes:
      out: (..., heads, queries, dim).
      probs: (..., heads, queries, keys) float32, the probabilities behind `out`.
      refetched: (..., heads, queries) booleans, True for rows that fetched the lower
        bits. Their fraction of the real rows is the paper's refetch fraction.
    """

    out: jax.Array
    probs: jax.Array
    refetched: jax.Array


def quantize(
    x: jax.Array,
    bits: int,
    *,
    axes: tuple[int, ...] = (-2, -1),
    where: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Quantizes linearly and symmetrically to the nearest integers.

    scale = max |x| / (2^(bits - 1) - 1),   integers = round(x (1 / scale))

    Halves round to the even integer.

    Args:
      x: floating.
      bits: static, 2 to 16, including the sign.
      axes: axes that share one scale; by default each head of (..., heads, tokens, dim)
        has its own.
      where: booleans that broadcast to `x`, False for padding, which does not count for
        the maximum (and is clipped to it).

    Returns:
      `(integers, scale)`: integers in the shape of `x`, int8 up to 8 bits, else int16;
      the scale in float32, of size 1 along `axes`.

    Raises:
      PruningError: if `bits` is not between 2 and 16.

    Example:
      >>> import jax.numpy as jnp
      >>> integers, scale = quantize(jnp.array([[-7.0, 2.2, 0.4]]), 4)
      >>> integers.tolist(), float(scale[0, 0])
      ([[-7, 2, 0]], 1.0)
    """
    if not 2 <= bits <= 16:
        raise base.PruningError(f"Quantization takes 2 to 16 bits; got {bits}.")
    most = 2 ** (bits - 1) - 1
    wide = lax.stop_gradient(x).astype(jnp.float32)
    size = jnp.abs(wide) if where is None else jnp.where(where, jnp.abs(wide), 0)
    top = jnp.max(size, axis=axes, keepdims=True, initial=0)
    some = top > 2.0**-100  # below that, 1 / top is not a float32
    top = jnp.where(some, top, most)
    # A product, not a quotient: XLA may or may not turn a division into one, and
    # numbers half way between two integers would then round either way.
    integers = jnp.round(jnp.where(some, wide, 0) * (most / top))
    integers, scale = jnp.clip(integers, -most, most), top / most
    return integers.astype(jnp.int8 if bits <= 8 else jnp.int16), scale


def split_planes(
    x: jax.Array,
    msb: int,
    lsb: int,
    *,
    axes: tuple[int, ...] = (-2, -1),
    where: jax.Array | None = None,
) -> Planes:
    """Quantizes to msb + lsb bits and splits the integers into two bit planes.

    Args:
      x: floating, such as (..., heads, tokens, dim).
      msb: static, bits of the upper plane, including the sign.
      lsb: static, bits of the lower plane; msb + lsb is between 2 and 16.
      axes: as in `quantize`.
      where: as in `quantize`.

    Returns:
      `Planes`.

    Raises:
      PruningError: if there are too few or too many bits.

    Example:
      >>> import jax.numpy as jnp
      >>> planes = split_planes(jnp.array([[127.0, -20.0, 5.0]]), 4, 4)
      >>> planes.msb.tolist(), planes.lsb.tolist()
      ([[7, -2, 0]], [[15, 12, 5]])

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section III.D.
    """
    if msb < 2 or lsb < 0:
        raise base.PruningError(
            f"Bit planes need at least 2 upper and 0 lower bits; got {msb} and {lsb}."
        )
    integers, scale = quantize(x, msb + lsb, axes=axes, where=where)
    upper = integers >> np.array(lsb, integers.dtype)  # towards minus infinity
    lower = integers & np.array(2**lsb - 1, integers.dtype)
    upper = upper.astype(jnp.int8 if msb <= 8 else jnp.int16)
    return Planes(upper, lower.astype(jnp.int8 if lsb < 8 else jnp.int16), scale)


def join_planes(planes: Planes, lsb: int, *, lower: bool = True) -> jax.Array:
    """Returns the numbers that bit planes represent.

    Args:
      planes: result of `split_planes`.
      lsb: static, bits of the lower plane.
      lower: static; whether to use the lower bits, or take them as 0.

    Returns:
      float32 numbers; with `lower`, within half a unit of those that were split.

    Example:
      >>> import jax.numpy as jnp
      >>> planes = split_planes(jnp.array([[127.0, -20.0, 5.0]]), 4, 4)
      >>> join_planes(planes, 4).tolist(), join_planes(planes, 4, lower=False).tolist()
      ([[127.0, -20.0, 5.0]], [[112.0, -32.0, 0.0]])
    """
    units = planes.msb.astype(jnp.float32) * 2**lsb
    if lower:
        units = units + planes.lsb.astype(jnp.float32)
    return units * planes.scale


def fake_quantize(
    x: jax.Array,
    bits: int,
    *,
    axes: tuple[int, ...] = (-2, -1),
    where: jax.Array | None = None,
) -> jax.Array:
    """Rounds to quantized values; the gradient passes straight through.

    Args:
      x: floating.
      bits: static, 2 to 16; 0 returns `x` unchanged.
      axes: as in `quantize`.
      where: as in `quantize`.

    Returns:
      Numbers in the shape and type of `x`.

    Raises:
      PruningError: if `bits` is neither 0 nor between 2 and 16.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[-7.0, 2.25, 0.5]])
      >>> fake_quantize(x, 4).tolist()
      [[-7.0, 2.0, 0.0]]
      >>> jax.grad(lambda x: fake_quantize(x, 4).sum())(x).tolist()
      [[1.0, 1.0, 1.0]]
    """
    if bits == 0:
        return x
    integers, scale = quantize(x, bits, axes=axes, where=where)
    return gates.straight_through(integers.astype(jnp.float32) * scale, x)


def center_keys(k: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Subtracts the mean key, to which attention is invariant.

    q . (k_j - mean) differs from q . k_j by a constant over j, which the softmax
    cancels. The centred keys have a smaller range, and so a finer quantization.

    Args:
      k: (..., kv heads, keys, dim).
      keys: (..., keys) booleans, False for padding, which is left out of the mean.

    Returns:
      Keys in the shape and type of `k`.

    Example:
      >>> import jax.numpy as jnp
      >>> center_keys(jnp.array([[[8.0], [10.0]]])).tolist()
      [[[-1.0], [1.0]]]

    References:
      Zhang et al., SageAttention, 2024, arXiv:2410.02367, equation 5.
    """
    real = None if keys is None else keys[..., None, :, None]
    wide = k.astype(jnp.float32)
    total = jnp.sum(wide, axis=-2, keepdims=True, where=real)
    count = k.shape[-2] if real is None else jnp.sum(real, axis=-2, keepdims=True)
    mean = total / jnp.maximum(jnp.asarray(count, jnp.float32), 1)
    return (wide - mean).astype(k.dtype)


def progressive_scores(
    q: jax.Array, planes: Planes, bits: Bits, *, scale: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns attention logits from the keys' upper bits, and from all bits.

    Q . K = 2^lsb Q . M + Q . L. Both products are of integers and exact; their sum is
    exact below 2^31, and rounded to float32 beyond.

    Args:
      q: (..., heads, queries, dim) floating; quantized here to `bits.query`.
      planes: bit planes of the keys, (..., kv heads, keys, dim).
      bits: bit widths of queries and planes.
      scale: factor of the logits, 1 / sqrt(dim) by default.

    Returns:
      `(from upper, from all)`: (..., heads, queries, keys) float32 each.

    Raises:
      PruningError: if the products overflow an int32 at these bit widths.

    Example:
      >>> import jax.numpy as jnp
      >>> q, k = jnp.array([[[1.0, 0.0]]]), jnp.array([[[1.0, 0.0], [0.3, 0.0]]])
      >>> planes = split_planes(k, 4, 4)
      >>> upper, whole = progressive_scores(q, planes, Bits(8, 4, 4), scale=1)
      >>> [round(float(s), 2) for s in (*upper[0, 0], *whole[0, 0])]
      [0.88, 0.25, 1.0, 0.3]
    """
    integers, unit = quantize(q, bits.query)
    step = q.shape[-1] * (2 ** (bits.query - 1) - 1)
    coarse = _integer_dots(integers, planes.msb, step * 2 ** (bits.msb - 1))
    fine = _integer_dots(integers, planes.lsb, step * (2**bits.lsb - 1))
    whole = _joined(coarse, fine, bits.lsb, step * 2 ** (bits.msb + bits.lsb - 1))
    heads, kv_heads = q.shape[-3], planes.msb.shape[-3]
    units = unit * jnp.repeat(planes.scale, heads // kv_heads, axis=-3)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    units = units * jnp.asarray(scale, jnp.float32)
    upper = coarse.astype(jnp.float32) * 2**bits.lsb
    return upper * units, whole * units


def progressive_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bits: Bits = Bits(),  # noqa: B008
    threshold: Any = 0.1,
    mask: jax.Array | None = None,
    keys: jax.Array | None = None,
) -> Progressive:
    """Returns attention whose keys' lower bits are fetched only for flat rows.

    A row's probabilities are computed from the upper bits and, if the largest is below
    the threshold, recomputed from all bits. The gradient is that of plain attention at
    the probabilities used, straight through all rounding.

    XLA computes both versions: the result is what a machine that fetches bits on demand
    would return, and `fetched` counts what it would read. It is not faster here.

    Args:
      q: (..., heads, queries, dim).
      k: (..., kv heads, keys, dim); apply `center_keys` first if wanted.
      v: (..., kv heads, keys, dim).
      bits: static bit widths.
      threshold: in [0, 1], may be traced; 0 never fetches. About 0.1 for text.
      mask: booleans that broadcast to (..., heads, queries, keys); True = may be seen.
      keys: (..., keys) booleans, False for padding, which does not count for the scales
        of the quantization.

    Returns:
      `Progressive`. Padded queries count as refetched, unless the mask hides all keys
      from them.

    Raises:
      PruningError: if the products overflow an int32 at these bit widths, or heads is
        not a multiple of kv heads.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[4.0, 0.0], [0.0, 4.0], [0.5, 0.5]]])
      >>> progressive_attend(x, x, x, threshold=0.5).refetched.tolist()
      [[False, False, True]]

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, section III.D and figure 6. There
      the probabilities are rounded to 12 bits too; here they are float32.
    """
    real = None if keys is None else keys[..., None, :, None]
    planes = split_planes(k, bits.msb, bits.lsb, where=real)
    upper, whole = progressive_scores(q, planes, bits)
    first = softmax(upper, mask)
    top = jnp.max(first, axis=-1, initial=0)
    # A fully masked row has probabilities of 0, and nothing to fetch.
    refetched = (top < jnp.asarray(threshold, jnp.float32)) & (top > 0)
    if bits.lsb == 0:
        refetched = jnp.zeros_like(refetched)
    used = lax.stop_gradient(jnp.where(refetched[..., None], whole, upper))
    # Without the barrier XLA fuses the first softmax into each use of the second, which
    # takes three to four times as long to compile on GPUs.
    used = lax.optimization_barrier(used)
    used = gates.straight_through(used, scores(q, k))
    probs = softmax(used, mask)
    v = fake_quantize(v, bits.value, where=real)
    return Progressive(weigh(probs, v), probs, refetched)


def _integer_dots(x: jax.Array, y: jax.Array, bound: int) -> jax.Array:
    """Multiplies integers exactly, in float32 or int32; sums are at most `bound`."""
    if bound <= _EXACT_FLOAT:
        # Every partial sum is an integer that float32 represents exactly, and float
        # products are faster. At the highest precision no device rounds the operands.
        x, y, dtype = x.astype(jnp.float32), y.astype(jnp.float32), jnp.float32
    elif bound <= _EXACT_INT:
        x, y, dtype = x.astype(jnp.int32), y.astype(jnp.int32), jnp.int32
    else:
        raise base.PruningError(
            f"Sums of products up to {bound} overflow an int32: use fewer bits."
        )
    dots = "...gqd,...gkd->...gqk"
    return dot_heads(dots, x, y, dtype, lax.Precision.HIGHEST)


def _joined(coarse: jax.Array, fine: jax.Array, lsb: int, bound: int) -> jax.Array:
    """Returns 2^lsb coarse + fine in float32, of integers that are at most `bound`."""
    if _EXACT_FLOAT < bound <= _EXACT_INT:
        upper = coarse.astype(jnp.int32) << np.int32(lsb)
        return (upper + fine.astype(jnp.int32)).astype(jnp.float32)
    return coarse.astype(jnp.float32) * 2**lsb + fine.astype(jnp.float32)
