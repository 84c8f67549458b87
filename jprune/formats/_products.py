"""Products with packed weights, where they pay, and where they only save memory.

On CPUs, whole blocks are faster than the dense product from moderate sparsities on.
n:m is not: a processor without units for it has to put the zeros back first. The
benchmark `sparse_products` of `experiments` has the figures. What is fast everywhere
is a smaller dense array.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.formats import _formats

AT_ONCE = 2**18
"""How many partial results are held at a time: a megabyte of float32, so that they
stay in the cache between the product that makes them and the sum that takes them."""


def block_matmul(
    x: jax.Array, w: _formats.Blocks, *, at_once: int = AT_ONCE
) -> jax.Array:
    """Returns x W, from the blocks of W that are kept.

    y[:, j] = sum over the blocks (i, j) that are kept of x[:, i] W[i, j],

    where an index means a whole row or column of blocks: some blocks at a time, the
    columns of x that they need are gathered, multiplied in one batched product, and
    added to where they belong. Sums are in float32 for narrower types.

    It can be differentiated by x and by the blocks, forwards and backwards: for
    `jax.grad`, which takes floats alone, by way of `with_values`.

    Args:
      x: (..., n_in).
      w: a matrix (n_in, n_out), of a type that multiplies with that of x.
      at_once: how many numbers the products may take before they are summed,
        positive. 1 goes block by block; a very large one makes a single batch.

    Returns:
      (..., n_out), of the type that x and W have together.

    Raises:
      PruningError: if W has not two axes, x not its length, or `at_once` is not
        positive.

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> w = formats.pack_blocks(1, 1)(jnp.array([[1.0, 9.0], [2.0, 3.0]]), mask)
      >>> block_matmul(jnp.array([1.0, 10.0]), w)
      Array([21., 30.], dtype=float32)

    References:
      Gray et al., GPU Kernels for Block-Sparse Weights, 2017 (OpenAI).
    """
    _check_product(x, w)
    if at_once < 1:
        raise base.PruningError(f"Want at_once >= 1, got {at_once}.")
    (rows, columns), (height, width) = w.grid, w.block
    dtype = jnp.result_type(x, w.values)
    # (rows of blocks, examples, height): what one block multiplies lies together.
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


def n_of_m_matmul(x: jax.Array, w: _formats.NOfM) -> jax.Array:
    """Returns x W for W n:m: a reference, which saves memory at rest and no time.

    W is unpacked and multiplied as it is. Sums are in float32 for narrower types.

    Args:
      x: (..., n_in).
      w: a matrix (n_in, n_out), of a type that multiplies with that of x.

    Returns:
      (..., n_out), of the type that x and W have together.

    Raises:
      PruningError: if W has not two axes, or x not its length.

    Example:
      >>> mask = jnp.array([[True], [False]])
      >>> w = formats.pack_n_of_m(1, 2)(jnp.array([[2.0], [9.0]]), mask)
      >>> n_of_m_matmul(jnp.array([5.0, 7.0]), w)
      Array([10.], dtype=float32)
    """
    _check_product(x, w)
    dtype = jnp.result_type(x, w.values)
    y = jnp.matmul(x, w.unpack()[0], preferred_element_type=_wide(dtype))
    return y.astype(dtype)


def with_values(
    w: _formats.Blocks | _formats.NOfM, values: jax.Array
) -> _formats.Blocks | _formats.NOfM:
    """Returns the packed weight with other values in the same places.

    Args:
      w: a packed weight.
      values: an array of the shape of `w.values`.

    Returns:
      The packed weight.

    Raises:
      PruningError: if the shapes differ.

    Example:
      >>> mask = jnp.ones((1, 2), bool)
      >>> w = formats.pack_blocks(1, 1)(jnp.array([[2.0, 3.0]]), mask)
      >>> def loss(values):
      ...     return block_matmul(jnp.array([5.0]), with_values(w, values)).sum()
      >>> jax.grad(loss)(w.values).ravel()
      Array([5., 5.], dtype=float32)
    """
    if jnp.shape(values) != w.values.shape:
        raise base.PruningError(
            f"Want values of shape {w.values.shape}, got {jnp.shape(values)}."
        )
    return dataclasses.replace(w, values=values)


def _check_product(x: jax.Array, w: _formats.Blocks | _formats.NOfM) -> None:
    if len(w.shape) != 2 or jnp.shape(x)[-1:] != w.shape[:1]:
        raise base.PruningError(
            f"x W takes x of (..., n_in) and W of (n_in, n_out); got {jnp.shape(x)} "
            f"and {w.shape}."
        )


def _wide(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The type of sums: float32 where products are of a narrower float."""
    dtype = jnp.dtype(dtype)
    narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else dtype
