"""Conversions to and from the sparse matrices of JAX, BCOO and BCSR.

For the operations of `jax.experimental.sparse`. For storage they are large: four bytes
for each coordinate of each kept weight. The functions that make its matrices import it
themselves, as it imports SciPy, which takes as long as all of jprune.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base
from jprune.formats import _bits, _formats

if TYPE_CHECKING:
    from jax.experimental import sparse


def to_bcoo(weight: Any, mask: Any) -> "sparse.BCOO":
    """Converts a pruned weight to BCOO: the kept values with their coordinates.

    Args:
      weight: array of any type but PRNG keys.
      mask: mask of the weight; broadcasts to it along whole axes.

    Returns:
      A BCOO array of the kept values in row-major order, kept zeros included.

    Raises:
      PruningError: if the mask does not fit the weight, or JAX would cast the weight.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> matrix = to_bcoo(jnp.array([[0.0, 1.0], [2.0, 3.0]]), mask)
      >>> matrix.data, matrix.indices.tolist()  # with the kept zero
      (Array([0., 3.], dtype=float32), [[0, 0], [1, 1]])
    """
    from jax.experimental import sparse

    packed = _formats.pack_bits(weight, mask)
    kept = np.broadcast_to(np.asarray(mask), packed.shape)
    indices = jnp.asarray(np.argwhere(kept).astype(np.int32))
    return sparse.BCOO(
        (packed.values, indices),
        shape=packed.shape,
        indices_sorted=True,
        unique_indices=True,
    )


def of_bcoo(matrix: "sparse.BCOO") -> tuple[jax.Array, jax.Array]:
    """Converts a BCOO array to a weight and its mask.

    Args:
      matrix: BCOO array without batch and dense axes. Entries with equal coordinates
        are added; if `unique_indices` is True, values are moved exactly, to the bit.

    Returns:
      The weight, with zeros where no entry is stored, and the mask of the stored
      entries, in the weight's shape.

    Raises:
      PruningError: if the matrix has batch or dense axes.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> of_bcoo(to_bcoo(jnp.ones((2, 2)), mask))[1].tolist()
      [[True, False], [False, True]]
    """
    if matrix.n_batch or matrix.n_dense:
        raise base.PruningError(
            f"The matrix has {matrix.n_batch} batch axes and {matrix.n_dense} dense "
            "axes; remove them with jax.experimental.sparse.bcoo_update_layout."
        )
    place = tuple(matrix.indices[:, axis] for axis in range(matrix.indices.shape[1]))
    # Padding has indices out of bounds.
    mask = jnp.zeros(matrix.shape, bool).at[place].set(True, mode="drop")

    def spread(values: jax.Array) -> jax.Array:
        return jnp.zeros(matrix.shape, values.dtype).at[place].set(values, mode="drop")

    if matrix.unique_indices:
        return _bits.moved(matrix.data, spread), mask
    zeros = jnp.zeros(matrix.shape, matrix.data.dtype)
    return zeros.at[place].add(matrix.data, mode="drop"), mask


def to_bcsr(weight: Any, mask: Any) -> "sparse.BCSR":
    """Converts a pruned matrix to BCSR: the kept values row by row.

    Args:
      weight: array of two axes, of any type but PRNG keys.
      mask: mask of the weight; broadcasts to it along whole axes.

    Returns:
      A BCSR array of the kept values in row-major order, kept zeros included.

    Raises:
      PruningError: if the weight does not have two axes, the mask does not fit it, or
        JAX would cast it.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> matrix = to_bcsr(jnp.array([[0.0, 1.0], [2.0, 3.0]]), mask)
      >>> matrix.data, matrix.indices.tolist(), matrix.indptr.tolist()
      (Array([0., 3.], dtype=float32), [0, 1], [0, 1, 2])
    """
    from jax.experimental import sparse

    if np.ndim(weight) != 2:
        raise base.PruningError(
            f"BCSR holds weights of two axes; got shape {np.shape(weight)}."
        )
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


def of_bcsr(matrix: "sparse.BCSR") -> tuple[jax.Array, jax.Array]:
    """Converts a BCSR array to a weight and its mask.

    Args:
      matrix: BCSR array without batch and dense axes, as in `of_bcoo`.

    Returns:
      The weight, with zeros where no entry is stored, and the mask of the stored
      entries, in the weight's shape.

    Raises:
      PruningError: if the matrix has batch or dense axes.

    Example:
      >>> mask = jnp.array([[True, False], [False, True]])
      >>> of_bcsr(to_bcsr(jnp.ones((2, 2)), mask))[1].tolist()
      [[True, False], [False, True]]
    """
    from jax.experimental import sparse

    indices = matrix.to_bcoo().indices
    # `to_bcoo` does not keep `unique_indices`.
    unique = matrix.unique_indices
    return of_bcoo(
        sparse.BCOO((matrix.data, indices), shape=matrix.shape, unique_indices=unique)
    )
