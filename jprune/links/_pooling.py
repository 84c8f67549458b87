"""The middle links of a pruner, from scores to scores.

`pool_over_*` reduces the scores of weights to scores of channels or blocks.
`normalize_by_*` makes the scores of different layers comparable.

    score_by_magnitude, normalize_by_lamp, keep_top(scope="global")    LAMP
    score_by_magnitude, pool_over_axes(l2_norm), keep_top              filter pruning
    score_by_magnitude, pool_over_blocks((4, 4)), keep_top             block sparsity
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import tree
from jprune._core import base, compat, precision
from jprune.links._common import axes_of_role, check_function

Reduce = Callable[..., jax.Array]
"""`reduce(x, axis=..., keepdims=...)`, such as `jnp.sum`, `jnp.mean`, `jnp.max`."""

_REDUCE = "(x, axis=..., keepdims=...), such as jnp.sum or jprune.l2_norm"


def l2_norm(
    x: jax.Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> jax.Array:
    """Returns the Euclidean norm over axes, sqrt(sum x^2).

    Args:
      x: real array; its squares may be out of the range of float32.
      axis: axes to reduce; all of them if None.
      keepdims: keep reduced axes, with size one.

    Returns:
      The norms, in float32 or wider.

    Example:
      >>> l2_norm(jnp.array([[3.0, 4.0], [0.0, 1.0]]), axis=1)
      Array([5., 1.], dtype=float32)
    """
    # Scaled: squares of large or tiny scores are not representable.
    y, power = precision.scaled(precision.wide(x), axis)
    norm = jnp.sqrt(jnp.sum(jnp.square(y), axis=axis, keepdims=keepdims))
    return norm * power.reshape(norm.shape)


def pool_over_axes(
    reduce: Reduce = jnp.sum,
    *,
    keep: Literal["output", "input"] = "output",
    layout: tree.KernelLayout = tree.kernel_axes,
) -> base.Pruner:
    """Scores whole channels: reduces the scores of a kernel to one per channel.

    The masks have size one along the pooled axes, so a channel is kept or pruned as a
    whole: filters with `keep="output"`, input channels with `keep="input"`.

    Args:
      reduce: function `(x, axis=..., keepdims=...)` that combines scores. Of
        magnitudes, `jnp.sum` gives the l1 norm and `l2_norm` the l2 norm.
      keep: role of the axes that are not pooled, "output" or "input".
      layout: function `(path, leaf) -> KernelAxes`, the roles of the axes.

    Returns:
      A link: scores -> scores of size one along each pooled axis.

    Raises:
      PruningError: if `keep` is not one of its values, `reduce` or `layout` is no
        function, or (when used) a leaf has fewer than two axes, or no axis with that
        role; names the leaf.

    Example:
      >>> link = pool_over_axes()
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [1.0, 2.0]])}
      >>> link.update(params, link.init(params), params)[0]
      {'kernel': Array([[4., 3.]], dtype=float32)}

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2017, arXiv:1608.08710.
    """
    check_function(reduce, "reduce", _REDUCE)
    check_function(layout, "layout", "(path, leaf) -> KernelAxes")
    if keep not in ("output", "input"):
        raise base.PruningError(f"keep is 'output' or 'input'; got {keep!r}.")

    def leaf(path: str, w: Any, x: jax.Array) -> jax.Array:
        stay = axes_of_role(layout, keep, path, w)
        axes = tuple(i for i in range(x.ndim) if i not in stay)
        return reduce(x, axis=axes, keepdims=True)

    return _stateless(leaf)


def pool_over_blocks(block: tuple[int, ...], reduce: Reduce = jnp.sum) -> base.Pruner:
    """Scores blocks of the last axes of a leaf, with one score per block.

    `keep_*` repeats the mask of a block for its entries.

    Args:
      block: shape of a block along the last `len(block)` axes, positive.
      reduce: function `(x, axis=...)` that combines scores.

    Returns:
      A link: scores of shape (..., a, b) -> scores of shape (..., a / block[0],
      b / block[1]).

    Raises:
      PruningError: if `block` is no sequence of positive integers, or `reduce` no
        function, as when they are swapped; or (when used) if a size does not divide its
        axis; names the leaf.

    Example:
      >>> link = pool_over_blocks((1, 2))
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [1.0, 2.0]])}
      >>> link.update(params, link.init(params), params)[0]
      {'kernel': Array([[4.],
             [3.]], dtype=float32)}
    """
    if not _is_shape(block):
        name = getattr(block, "__name__", repr(block)) if callable(block) else block
        raise base.PruningError(
            "block is a shape of positive integers, and reduce a function: "
            f"pool_over_blocks((4, 4), jnp.sum); got block={name!s:.80}."
        )
    check_function(reduce, "reduce", _REDUCE)
    block = tuple(map(int, block))

    def leaf(path: str, w: Any, x: jax.Array) -> jax.Array:
        del w
        lead, last = x.shape[: -len(block)], x.shape[-len(block) :]
        if len(last) != len(block) or any(
            n % b for n, b in zip(last, block, strict=True)
        ):
            raise base.PruningError(
                f"Blocks of {block} do not divide the last axes of {path!r}, shape "
                f"{x.shape}: exclude the leaf with where=, or choose other blocks."
            )
        pairs = [(n // b, b) for n, b in zip(last, block, strict=True)]

        def pool(x: jax.Array) -> jax.Array:
            split = x.reshape(*lead, *(size for pair in pairs for size in pair))
            return reduce(split, axis=tuple(range(len(lead) + 1, split.ndim, 2)))

        return compat.auto_partition(pool, x)

    return _stateless(leaf)


def normalize_by_leaf_norm(norm: Reduce = l2_norm) -> base.Pruner:
    """Divides the scores of each leaf by their norm, u / ||u||.

    Makes leaves of different scale comparable in a global selection.

    Args:
      norm: function `(x) -> scalar` with norm(a x) = a norm(x) for a > 0.

    Returns:
      A link: scores -> scores of the same shapes, in float32 or wider; leaves of zeros
      stay zero.

    Raises:
      PruningError: if `norm` is no function; at `update`, if the params are missing.

    Example:
      >>> link = normalize_by_leaf_norm()
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> link.update(params, link.init(params), params)[0]
      {'w': Array([0.6, 0.8], dtype=float32)}
    """
    check_function(norm, "norm", "(x) -> scalar, such as jprune.l2_norm")

    def leaf(path: str, w: Any, x: jax.Array) -> jax.Array:
        del path, w
        # Wide and scaled, which cancels: the norm itself may not be representable.
        x, _ = precision.scaled(precision.wide(x))
        total = norm(x)
        return x / jnp.where(total == 0, jnp.ones_like(total), total).astype(x.dtype)

    return _stateless(leaf)


def normalize_by_lamp() -> base.Pruner:
    """Normalizes magnitudes to LAMP scores, u_i^2 / sum over u_j >= u_i of u_j^2.

    Layer-adaptive magnitude-based pruning. The largest weight of each leaf scores 1, so
    a global selection keeps the largest weight of every leaf as long as it keeps as
    many weights as there are leaves. Of equal weights, the one of lower index counts as
    larger.

    Returns:
      A link: magnitudes -> scores in [0, 1], in float32 or wider; leaves of zeros stay
      zero.

    Raises:
      PruningError: at `update`, if the params are not given.

    Example:
      >>> link = normalize_by_lamp()
      >>> params = {"w": jnp.array([2.0, 1.0])}
      >>> link.update(params, link.init(params), params)[0]
      {'w': Array([1. , 0.2], dtype=float32)}

    References:
      Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2021,
      arXiv:2010.07611, equation 4.
    """

    def leaf(path: str, w: Any, x: jax.Array) -> jax.Array:
        del path, w
        return compat.auto_partition(_lamp, x, like=x)

    return _stateless(leaf)


def _lamp(x: jax.Array) -> jax.Array:
    # Scaled, which cancels: squares of large or tiny weights are not representable.
    u, _ = precision.scaled(jnp.ravel(precision.wide(x)))
    squares = jnp.square(u)
    order = jnp.argsort(-u, stable=True)
    tail = jnp.cumsum(squares[order])
    lamp = squares[order] / jnp.where(tail > 0, tail, 1)
    return jnp.zeros_like(u).at[order].set(lamp).reshape(x.shape)


def spread(mask: jax.Array, weight: jax.Array) -> jax.Array:
    """Broadcasts the mask of pooled scores to the blocks of a leaf.

    Axes of size one or of the leaf's size do not change. Along the other axes each
    entry stands for a block, and is repeated for its entries.

    Args:
      mask: boolean array with as many axes as the leaf; its sizes divide the leaf's.
      weight: leaf.

    Returns:
      The mask, with size one or the leaf's size along each axis.

    Example:
      >>> spread(jnp.array([True, False]), jnp.ones(4))
      Array([ True,  True, False, False], dtype=bool)
    """
    repeats = [
        1 if m in (1, n) else n // m
        for m, n in zip(mask.shape, np.shape(weight), strict=True)
    ]
    if math.prod(repeats) == 1:
        return mask
    wide = tuple(s for m, r in zip(mask.shape, repeats, strict=True) for s in (m, r))

    def repeat(mask: jax.Array) -> jax.Array:
        split = mask.reshape(tuple(s for m in mask.shape for s in (m, 1)))
        shape = [m * r for m, r in zip(mask.shape, repeats, strict=True)]
        return jnp.broadcast_to(split, wide).reshape(shape)

    return compat.auto_partition(repeat, mask, like=weight)


def _is_shape(block: Any) -> bool:
    if not isinstance(block, Sequence) or isinstance(block, str) or not block:
        return False
    return all(isinstance(b, int | np.integer) and b >= 1 for b in block)


def _stateless(leaf: Callable[[str, Any, jax.Array], jax.Array]) -> base.Pruner:
    """A link without state from a function of a leaf's path, value and scores."""

    def update(updates: base.Scores, state: Any, params: Any = None, **extra: Any):
        del extra
        if params is None:
            raise base.PruningError(
                "A pruner needs the params: call update(grads, state, params)."
            )
        return tree.map_with_path(leaf, params, updates), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
