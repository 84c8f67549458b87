"""Pruned weights at rest: bits and values, N:M, blocks. Mask in, mask out.

    weight, mask  ->  packed  ->  weight where the mask is True and 0 elsewhere, mask

to the bit, whatever the values: a weight of zero that is kept is kept. Each format
is a dataclass of arrays whose shape, n, m and block are static: `jit` compiles for
them, `jax.tree.map` does not see them, and two packed weights of other shapes are
trees of other structure. Numbers in a NamedTuple would be leaves, traced by `jit` and
scaled by whoever scales the weights; only values are arrays here.

How many weights are kept decides the sizes of arrays, so packing happens on the host,
outside of `jit`. Unpacking is ordinary JAX: it can be jitted, mapped, and fused.
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
_LARGEST = 2**31 - 1  # what an int32 can count, and JAX indexes with by default


class FormatError(base.PruningError):
    """A mask that a format cannot hold, such as one that is not N:M."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """All weights, with zeros where they are pruned.

    Attributes:
      values: the weights, in their shape.
      bits: the mask, a bit for each of its entries, the first highest, uint8; of
        size 0 if everything is kept.
      mask_shape: the mask's own shape.
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
    """The kept weights in row-major order, and the mask as bits.

    Attributes:
      values: (kept,), the weights.
      bits: the mask, a bit for each of its entries, the first highest, uint8.
      shape: the weight's shape.
      mask_shape: the mask's own shape: whole channels take a bit each.
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
    """n values of every m consecutive ones along an axis, and their places.

    Attributes:
      values: the weight's shape with n for every m along the axis; those of a group
        are in the order of the axis.
      positions: the place of each value in its group, in ceil(log2 m) bits, highest
        first, in the row-major order of the values, uint8.
      shape: the weight's shape.
      mask_shape: the mask's own shape.
      n: how many of a group are kept.
      m: the size of a group.
      axis: along which axis, from 0.
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
        # For each place, whether the i-th value goes there: selects, no scatter.
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
    """Whole blocks of a matrix, and where they stand.

    A weight of more than two axes is the matrix (all but the last, the last).

    Attributes:
      values: (kept, height, width), the blocks in row-major order.
      rows: (kept,), the row of blocks that each is in, int32.
      columns: (kept,), the column of blocks that each is in, int32.
      shape: the weight's shape.
      mask_shape: the mask's own shape.
      block: (height, width); given, because no block may be kept.
    """

    values: jax.Array
    rows: jax.Array
    columns: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    mask_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    block: tuple[int, int] = dataclasses.field(metadata=_STATIC)

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of blocks there are."""
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
"""`(weight, mask) -> packed`; raises `FormatError` where the mask does not fit."""


def is_packed(x: Any) -> bool:
    """True for a packed weight: what `is_leaf` asks for in a tree of them."""
    return isinstance(x, Packed)


def pack_dense(weight: Any, mask: Any) -> Dense:
    """Returns the weight with zeros where it is pruned: the format that always fits.

    Args:
      weight: an array of any type but PRNG keys.
      mask: its mask, of a shape that broadcasts along whole axes.

    Returns:
      The packed weight: as large as the weight, and a bit for each entry of the
      mask unless everything is kept.

    Raises:
      PruningError: if the mask is not one of the weight, or JAX would cast it.

    Example:
      >>> packed = pack_dense(jnp.arange(4.0), jnp.array([True, False, True, True]))
      >>> packed.values
      Array([0., 0., 2., 3.], dtype=float32)
    """
    w, m = _on_host(weight, mask)
    bits = np.zeros(0, np.uint8) if m.all() else np.packbits(m)
    kept = w if m.all() else np.where(m, w, np.zeros((), w.dtype))
    return Dense(_on_device(kept), jnp.asarray(bits), m.shape)


def pack_bits(weight: Any, mask: Any) -> BitMask:
    """Returns the kept weights, and a bit for each entry of the mask.

    width * kept + 1 bits a weight: at 90 % sparsity of float32, 4.2 for 32.

    Args:
      weight: an array of any type but PRNG keys.
      mask: its mask, of a shape that broadcasts along whole axes.

    Returns:
      The packed weight.

    Raises:
      FormatError: if the weight has 2^31 entries or more, or is of two-bit integers.
      PruningError: if the mask is not one of the weight, or JAX would cast it.

    Example:
      >>> packed = pack_bits(jnp.arange(4.0), jnp.array([True, False, False, True]))
      >>> packed.values, packed.bits  # 1001 and four zeros to fill the byte
      (Array([0., 3.], dtype=float32), Array([144], dtype=uint8))
      >>> packed.unpack()[1]
      Array([ True, False, False,  True], dtype=bool)
    """
    w, m = _movable(weight, mask)
    if w.size > _LARGEST:
        raise FormatError(f"{w.shape} has more entries than an int32 can count.")
    values = w[np.broadcast_to(m, w.shape)]
    return BitMask(_on_device(values), jnp.asarray(np.packbits(m)), w.shape, m.shape)


def pack_n_of_m(n: int, m: int, axis: int = -2) -> Format:
    """Returns a format: n of every m consecutive weights along an axis.

    (width + ceil(log2 m)) * n / m bits a weight: 2:4 of bfloat16 takes 9 for 16,
    where a bit mask takes as many; 1:4 takes 4.5 for 5.

    Args:
      n: how many of a group the mask keeps, in [1, m].
      m: the size of a group, at most 256; has to divide the axis.
      axis: along which axis; the default is the input axis of JAX's kernels.

    Returns:
      `(weight, mask) -> packed`, which raises `FormatError` unless the mask keeps
      exactly n of each m.

    Raises:
      PruningError: if not 1 <= n <= m <= 256.

    Example:
      >>> mask = jnp.array([[False], [True], [True], [False]])
      >>> packed = pack_n_of_m(2, 4)(jnp.arange(4.0)[:, None], mask)
      >>> packed.values[:, 0], packed.positions  # 01 10 and four zeros
      (Array([1., 2.], dtype=float32), Array([96], dtype=uint8))

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021,
      arXiv:2104.08378.
    """
    if not 1 <= n <= m <= 256:
        raise base.PruningError(f"n:m keeps n of m, 1 <= n <= m <= 256; got {n}:{m}.")
    return functools.partial(_n_of_m, n=int(n), m=int(m), axis=int(axis))


def pack_blocks(height: int, width: int) -> Format:
    """Returns a format: whole blocks of a matrix.

    Eight bytes a kept block for its place, beside its values.

    Args:
      height: rows of a block, positive; has to divide the axis before the last.
      width: columns of a block, positive; has to divide the last axis.

    Returns:
      `(weight, mask) -> packed`, which raises `FormatError` unless the mask keeps
      whole blocks.

    Raises:
      PruningError: if a side is not positive.

    Example:
      >>> mask = jnp.array([[True, True, False, False]] * 2)
      >>> packed = pack_blocks(2, 2)(jnp.arange(8.0).reshape(2, 4), mask)
      >>> packed.values.tolist(), packed.rows.tolist(), packed.columns.tolist()
      ([[[0.0, 1.0], [4.0, 5.0]]], [0], [0])
    """
    if height < 1 or width < 1:
        raise base.PruningError(f"A block's sides are positive; got {height, width}.")
    return functools.partial(_blocks, block=(int(height), int(width)))


def _n_of_m(weight: Any, mask: Any, *, n: int, m: int, axis: int) -> NOfM:
    w, mask = _movable(weight, mask)
    if not -w.ndim <= axis < w.ndim or w.shape[axis] % m:
        raise FormatError(f"{m} does not divide axis {axis} of shape {w.shape}.")
    axis %= w.ndim
    shape, groups = w.shape, w.shape[axis] // m
    grouped = (math.prod(shape[:axis]), groups, m, math.prod(shape[axis + 1 :]))
    kept = _full(w, mask).reshape(grouped)
    if (kept.sum(2) != n).any():
        raise FormatError(f"The mask keeps not {n} of each {m} along axis {axis}.")
    # The axis of a group last, so that `nonzero` goes through it first.
    position = np.nonzero(kept.swapaxes(2, 3))[-1]
    position = position.reshape(*kept.shape[:2], kept.shape[3], n).swapaxes(2, 3)
    values = np.take_along_axis(w.reshape(grouped), position, axis=2)
    values = values.reshape(*shape[:axis], groups * n, *shape[axis + 1 :])
    packed = jnp.asarray(_bits.of_numbers(position, m))
    return NOfM(_on_device(values), packed, shape, mask.shape, n, m, axis)


def _blocks(weight: Any, mask: Any, *, block: tuple[int, int]) -> Blocks:
    w, m = _movable(weight, mask)
    if w.ndim < 2 or w.shape[-2] % block[0] or w.shape[-1] % block[1]:
        raise FormatError(f"Blocks of {block} do not divide a weight of {w.shape}.")
    grid = (math.prod(w.shape[:-1]) // block[0], w.shape[-1] // block[1])

    def cut(x: np.ndarray) -> np.ndarray:
        split = x.reshape(grid[0], block[0], grid[1], block[1])
        return split.transpose(0, 2, 1, 3)

    entries = cut(_full(w, m))
    kept = entries.any((2, 3))
    if (kept != entries.all((2, 3))).any():
        raise FormatError(f"The mask keeps parts of blocks of {block}.")
    rows, columns = (jnp.asarray(i.astype(np.int32)) for i in np.nonzero(kept))
    return Blocks(_on_device(cut(w)[kept]), rows, columns, w.shape, m.shape, block)


def _on_host(weight: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    if jnp.issubdtype(jnp.result_type(weight), jax.dtypes.extended):
        raise base.PruningError(f"A weight of {jnp.result_type(weight)} has no values.")
    masks_lib.check({"weight": weight}, {"weight": mask})
    return np.asarray(weight), np.asarray(mask)


def _movable(weight: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    w, m = _on_host(weight, mask)
    # JAX 0.7 writes beyond its arrays where it moves integers of two bits.
    if jnp.issubdtype(w.dtype, jnp.integer) and jnp.iinfo(w.dtype).bits < 4:
        raise FormatError(f"JAX does not move {w.dtype} reliably.")
    return w, m


def _on_device(values: np.ndarray) -> jax.Array:
    if (dtype := jnp.result_type(values)) != values.dtype:
        raise base.PruningError(
            f"JAX would cast {values.dtype} to {dtype}; set jax_enable_x64."
        )
    return jnp.asarray(values)


def _full(w: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The mask in the weight's shape, from which `_narrowed` can make it again."""
    if m.shape != w.shape and (m.ndim != w.ndim or not w.size):
        raise FormatError(f"A mask of shape {m.shape} has no pattern in {w.shape}.")
    return np.broadcast_to(m, w.shape)


def _narrowed(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # What the mask was broadcast from is its first entry along such an axis.
    return mask[tuple(slice(size) for size in shape)]
