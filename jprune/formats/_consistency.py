"""Consistency of packed weights that were read from a file.

A checksum tells that a manifest is what somebody wrote, not that its parts agree. What
is static, such as shapes and patterns, decides how arrays are read, so a contradiction
would give wrong weights without an error.
"""

import math
from typing import Any

import jax
import numpy as np

from jprune.formats import _packed


def check(packed: _packed.Packed, shape: list[int], dtype: str) -> None:
    """Raises unless the parts of a packed weight agree with each other.

    Args:
      packed: packed weight.
      shape: shape that it is said to have.
      dtype: name of the dtype that it is said to have.

    Raises:
      ValueError: names the parts that disagree, with their values.
    """
    _need(_is_shape(packed.shape), f"shape is {packed.shape!r}")
    _need(_is_shape(packed.mask_shape), f"mask_shape is {packed.mask_shape!r}")
    _same("shape", list(packed.shape), shape)
    _same("dtype", packed.values.dtype.name, dtype)
    _need(
        _broadcasts(packed.mask_shape, packed.shape),
        f"mask_shape {packed.mask_shape} does not broadcast to shape {packed.shape}",
    )
    match packed:
        case _packed.Dense():
            if packed.bits.size:  # none if everything is kept
                _check_bits("bits", packed.bits, math.prod(packed.mask_shape))
        case _packed.BitMask():
            _check_bit_mask(packed)
        case _packed.NOfM():
            _check_n_of_m(packed)
        case _packed.Blocks():
            _check_blocks(packed)


def _check_bit_mask(packed: _packed.BitMask) -> None:
    size = math.prod(packed.mask_shape)
    _check_bits("bits", packed.bits, size)
    kept = int(np.unpackbits(np.asarray(packed.bits), count=size).sum())
    # Each entry of the mask is for as many weights.
    kept *= math.prod(packed.shape) // max(1, size)
    _same("shape of values", packed.values.shape, (kept,))


def _check_n_of_m(packed: _packed.NOfM) -> None:
    n, m, axis = packed.n, packed.m, packed.axis
    _need(all(type(x) is int for x in (n, m, axis)), f"n, m, axis are {n, m, axis}")
    _need(1 <= n <= m <= 256, f"n:m is {n}:{m}")
    _need(0 <= axis < len(packed.shape), f"axis {axis} is not in shape {packed.shape}")
    groups, rest = divmod(packed.shape[axis], m)
    _need(not rest, f"{m} does not divide axis {axis} of shape {packed.shape}")
    shape = (*packed.shape[:axis], groups * n, *packed.shape[axis + 1 :])
    _same("shape of values", packed.values.shape, shape)
    count = math.prod(shape) * (m - 1).bit_length()
    _check_bits("positions", packed.positions, count)


def _check_blocks(packed: _packed.Blocks) -> None:
    block, shape = packed.block, packed.shape
    _need(_is_shape(block) and len(block) == 2 and min(block) > 0, f"block is {block}")
    _need(len(shape) >= 2, f"shape {shape} is not that of a matrix")
    _need(
        not (shape[-2] % block[0] or shape[-1] % block[1]),
        f"blocks of shape {block} do not divide shape {shape}",
    )
    kept = len(packed.rows) if packed.rows.ndim == 1 else -1
    _same("shape of values", packed.values.shape, (kept, *block))
    places = []
    for name, size in zip(("rows", "columns"), packed.grid, strict=True):
        place = np.asarray(getattr(packed, name))
        _same(
            f"type and shape of {name}",
            (place.dtype.name, place.shape),
            ("int32", (kept,)),
        )
        _need(
            bool(np.all((place >= 0) & (place < size))),
            f"{name} are not in [0, {size})",
        )
        places.append(place.astype(np.int64))
    order = places[0] * packed.grid[1] + places[1]
    _need(bool(np.all(np.diff(order) > 0)), "rows and columns are not in order")


def _check_bits(name: str, bits: jax.Array, count: int) -> None:
    expected = ("uint8", (-(-count // 8),))
    _same(f"type and shape of {name}", (bits.dtype.name, bits.shape), expected)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _broadcasts(mask: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(mask, shape) == shape
    except ValueError:
        return False


def _same(what: str, found: Any, expected: Any) -> None:
    _need(
        found == expected, f"the {what} is {found}, but its other parts say {expected}"
    )


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"its parts contradict each other: {what}")
