"""Storage formats for pruned weights: bit masks, N:M patterns and blocks.

    weight, mask  ->  packed  ->  weight where the mask is True and 0 elsewhere, mask

Packing and unpacking is exact to the bit, whatever the values: zeros that are kept stay
kept. The number of kept weights determines the sizes of arrays, so packing runs on the
host, outside of `jit`. What is packed, and unpacks itself, is in `_packed`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks as masks_lib
from jprune._core import base
from jprune.formats._packed import BitMask, Blocks, Dense, Packed

_LARGEST = 2**31 - 1  # JAX indexes with int32 by default


class FormatError(base.PruningError):
    """A mask or weight that a format cannot hold, such as a mask that is not N:M."""


Format = Callable[[Any, Any], Packed]
"""`(weight, mask) -> packed`; raises `FormatError` if the mask does not fit."""


def pack_dense(weight: Any, mask: Any) -> Dense:
    """Packs a weight as it is, with zeros where it is pruned; fits every mask.

    Args:
      weight: array of any type but PRNG keys.
      mask: mask of the weight; broadcasts to it along whole axes.

    Returns:
      The packed weight. It takes as much memory as the weight, and one bit per mask
      entry unless everything is kept.

    Raises:
      PruningError: if the mask does not fit the weight, or JAX would cast the weight.

    Example:
      >>> packed = pack_dense(jnp.arange(4.0), jnp.array([True, False, True, True]))
      >>> packed.values
      Array([0., 0., 2., 3.], dtype=float32)
    """
    w, m = _on_host(weight, mask)
    bits = np.zeros(0, np.uint8) if m.all() else np.packbits(m)
    kept = w if m.all() else np.where(m, w, np.zeros((), w.dtype))
    return Dense(on_device(kept), jnp.asarray(bits), m.shape)


def pack_bits(weight: Any, mask: Any) -> BitMask:
    """Packs a weight to its kept values and one bit per mask entry.

    Takes width * density + 1 bits per weight: 4.2 instead of 32 for float32 at a
    sparsity of 90 %.

    Args:
      weight: array of any type but PRNG keys.
      mask: mask of the weight; broadcasts to it along whole axes.

    Returns:
      The packed weight.

    Raises:
      FormatError: if the weight has 2^31 entries or more, or holds two-bit integers.
      PruningError: if the mask does not fit the weight, or JAX would cast the weight.

    Example:
      >>> packed = pack_bits(jnp.arange(4.0), jnp.array([True, False, False, True]))
      >>> packed.values, packed.bits  # 1001 and four zeros to fill the byte
      (Array([0., 3.], dtype=float32), Array([144], dtype=uint8))
      >>> packed.unpack()[1]
      Array([ True, False, False,  True], dtype=bool)
    """
    w, m = movable(weight, mask)
    if w.size > _LARGEST:
        raise FormatError(f"A weight has fewer than 2^31 entries; got shape {w.shape}.")
    values = w[np.broadcast_to(m, w.shape)]
    return BitMask(on_device(values), jnp.asarray(np.packbits(m)), w.shape, m.shape)


def pack_blocks(height: int, width: int) -> Format:
    """Returns the block format: the kept blocks of a matrix.

    Takes eight bytes per kept block for its position, and its values.

    Args:
      height: number of rows of a block, positive; has to divide the last axis but one.
      width: number of columns of a block, positive; has to divide the last axis.

    Returns:
      A function `(weight, mask) -> packed`, which raises `FormatError` unless the mask
      keeps or prunes whole blocks.

    Raises:
      PruningError: if `height` or `width` is not positive.

    Example:
      >>> mask = jnp.array([[True, True, False, False]] * 2)
      >>> packed = pack_blocks(2, 2)(jnp.arange(8.0).reshape(2, 4), mask)
      >>> packed.values.tolist(), packed.rows.tolist(), packed.columns.tolist()
      ([[[0.0, 1.0], [4.0, 5.0]]], [0], [0])
    """
    if height < 1 or width < 1:
        raise base.PruningError(f"A block has positive sides; got {height, width}.")
    return functools.partial(_blocks, block=(int(height), int(width)))


def _blocks(weight: Any, mask: Any, *, block: tuple[int, int]) -> Blocks:
    w, m = movable(weight, mask)
    if w.ndim < 2 or w.shape[-2] % block[0] or w.shape[-1] % block[1]:
        raise FormatError(f"Blocks of shape {block} do not divide shape {w.shape}.")
    grid = (math.prod(w.shape[:-1]) // block[0], w.shape[-1] // block[1])

    def cut(x: np.ndarray) -> np.ndarray:
        split = x.reshape(grid[0], block[0], grid[1], block[1])
        return split.transpose(0, 2, 1, 3)

    entries = cut(in_full(w, m))
    kept = entries.any((2, 3))
    if (kept != entries.all((2, 3))).any():
        raise FormatError(f"The mask keeps only parts of some blocks of shape {block}.")
    rows, columns = (jnp.asarray(i.astype(np.int32)) for i in np.nonzero(kept))
    return Blocks(on_device(cut(w)[kept]), rows, columns, w.shape, m.shape, block)


def _on_host(weight: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    if jnp.issubdtype(jnp.result_type(weight), jax.dtypes.extended):
        raise base.PruningError(f"Weights are numbers; got {jnp.result_type(weight)}.")
    masks_lib.check({"weight": weight}, {"weight": mask})
    return np.asarray(weight), np.asarray(mask)


def movable(weight: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns a weight and its mask on the host; raises unless JAX can move entries.

    Args:
      weight: array of any type but PRNG keys.
      mask: mask of the weight.

    Raises:
      FormatError: for two-bit integers.
      PruningError: if the mask does not fit the weight.
    """
    w, m = _on_host(weight, mask)
    # JAX 0.7 writes out of bounds when it scatters two-bit integers.
    if jnp.issubdtype(w.dtype, jnp.integer) and jnp.iinfo(w.dtype).bits < 4:
        raise FormatError(
            f"JAX does not move {w.dtype} reliably; convert the weight to a wider type."
        )
    return w, m


def on_device(values: np.ndarray) -> jax.Array:
    """Returns values as a JAX array of the same type.

    Args:
      values: NumPy array.

    Raises:
      PruningError: if JAX would cast them.
    """
    if (dtype := jnp.result_type(values)) != values.dtype:
        raise base.PruningError(
            f"JAX would cast {values.dtype} to {dtype}; set jax_enable_x64."
        )
    return jnp.asarray(values)


def in_full(w: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Returns the mask in the weight's shape, from which `_narrowed` restores it.

    Args:
      w: weight.
      m: mask of the weight, which broadcasts to it.

    Raises:
      FormatError: if the mask has no axes of its own, or the weight no entries.
    """
    if m.shape != w.shape and (m.ndim != w.ndim or not w.size):
        raise FormatError(
            f"A mask of shape {m.shape} has no pattern in a weight of shape {w.shape}."
        )
    return np.broadcast_to(m, w.shape)
