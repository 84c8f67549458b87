"""Mask trees: apply, combine, measure, and pack to bits.

A mask tree has exactly the params' tree. Each leaf is a boolean array that
broadcasts to its parameter: the full shape, `(1, n)` for whole channels, or a
scalar `True` for a leaf that is never pruned. True = keep.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jprune import tree
from jprune._core import base, compat


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
    return jax.tree.map(_zero_outside, params, check(params, masks))


@jax.jit  # one call a leaf, where thousands of leaves are pruned outside of a jit
def _zero_outside(w: jax.Array, m: jax.Array) -> jax.Array:
    return jnp.where(m, w, jnp.zeros_like(w))


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
    masks = _in_tree_of(params, masks)
    tree.map_with_path(_check_leaf, params, masks)
    return masks


def _in_tree_of(params: base.Params, masks: Any) -> Any:
    treedef = jax.tree.structure(params)
    if treedef == jax.tree.structure(masks):
        return masks
    ours, theirs = tree.leaf_paths(params), tree.leaf_paths(masks)
    if ours != theirs:
        raise base.PruningError(
            "The masks' tree is not the params' tree. Without a mask: "
            f"{sorted(set(ours) - set(theirs))}; without a parameter: "
            f"{sorted(set(theirs) - set(ours))}."
        )
    return treedef.unflatten(jax.tree.leaves(masks))


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
    both = jnp.logical_and
    return jax.tree.map(lambda *m: jnp.asarray(functools.reduce(both, m)), *masks)


def shuffle(masks: base.Masks, key: jax.Array) -> base.Masks:
    """Returns random masks that keep as much of each leaf as the given ones.

    The entries of each leaf in a random order: the control that tells what a mask
    knows beyond its number of weights per layer. A scalar stays as it is.

    Args:
      masks: a mask tree.
      key: a `jax.random.key`.

    Returns:
      The masks' tree and shapes.

    Example:
      >>> import jax
      >>> masks = {"w": jnp.array([[True, False, False, True]]), "b": jnp.array(True)}
      >>> random = shuffle(masks, jax.random.key(0))
      >>> random["w"].shape, int(random["w"].sum()), bool(random["b"])
      ((1, 4), 2, True)

    References:
      Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing
      the Mark?, 2021, arXiv:2009.08576 (random shuffling).
    """
    leaves, treedef = jax.tree.flatten(masks)
    shuffled = [
        jax.random.permutation(jax.random.fold_in(key, i), jnp.ravel(m)).reshape(
            jnp.shape(m)
        )
        for i, m in enumerate(leaves)
    ]
    return treedef.unflatten(shuffled)


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


def pack(masks: base.Masks, params: base.Params) -> Any:
    """Returns the masks as bits: an eighth of a byte a weight.

    Eight neighbours along a leaf's last axis make a byte, as `np.packbits` does
    it, and the last byte of a row is filled with zeros. The leading axes stay, and
    so do their shardings; that of the last axis stays where its parts are whole
    bytes. Masks that are scalars, or broadcast to their leaf, stay as they are.

    Args:
      masks: a mask tree.
      params: arrays or `jax.ShapeDtypeStruct`s in the shapes of the leaves that
        are masked: the params, or the masks themselves.

    Returns:
      The params' tree: uint8 of shape `(*leading, ceil(last / 8))` for masks of
      full shape, booleans for the others.

    Raises:
      PruningError: if the trees differ or a mask does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.array([[True, False, True], [False, False, False]])}
      >>> pack(masks, masks)["w"].tolist()
      [[160], [0]]
    """

    def leaf(m: Any, w: Any) -> Any:
        if np.shape(m) == () or np.shape(m) != np.shape(w):
            return m
        bits = jnp.asarray(m)
        return compat.auto_partition(
            lambda m: jnp.packbits(m, axis=-1), bits, like=_bytes_like(bits)
        )

    return jax.tree.map(leaf, check(params, masks), params)


def unpack(packed: Any, params: base.Params) -> base.Masks:
    """Returns the masks that `pack` packed; boolean masks stay as they are.

    XLA fuses this into what uses the masks: no array of them is made.

    Args:
      packed: the result of `pack`.
      params: arrays or `jax.ShapeDtypeStruct`s in the shapes that `pack` was given.

    Returns:
      The masks, bit for bit, with exactly the params' tree.

    Raises:
      PruningError: if the trees differ, or a leaf has not the bytes that its shape
        needs; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.array([[True, False, True], [False, False, False]])}
      >>> unpack(pack(masks, masks), masks)["w"].tolist()
      [[True, False, True], [False, False, False]]
    """

    def leaf(path: str, w: Any, m: Any) -> Any:
        if not is_packed(m):
            _check_leaf(path, w, m)
            return m
        shape = np.shape(w)
        needed = (*shape[:-1], -(-shape[-1] // 8)) if shape else "no bytes"
        if np.shape(m) != needed:
            raise base.PruningError(
                f"The packed mask of {path!r} has shape {np.shape(m)}; a mask of shape "
                f"{shape} takes {needed}."
            )
        bits = functools.partial(_bits, shape=shape)
        return compat.auto_partition(bits, jnp.asarray(m), like=w)

    return tree.map_with_path(leaf, params, _in_tree_of(params, packed))


def is_packed(mask: Any) -> bool:
    """Whether a leaf holds the bits of a mask rather than booleans."""
    return jnp.result_type(mask) == jnp.uint8


def _bits(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The bits along the last axis, the highest of each byte first.

    `jnp.unpackbits` in a form that costs a fused step on CPU less: each byte is
    repeated, and the place in its row says which bit is meant.
    """
    wide = jnp.broadcast_to(packed[..., None], (*packed.shape, 8))
    wide = wide.reshape(*shape[:-1], 8 * packed.shape[-1])[..., : shape[-1]]
    place = lax.broadcasted_iota(jnp.uint8, shape, len(shape) - 1) & np.uint8(7)
    return (wide & (np.uint8(128) >> place)) != np.uint8(0)


def _bytes_like(mask: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape of a mask's bytes, and the sharding that they keep."""
    *leading, last = mask.shape
    shape, sharding = (*leading, -(-last // 8)), jax.typeof(mask).sharding
    if not isinstance(sharding, NamedSharding):
        return jax.ShapeDtypeStruct(shape, jnp.uint8)
    names = [*sharding.spec, *[None] * mask.ndim][: mask.ndim]
    over = names[-1] if isinstance(names[-1], tuple) else (names[-1],)
    parts = math.prod(sharding.mesh.shape[name] for name in over if name is not None)
    whole = last % (8 * parts) == 0
    spec = PartitionSpec(*names[:-1], names[-1] if whole else None)
    sharding = NamedSharding(sharding.mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
