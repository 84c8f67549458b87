"""Mask trees: apply, combine, measure, and pack to bits.

A mask tree has exactly the params' tree. Each leaf is a boolean array that
broadcasts to its parameter: the full shape, `(1, n)` for whole channels, or a
scalar `True` for a leaf that is never pruned. True = keep.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import base, tree


def apply(params: base.Params, masks: base.Masks) -> base.Params:
    """Returns the params with zeros where the masks are False.

    z = w where m, else 0. Never a product, so that an infinity or a NaN in a
    pruned place becomes a zero too, and no dtype changes.

    Args:
      params: any pytree of arrays.
      masks: its masks.

    Returns:
      The params' tree, shapes and dtypes.

    Raises:
      PruningError: if the trees differ or a mask does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> apply({"w": jnp.array([2.0, jnp.nan])}, {"w": jnp.array([True, False])})
      {'w': Array([2., 0.], dtype=float32)}
    """
    masks = check(params, masks)
    return jax.tree.map(lambda w, m: jnp.where(m, w, jnp.zeros_like(w)), params, masks)


def check(params: base.Params, masks: base.Masks) -> base.Masks:
    """Returns the masks in the params' tree; raises unless they are masks of them.

    Trees that differ only in the boxes around their arrays are the same: Flax
    NNX's Optimizer keeps masks in a kind of Variable of its own.

    Args:
      params: any pytree of arrays (or `jax.ShapeDtypeStruct`s).
      masks: the tree to check.

    Returns:
      The masks, with exactly the params' tree.

    Raises:
      PruningError: if the trees differ, a mask is not boolean, or its shape does
        not broadcast to its leaf's; names the leaf.
    """
    treedef = jax.tree.structure(params)
    if treedef != jax.tree.structure(masks):
        ours, theirs = tree.leaf_paths(params), tree.leaf_paths(masks)
        if ours != theirs:
            raise base.PruningError(
                "The masks' tree is not the params' tree. Without a mask: "
                f"{sorted(set(ours) - set(theirs))}; without a parameter: "
                f"{sorted(set(theirs) - set(ours))}."
            )
        masks = treedef.unflatten(jax.tree.leaves(masks))
    tree.map_with_path(_check_leaf, params, masks)
    return masks


def _check_leaf(path: str, w: Any, m: Any) -> None:
    shape, fits = np.shape(w), np.shape(m)
    if jnp.result_type(m).kind != "b":
        raise base.PruningError(f"The mask of {path!r} has type {jnp.result_type(m)}.")
    if fits != () and not (
        len(fits) == len(shape)
        and all(a in (1, b) for a, b in zip(fits, shape, strict=True))
    ):
        raise base.PruningError(
            f"The mask of {path!r} has shape {fits}, which does not broadcast to the "
            f"parameter's {shape} along whole axes."
        )


def full(params: base.Params) -> base.Masks:
    """Returns masks that keep everything: a scalar True for each leaf."""
    return jax.tree.map(lambda _: jnp.ones((), bool), params)


def intersect(*masks: base.Masks) -> base.Masks:
    """Returns masks that keep what all the given masks keep.

    Args:
      *masks: at least one mask tree of the same params.

    Returns:
      The masks' tree; shapes broadcast.
    """
    return jax.tree.map(lambda *m: _fold(jnp.logical_and, m), *masks)


def unite(*masks: base.Masks) -> base.Masks:
    """Returns masks that keep what any of the given masks keeps.

    Args:
      *masks: at least one mask tree of the same params.

    Returns:
      The masks' tree; shapes broadcast.
    """
    return jax.tree.map(lambda *m: _fold(jnp.logical_or, m), *masks)


def _fold(op: Any, masks: tuple[Any, ...]) -> jax.Array:
    out = jnp.asarray(masks[0])
    for m in masks[1:]:
        out = op(out, m)
    return out


def kept(params: base.Params, masks: base.Masks) -> base.Counts:
    """Returns the number of weights kept in each leaf.

    Args:
      params: any pytree of arrays.
      masks: its masks; an entry that stands for a channel counts its weights.

    Returns:
      The params' tree of int32 scalars.
    """
    masks = check(params, masks)
    return jax.tree.map(
        lambda w, m: (
            jnp.sum(m, dtype=jnp.int32)
            * np.int32(math.prod(np.shape(w)) // max(1, math.prod(np.shape(m))))
        ),
        params,
        masks,
    )


def sparsity_per_leaf(params: base.Params, masks: base.Masks) -> Any:
    """Returns the fraction removed in each leaf; an empty leaf has 0.

    Args:
      params: any pytree of arrays.
      masks: its masks.

    Returns:
      The params' tree of float32 scalars in [0, 1].
    """
    return jax.tree.map(
        lambda w, k: (
            1 - k.astype(jnp.float32) / max(1, math.prod(np.shape(w)))
            if math.prod(np.shape(w))
            else jnp.zeros((), jnp.float32)
        ),
        params,
        kept(params, masks),
    )


def sparsity(params: base.Params, masks: base.Masks) -> jax.Array:
    """Returns the fraction removed of all the weights under non-scalar masks.

    A leaf with a scalar mask is never pruned and does not count: the sparsity
    of what can be pruned is the figure that papers give. For the share of the
    whole model see `jprune.summary`.

    Args:
      params: any pytree of arrays.
      masks: its masks.

    Returns:
      A float32 scalar in [0, 1]; 0 if nothing can be pruned.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
      >>> masks = {"w": jnp.array([[True, False]]), "b": jnp.array(True)}
      >>> float(sparsity(params, masks))
      0.5
    """
    counts = jax.tree.leaves(kept(params, masks))
    prunable = [
        (math.prod(np.shape(w)), k)
        for w, m, k in zip(
            jax.tree.leaves(params), jax.tree.leaves(masks), counts, strict=True
        )
        if np.shape(m) != ()
    ]
    size = sum(n for n, _ in prunable)
    # In float32 from here: an int32 sum of the counts would wrap at 2^31.
    removed = sum((n - k).astype(jnp.float32) for n, k in prunable)
    return jnp.asarray(removed / float(max(1, size)), jnp.float32)


def pack(masks: base.Masks) -> Any:
    """Returns the masks as bits: an eighth of a byte a weight.

    Args:
      masks: a mask tree.

    Returns:
      The masks' tree of uint8 vectors, ceil(size / 8) long, first bit highest.
    """
    return jax.tree.map(lambda m: jnp.packbits(jnp.ravel(m)), masks)


def unpack(packed: Any, shapes: Any) -> base.Masks:
    """Returns the masks that `pack` packed.

    Args:
      packed: the result of `pack`.
      shapes: the masks' tree of arrays or `jax.ShapeDtypeStruct`s of the masks'
        shapes, as from `jax.eval_shape`.

    Returns:
      The mask tree, bit for bit.

    Raises:
      PruningError: if a leaf has not the bytes that its shape needs.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.array([[True, False], [False, True]])}
      >>> bool(jnp.all(unpack(pack(masks), masks)["w"] == masks["w"]))
      True
    """

    def leaf(path: str, like: Any, bits: Any) -> jax.Array:
        shape = np.shape(like)
        size = math.prod(shape)
        if np.shape(bits) != (-(-size // 8),):
            raise base.PruningError(
                f"{path!r} has {np.shape(bits)} bytes; a mask of shape {shape} takes "
                f"{-(-size // 8)}."
            )
        return jnp.unpackbits(bits, count=size).astype(bool).reshape(shape)

    return tree.map_with_path(leaf, shapes, packed)
