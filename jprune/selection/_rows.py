"""Leaves of all shapes as the rows of one array, so that one program serves them all.

A program for a leaf is compiled for its shape. A network of a dozen shapes would
compile each reduction of a search a dozen times; inside a trace, that takes longer than
to compile the step of its optimizer. Cut into rows of one length, the leaves share one
program, for the price of a copy of their scores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LONGEST = 2**12  # entries of a row
_SHORTEST = 2**5


class Layout(NamedTuple):
    """Which rows belong to which of B leaves.

    Attributes:
      owner: (R,) int32 in [0, B), the leaf of each row, in order.
      first: (R,) int32, the row-major index of the first entry of each row in its leaf.
    """

    owner: np.ndarray
    first: np.ndarray


def layout_of(leaves: Sequence[Any]) -> tuple[Layout, int]:
    """Returns how leaves are cut into rows; each has rows of its own, at least one.

    Args:
      leaves: arrays of any shapes.

    Returns:
      A layout, and the length of its rows.
    """
    sizes = np.array([np.size(x) for x in leaves])
    length = _row_length(sizes)
    numbers = np.maximum(1, -(-sizes // length))
    first = np.concatenate([np.arange(n, dtype=np.int32) * length for n in numbers])
    owner = np.repeat(np.arange(len(leaves), dtype=np.int32), numbers)
    return Layout(owner, first), length


def cut(
    leaves: Sequence[jax.Array], layout: Layout, length: int, dtype: Any, padding: Any
) -> jax.Array:
    """Cuts traced leaves into rows.

    Args:
      leaves: arrays of any shapes.
      layout: their layout.
      length: length of a row.
      dtype: dtype of the rows.
      padding: value of the entries after the end of a leaf.

    Returns:
      An array (rows, length).
    """
    numbers = np.bincount(layout.owner)
    parts = []
    for x, n in zip(leaves, numbers, strict=True):
        flat = jnp.ravel(x).astype(dtype)
        flat = jnp.pad(flat, (0, n * length - flat.size), constant_values=padding)
        parts.append(flat.reshape(n, length))
    return jnp.concatenate(parts)


def cut_on_host(
    leaves: Sequence[np.ndarray], layout: Layout, length: int, dtype: Any, padding: Any
) -> tuple[np.ndarray, Layout]:
    """Cuts known leaves into rows, whose number is rounded up by an eighth at most.

    Args:
      leaves: arrays of any shapes.
      layout: their layout.
      length: length of a row.
      dtype: dtype of the rows.
      padding: value of the entries after the end of a leaf, and of the rows after all
        leaves, so that few programs serve all trees.

    Returns:
      An array (rows, length), and a layout in which the last leaf owns those rows.
    """
    more = _rounded_up(len(layout.owner)) - len(layout.owner)
    rows = np.full((len(layout.owner) + more, length), padding, dtype)
    starts = np.searchsorted(layout.owner, np.arange(len(leaves)))
    for x, start in zip(leaves, starts, strict=True):
        rows[start:].reshape(-1)[: x.size] = x.ravel()
    after = layout.first[-1] + length * np.arange(1, more + 1, dtype=np.int32)
    owner = np.pad(layout.owner, (0, more), "edge")
    return rows, Layout(owner, np.concatenate([layout.first, after]))


def join(rows: Any, layout: Layout, like: Sequence[Any]) -> list[Any]:
    """Returns the leaves that were cut into rows.

    Args:
      rows: array (rows, length), traced or of NumPy.
      layout: their layout.
      like: the leaves, for their shapes.

    Returns:
      A list of arrays, of NumPy if the rows are.
    """
    bounds = np.searchsorted(layout.owner, np.arange(len(like) + 1))
    at = slice_at if isinstance(rows, jax.core.Tracer) else _slice
    return [
        at(rows, a, b - a).reshape(-1)[: np.size(x)].reshape(np.shape(x))
        for x, a, b in zip(like, bounds[:-1], bounds[1:], strict=True)
    ]


def _slice(x: np.ndarray, start: int, size: int) -> np.ndarray:
    return x[start : start + size]


def slice_at(x: jax.Array, start: int, size: int) -> jax.Array:
    """Returns `x[start : start + size]`, with a start that is hidden from XLA.

    XLA compiles equal kernels once. With a constant start the kernels of all slices
    differ, and compiling them took nearly all of the time for a tree of a thousand
    leaves. XLA moves a constant scalar into the kernel, even from behind a barrier; it
    does not move a constant of two entries.

    Args:
      x: array.
      start: first index along the first axis.
      size: length of the result along that axis.

    Returns:
      An array.
    """
    halves = lax.optimization_barrier(jnp.asarray(np.array([start, 0], np.int32)))
    return lax.dynamic_slice_in_dim(x, jnp.sum(halves), size)


def _rounded_up(n: int) -> int:
    """The next number of four significant bits: n, and at most an eighth of it more."""
    step = 1 << max(0, n.bit_length() - 4)
    return -(-n // step) * step


def _row_length(sizes: np.ndarray) -> int:
    """The longest row, a power of two, with which at most an eighth is padding."""
    length = LONGEST
    while length > _SHORTEST:
        padded = np.maximum(1, -(-sizes // length)) * length
        if padded.sum() * 8 <= sizes.sum() * 9:
            break
        length //= 2
    return length
