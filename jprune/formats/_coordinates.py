"""Pruned weights as JAX's own sparse matrices: BCOO and BCSR. Mask in, mask out.

For what `jax.experimental.sparse` can do with them. At rest they are large: four
bytes for each coordinate of each weight.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from jprune._core import base
from jprune.formats import _bits, _formats


def to_bcoo(weight: Any, mask: Any) -> sparse.BCOO:
    """Returns the kept weights with their coordinates.

    Args:
      weight: an array of any type but PRNG keys.
      mask: its mask, of a shape that broadcasts along whole axes.

    Returns:
      A matrix with the kept weights, zeros among them, in row-major order.

    Raises:
      PruningError: if the mask is not one of the weight, or JAX would cast it.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> matrix = to_bcoo(jnp.array([[0.0, 1.0], [2.0, 3.0]]), mask)
      >>> matrix.data, matrix.indices.tolist()  # the zero that is kept is there
      (Array([0., 3.], dtype=float32), [[0, 0], [1, 1]])
    """
    packed = _formats.pack_bits(weight, mask)
    kept = np.broadcast_to(np.asarray(mask), packed.shape)
    indices = jnp.asarray(np.argwhere(kept).astype(np.int32))
    return sparse.BCOO(
        (packed.values, indices),
        shape=packed.shape,
        indices_sorted=True,
        unique_indices=True,
    )


def of_bcoo(matrix: sparse.BCOO) -> tuple[jax.Array, jax.Array]:
    """Returns the weight and the mask of a matrix.

    Args:
      matrix: without batch and dense axes. Entries at the same place are added,
        unless it says that there are none: then nothing is, and every bit stays.

    Returns:
      The weight, zero where the matrix stores nothing, and where it stores, in
      the weight's shape.

    Raises:
      PruningError: if the matrix has such axes.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> of_bcoo(to_bcoo(jnp.ones((2, 2)), mask))[1].tolist()
      [[True, False], [False, True]]
    """
    if matrix.n_batch or matrix.n_dense:
        raise base.PruningError(
            f"Want no batch and no dense axes, got {matrix.n_batch} and "
            f"{matrix.n_dense}: see bcoo_update_layout."
        )
    place = tuple(matrix.indices[:, axis] for axis in range(matrix.indices.shape[1]))
    # Entries that only fill the arrays up have indices out of bounds.
    mask = jnp.zeros(matrix.shape, bool).at[place].set(True, mode="drop")

    def spread(values: jax.Array) -> jax.Array:
        return jnp.zeros(matrix.shape, values.dtype).at[place].set(values, mode="drop")

    if matrix.unique_indices:
        return _bits.moved(matrix.data, spread), mask
    zeros = jnp.zeros(matrix.shape, matrix.data.dtype)
    return zeros.at[place].add(matrix.data, mode="drop"), mask


def to_bcsr(weight: Any, mask: Any) -> sparse.BCSR:
    """Returns the kept weights row by row.

    Args:
      weight: an array of two axes, of any type but PRNG keys.
      mask: its mask, of a shape that broadcasts along whole axes.

    Returns:
      A matrix with the kept weights, zeros among them, in row-major order.

    Raises:
      PruningError: if the weight has not two axes, the mask is not one of the
        weight, or JAX would cast it.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> matrix = to_bcsr(jnp.array([[0.0, 1.0], [2.0, 3.0]]), mask)
      >>> matrix.data, matrix.indices.tolist(), matrix.indptr.tolist()
      (Array([0., 3.], dtype=float32), [0, 1], [0, 1, 2])
    """
    if np.ndim(weight) != 2:
        raise base.PruningError(f"Rows are of two axes, got {np.shape(weight)}.")
    matrix = to_bcoo(weight, mask)
    ends = np.bincount(matrix.indices[:, 0], minlength=matrix.shape[0]).cumsum()
    return sparse.BCSR(
        (
            matrix.data,
            matrix.indices[:, 1],
            jnp.asarray(np.concatenate([[0], ends]).astype(np.int32)),
        ),
        shape=matrix.shape,
        indices_sorted=True,
        unique_indices=True,
    )


def of_bcsr(matrix: sparse.BCSR) -> tuple[jax.Array, jax.Array]:
    """Returns the weight and the mask of a matrix.

    Args:
      matrix: without batch and dense axes; as `of_bcoo`.

    Returns:
      As `of_bcoo`.

    Raises:
      PruningError: as `of_bcoo`.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> of_bcsr(to_bcsr(jnp.ones((2, 2)), mask))[1].tolist()
      [[True, False], [False, True]]
    """
    indices = matrix.to_bcoo().indices
    # That forgets that they are unique.
    unique = matrix.unique_indices
    return of_bcoo(
        sparse.BCOO((matrix.data, indices), shape=matrix.shape, unique_indices=unique)
    )
