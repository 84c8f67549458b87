"""Packed weights: the types of arrays that formats make, and the way back.

Each is a dataclass of arrays, with static shape, n, m and block: `jit` compiles for
them, `jax.tree.map` skips them, and packed weights of different shapes have different
tree structures. (In a NamedTuple these numbers would be leaves, which `jit` would
trace, and functions that scale all leaves would scale.)

Unpacking can be jitted, vmapped and fused.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jprune.formats import _bits

_STATIC = {"static": True}


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


def is_packed(x: Any) -> bool:
    """Tells whether a value is a packed weight: the `is_leaf` of trees of them.

    Args:
      x: anything.

    Returns:
      True for a packed weight, of any format.

    Example:
      >>> from jprune import formats
      >>> tree = formats.pack_tree({"w": jnp.arange(80.0)}, {"w": jnp.arange(80) < 8})
      >>> is_packed(tree), is_packed(tree["w"])
      (False, True)
      >>> jax.tree.map(lambda x: x.shape, tree, is_leaf=is_packed)
      {'w': (80,)}
    """
    return isinstance(x, Packed)


def _narrowed(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Along a broadcast axis all entries are equal, so the first one is the mask's.
    return mask[tuple(slice(size) for size in shape)]
