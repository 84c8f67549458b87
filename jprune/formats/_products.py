"""Products of dense arrays and packed weights.

On CPUs, products with blocks are faster than dense ones from moderate sparsities on.
Products with n:m weights are not: without hardware for it, the zeros have to be filled
in first. The benchmark `sparse_products` of `experiments` has the figures. On all
devices, smaller dense arrays are faster.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.formats import _packed

AT_ONCE = 2**18
"""Number of partial products held at a time: a megabyte of float32, so that they stay
in the cache until they are summed."""


def block_matmul(
    x: jax.Array, w: _packed.Blocks, *, at_once: int = AT_ONCE
) -> jax.Array:
    """Returns x W, from the kept blocks of W.

    y[:, j] = sum over the kept blocks (i, j) of x[:, i] W[i, j],

    where i and j index rows and columns of blocks. For a batch of blocks at a time, the
    columns of x that they need are gathered, multiplied in one batched product, and
    added to y. Types narrower than float32 are summed in float32.

    Differentiable with respect to x and the blocks, in forward and reverse mode. For
    `jax.grad`, which takes floats only, use `with_values`.

    Args:
      x: (..., n_in) array.
      w: packed matrix of shape (n_in, n_out).
      at_once: number of partial products to hold before they are summed, positive.
        1 takes one block at a time; a very large number takes all in one batch.

    Returns:
      (..., n_out) array, with the common dtype of x and W.

    Raises:
      PruningError: if W does not have two axes, n_in differs, or `at_once` is not
        positive.

    Example:
      >>> from jprune import formats
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> w = formats.pack_blocks(1, 1)(jnp.array([[1.0, 9.0], [2.0, 3.0]]), mask)
      >>> block_matmul(jnp.array([1.0, 10.0]), w)
      Array([21., 30.], dtype=float32)

    References:
      Gray et al., GPU Kernels for Block-Sparse Weights, 2017 (OpenAI).
    """
    _check_product(x, w)
    if at_once < 1:
        raise base.PruningError(f"at_once is a number >= 1; got {at_once}.")
    (rows, columns), (height, width) = w.grid, w.block
    dtype = jnp.result_type(x, w.values)
    # (rows of blocks, examples, height): the factors of a block are contiguous.
    n = math.prod(x.shape[:-1])
    lines = x.reshape(n, rows, height).swapaxes(0, 1)

    def add(sums: jax.Array, some: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        blocks, row, column = some
        parts = jnp.einsum(
            "bnh,bhw->bnw", lines[row], blocks, preferred_element_type=sums.dtype
        )
        return sums.at[column].add(parts), None

    sums = jnp.zeros((columns, n, width), _wide(dtype))
    kept = (w.values, w.rows, w.columns)
    count = w.values.shape[0]
    each = max(1, min(count, at_once // max(1, n * width)))
    full, rest = divmod(count, each)
    if full:
        batches = [a[: full * each].reshape(full, each, *a.shape[1:]) for a in kept]
        sums, _ = lax.scan(add, sums, tuple(batches))
    if rest:
        sums, _ = add(sums, tuple(a[full * each :] for a in kept))
    y = sums.swapaxes(0, 1).reshape(*x.shape[:-1], columns * width)
    return y.astype(dtype)


def n_of_m_matmul(x: jax.Array, w: _packed.NOfM) -> jax.Array:
    """Returns x W for an n:m matrix W: a reference, which saves memory but no time.

    Unpacks W and multiplies. The axis of the groups is contracted, as in the matrix
    units that skip zeros: the product is x W with groups along axis 0, and x Wᵀ for a
    W that is stored as (n_out, n_in), with groups along axis 1. Types narrower than
    float32 are summed in float32.

    Args:
      x: (..., n_in) array.
      w: packed matrix, with n_in entries along the axis of its groups.

    Returns:
      (..., n_out) array, with the common dtype of x and W.

    Raises:
      PruningError: if W does not have two axes, or n_in differs.

    Example:
      >>> from jprune import formats
      >>> mask = jnp.array([[True], [False]])
      >>> w = formats.pack_n_of_m(1, 2)(jnp.array([[2.0], [9.0]]), mask)
      >>> n_of_m_matmul(jnp.array([5.0, 7.0]), w)
      Array([10.], dtype=float32)
    """
    _check_product(x, w, w.axis)
    dtype = jnp.result_type(x, w.values)
    full = jnp.moveaxis(w.unpack()[0], w.axis, 0)
    return jnp.matmul(x, full, preferred_element_type=_wide(dtype)).astype(dtype)


def with_values(
    w: _packed.Blocks | _packed.NOfM, values: jax.Array
) -> _packed.Blocks | _packed.NOfM:
    """Returns a packed weight with other values in the same positions.

    Args:
      w: packed weight.
      values: array of the shape of `w.values`.

    Returns:
      The packed weight with these values.

    Raises:
      PruningError: if the shapes differ.

    Example:
      >>> from jprune import formats
      >>> mask = jnp.ones((1, 2), bool)
      >>> w = formats.pack_blocks(1, 1)(jnp.array([[2.0, 3.0]]), mask)
      >>> def loss(values):
      ...     return block_matmul(jnp.array([5.0]), with_values(w, values)).sum()
      >>> jax.grad(loss)(w.values).ravel()
      Array([5., 5.], dtype=float32)
    """
    if jnp.shape(values) != w.values.shape:
        raise base.PruningError(
            f"values need the shape {w.values.shape}; got {jnp.shape(values)}."
        )
    return dataclasses.replace(w, values=values)


def _check_product(x: Any, w: _packed.Blocks | _packed.NOfM, axis: int = 0) -> None:
    if len(w.shape) != 2 or jnp.shape(x)[-1:] != (w.shape[axis],):
        raise base.PruningError(
            f"The product contracts the last axis of x with axis {axis} of a matrix; "
            f"got shapes {jnp.shape(x)} and {w.shape}."
        )


def _wide(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The dtype of sums: float32 for products of narrower floats."""
    dtype = jnp.dtype(dtype)
    narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else dtype
