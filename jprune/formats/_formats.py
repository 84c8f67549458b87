"""Storage formats for pruned weights: bit masks, N:M patterns and blocks.

    weight, mask  ->  packed  ->  weight where the mask is True and 0 elsewhere, mask

Packing and unpacking is exact to the bit, whatever the values: zeros that are kept stay
kept. Each format is a dataclass of arrays, with static shape, n, m and block: `jit`
compiles for them, `jax.tree.map` skips them, and packed weights of different shapes
have different tree structures. (In a NamedTuple these numbers would be leaves, which
`jit` would trace, and functions that scale all leaves would scale.)

The number of kept weights determines the sizes of arrays, so packing runs on the host,
outside of `jit`. Unpacking can be jitted, vmapped and fused.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks as masks_lib
from jprune._core import base
from jprune.formats import _bits

_STATIC = {"static": True}
_LARGEST = 2**31 - 1  # JAX indexes with int32 by default


class FormatError(base.PruningError):
    """A mask or weight that a format cannot hold, such as a mask that is not N:M."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """All values, with zeros where they are pruned.

    Attributes:
      values: the weight, with zeros where it is pruned.
      bits: uint8, the mask as bits in the order of `np.packbits`; empty if everything
        is kept.
      mask_shape: shape of the mask.
    """

    values: jax.Array
    bits: jax.Array
    mask_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.values.shape

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Returns the weight and its mask."""
        if not self.bits.size:
            return self.values, jnp.ones(self.mask_shape, bool)
        return self.values, _bits.to_mask(self.bits, self.mask_shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitMask:
    """The kept values in row-major order, and the mask as bits.

    Attributes:
      values: (kept,) array.
      bits: uint8, the mask as bits in the order of `np.packbits`.
      shape: shape of the weight.
      mask_shape: shape of the mask; a mask of whole channels takes one bit for each.
    """

    values: jax.Array
    bits: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    mask_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Returns the weight and its mask."""
        mask = _bits.to_mask(self.bits, self.mask_shape)
        if not self.values.size:
            return jnp.zeros(self.shape, self.values.dtype), mask
        kept = jnp.broadcast_to(mask, self.shape)
        bits = (
            self.bits if self.mask_shape == self.shape else jnp.packbits(kept.ravel())
        )
        place = _bits.ranks(bits, kept.size)

        def spread(values: jax.Array) -> jax.Array:
            out = jnp.take(values, place, mode="clip").reshape(self.shape)
            return jnp.where(kept, out, jnp.zeros_like(out))

        return _bits.moved(self.values, spread), mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NOfM:
    """n values of every m consecutive entries along an axis, and their positions.

    Attributes:
      values: array of the weight's shape, but with n entries for every m along the
        axis, in the order of the axis.
      positions: uint8, the position of each value in its group, in ceil(log2 m) bits,
        highest first, in the row-major order of the values.
      shape: shape of the weight.
      mask_shape: shape of the mask.
      n: number of entries kept per group.
      m: size of a group.
      axis: axis of the groups, counted from 0.
    """

    values: jax.Array
    positions: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    mask_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    n: int = dataclasses.field(metadata=_STATIC)
    m: int = dataclasses.field(metadata=_STATIC)
    axis: int = dataclasses.field(metadata=_STATIC)

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Returns the weight and its mask."""
        before, after = self.shape[: self.axis], self.shape[self.axis + 1 :]
        groups = self.shape[self.axis] // self.m
        grouped = (math.prod(before), groups, self.n, math.prod(after))
        count = math.prod(grouped)
        position = _bits.to_numbers(self.positions, count, self.m)
        position = position.reshape(grouped)
        place = jnp.arange(self.m, dtype=jnp.int32)[None, None, :, None]
        # Whether the i-th value belongs at each position: selections, not a scatter.
        here = [position[:, :, i : i + 1] == place for i in range(self.n)]

        def spread(values: jax.Array) -> jax.Array:
            values = values.reshape(grouped)
            out = jnp.zeros(here[0].shape, values.dtype)
            for i in range(self.n):
                out = jnp.where(here[i], values[:, :, i : i + 1], out)
            return out.reshape(self.shape)

        mask = functools.reduce(jnp.logical_or, here).reshape(self.shape)
        weight = _bits.moved(self.values, spread)
        return weight, _narrowed(mask, self.mask_shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The kept blocks of a matrix, and their positions.

    A weight of more than two axes is reshaped to a matrix: all axes but the last, by
    the last.

    Attributes:
      values: (kept, height, width) array, the kept blocks in row-major order.
      rows: (kept,) int32, the row of each block in the grid of blocks.
      columns: (kept,) int32, the column of each block in the grid of blocks.
      shape: shape of the weight.
      mask_shape: shape of the mask.
      block: (height, width) of a block.
    """

    values: jax.Array
    rows: jax.Array
    columns: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    mask_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    block: tuple[int, int] = dataclasses.field(metadata=_STATIC)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of blocks."""
        height, width = self.block
        return math.prod(self.shape[:-1]) // height, self.shape[-1] // width

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Returns the weight and its mask."""
        place = (self.rows, self.columns)

        def spread(values: jax.Array) -> jax.Array:
            out = jnp.zeros((*self.grid, *self.block), values.dtype)
            return self._joined(out.at[place].set(values, unique_indices=True))

        mask = jnp.zeros(self.grid, bool).at[place].set(True, unique_indices=True)
        mask = jnp.broadcast_to(mask[..., None, None], (*self.grid, *self.block))
        weight = _bits.moved(self.values, spread)
        return weight, _narrowed(self._joined(mask), self.mask_shape)

    def _joined(self, blocks: jax.Array) -> jax.Array:
        return blocks.transpose(0, 2, 1, 3).reshape(self.shape)


Packed = Dense | BitMask | NOfM | Blocks
Format = Callable[[Any, Any], Packed]
"""`(weight, mask) -> packed`; raises `FormatError` if the mask does not fit."""


def is_packed(x: Any) -> bool:
    """Returns True for a packed weight; the `is_leaf` of a tree of packed weights."""
    return isinstance(x, Packed)


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


def _narrowed(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Along a broadcast axis all entries are equal, so the first one is the mask's.
    return mask[tuple(slice(size) for size in shape)]
