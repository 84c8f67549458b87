"""Leaves of all shapes as the rows of one array, so that one program serves them all.

A program for a leaf is compiled for its shape. Inside a trace, a network of a dozen
shapes would compile each reduction of a search a dozen times, which takes longer than
compiling the step of its optimizer. Cut into rows of one length, the leaves share one
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


def cut(
    leaves: Sequence[jax.Array], dtype: jnp.dtype, padding: Any
) -> tuple[jax.Array, Layout]:
    """Cuts leaves into rows; every leaf begins a row of its own, and has at least one.

    Args:
      leaves: arrays of any shapes.
      dtype: dtype of the rows.
      padding: value of the entries after the end of a leaf.

    Returns:
      An array (rows, length) and its layout.
    """
    sizes = np.array([np.size(x) for x in leaves])
    length = _row_length(sizes)
    numbers = np.maximum(1, -(-sizes // length))
    parts = []
    for x, n in zip(leaves, numbers, strict=True):
        flat = jnp.ravel(x).astype(dtype)
        flat = jnp.pad(flat, (0, n * length - flat.size), constant_values=padding)
        parts.append(flat.reshape(n, length))
    first = np.concatenate([np.arange(n, dtype=np.int32) * length for n in numbers])
    owner = np.repeat(np.arange(len(leaves), dtype=np.int32), numbers)
    return jnp.concatenate(parts), Layout(owner, first)


def join(rows: jax.Array, layout: Layout, like: Sequence[Any]) -> list[jax.Array]:
    """Returns the leaves that were cut into rows.

    Args:
      rows: array (rows, length).
      layout: layout from `cut`.
      like: the leaves, for their shapes.

    Returns:
      A list of arrays.
    """
    bounds = np.searchsorted(layout.owner, np.arange(len(like) + 1))
    return [
        slice_at(rows, a, b - a).reshape(-1)[: np.size(x)].reshape(np.shape(x))
        for x, a, b in zip(like, bounds[:-1], bounds[1:], strict=True)
    ]


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


def _row_length(sizes: np.ndarray) -> int:
    """The longest row, a power of two, with which at most an eighth is padding."""
    length = LONGEST
    while length > _SHORTEST:
        padded = np.maximum(1, -(-sizes // length)) * length
        if padded.sum() * 8 <= sizes.sum() * 9:
            break
        length //= 2
    return length
