"""Mask trees: apply, combine, measure, and pack to bits.

    apply                                params with zeros where the masks are False
    sparsity, sparsity_per_leaf, kept    how much is pruned
    full, intersect, shuffle             masks from nothing, or from other masks
    pack, unpack, is_packed              masks as bits
    check                                raises unless masks fit their params

Masks have exactly the params' tree. Each leaf is a boolean array that broadcasts to
its parameter: of the full shape, of shape `(1, n)` for whole channels, or a scalar
`True` for a leaf that is never pruned. True = keep.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, compat, counting, packed_bits


def apply(params: base.Params, masks: base.Masks) -> base.Params:
    """Returns the params with zeros where the masks are False.

    z = w where m, else 0. A selection, not a product: infinities and NaNs that are
    pruned become zero, and dtypes do not change.

    Args:
      params: any pytree of arrays.
      masks: masks of the params.

    Returns:
      The masked params, with the same tree, shapes and dtypes.

    Raises:
      PruningError: if the trees differ or a mask does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> apply({"w": jnp.array([2.0, jnp.nan])}, {"w": jnp.array([True, False])})
      {'w': Array([2., 0.], dtype=float32)}
    """
    return jax.tree.map(_zero_outside, params, check(params, masks))


@jax.jit  # one dispatch per leaf outside of a jit, where leaves may be thousands
def _zero_outside(w: jax.Array, m: jax.Array) -> jax.Array:
    return jnp.where(m, w, jnp.zeros_like(w))


def check(params: base.Params, masks: base.Masks) -> base.Masks:
    """Returns the masks with the params' tree; raises unless they fit the params.

    Trees that differ only in the boxes around their arrays count as equal: Flax NNX's
    Optimizer keeps masks in Variables of another type than the params'.

    Args:
      params: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      masks: masks of the params.

    Returns:
      The masks, with exactly the params' tree.

    Raises:
      PruningError: if the trees differ, a mask is not boolean, or its shape does not
        broadcast to that of its leaf; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> check({"w": jnp.ones((2, 3))}, {"w": jnp.array([[True, False, True]])})
      {'w': Array([[ True, False,  True]], dtype=bool)}
    """
    masks = tree.in_tree_of(params, masks, "masks")
    tree.map_with_path(_check_leaf, params, masks)
    return masks


def _check_leaf(path: str, w: Any, m: Any) -> None:
    shape, fits = np.shape(w), np.shape(m)
    if jnp.result_type(m).kind != "b":
        raise base.PruningError(
            f"The mask of {path!r} has type {jnp.result_type(m)}; masks are boolean."
        )
    if fits != () and not (
        len(fits) == len(shape)
        and all(a in (1, b) for a, b in zip(fits, shape, strict=True))
    ):
        raise base.PruningError(
            f"The mask of {path!r} has shape {fits}, which does not broadcast to the "
            f"parameter's shape {shape}: each axis needs size 1 or the full size."
        )


def full(params: base.Params) -> base.Masks:
    """Returns masks that keep everything: a scalar True for each leaf.

    Args:
      params: any pytree.

    Returns:
      The params' tree of boolean scalars.

    Example:
      >>> full({"kernel": 0.5})
      {'kernel': Array(True, dtype=bool)}
    """
    return jax.tree.map(lambda _: jnp.ones((), bool), params)


def intersect(*masks: base.Masks) -> base.Masks:
    """Returns masks that keep what all the given masks keep (logical and).

    Args:
      *masks: one or more mask trees of the same params.

    Returns:
      Masks with the same tree; shapes broadcast.

    Raises:
      PruningError: if the trees differ; names the first path that does.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = jnp.array([[True], [False]]), jnp.array([[True, False]])
      >>> intersect({"w": a}, {"w": b})["w"].tolist()
      [[True, False], [False, False]]
    """
    first, both = masks[0], jnp.logical_and
    alike = [tree.in_tree_of(first, m, "masks", of="first masks") for m in masks]
    return jax.tree.map(lambda *m: jnp.asarray(functools.reduce(both, m)), *alike)


def shuffle(masks: base.Masks, key: jax.Array) -> base.Masks:
    """Shuffles the entries of each mask, so that random weights are kept.

    Each leaf keeps as many weights as before. A control experiment: it measures what a
    mask is worth beyond its sparsity per layer. Scalar masks do not change.

    Args:
      masks: mask tree.
      key: a `jax.random.key`.

    Returns:
      Masks with the same tree and shapes.

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

    Outside of a trace the counts are Python integers, exact at any size, and so is
    their sum. This waits for the device; `sparsity` does not.

    Args:
      params: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      masks: masks of the params; a mask entry for a channel counts the channel's
        weights.

    Returns:
      The params' tree of integers; inside of `jit`, `vmap` or `scan` of int32 scalars.
      The sum of those may wrap at 2^31.

    Raises:
      PruningError: if the masks do not fit the params, or inside of a trace for a leaf
        of 2^31 weights or more; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.array([[True, False, True]])}
      >>> kept({"w": jnp.ones((4, 3))}, masks)
      {'w': 8}
    """
    masks = check(params, masks)
    parts = jax.tree.map(counting.true_entries, masks)
    if any(isinstance(c, jax.core.Tracer) for c in jax.tree.leaves(parts)):
        return tree.map_with_path(_traced_count, params, masks)
    known = jax.device_get(parts)
    return jax.tree.map(
        lambda w, m, counts: _repeats(w, m) * sum(int(c) for _, c in counts),
        *(params, masks, known),
    )


def _traced_count(path: str, w: Any, m: Any) -> jax.Array:
    if math.prod(np.shape(w)) >= 2**31:
        raise base.PruningError(
            f"{path!r} has shape {np.shape(w)}: 2^31 weights or more, which int32 does "
            "not count. Call kept outside of jit, or use jprune.sparsity."
        )
    return jnp.sum(m, dtype=jnp.int32) * np.int32(_repeats(w, m))


def _repeats(w: Any, m: Any) -> int:
    """The number of weights that each entry of a mask stands for."""
    return math.prod(np.shape(w)) // max(1, math.prod(np.shape(m)))


def _removed(w: Any, m: Any) -> jax.Array:
    """The number of weights removed: exact below 2^32, then rounded to float32."""
    gone, each = jnp.zeros((), jnp.float32), _repeats(w, m)
    for size, count in counting.true_entries(m):
        # The integer difference is exact, so that a leaf without a zero has 0.
        less = np.uint32(size) - count
        if math.prod(np.shape(w)) < 2**32:
            gone += (less * np.uint32(each)).astype(jnp.float32)
        else:
            gone += less.astype(jnp.float32) * np.float32(each)
    return gone


def sparsity_per_leaf(params: base.Params, masks: base.Masks) -> Any:
    """Returns the fraction of weights removed in each leaf.

    Args:
      params: any pytree of arrays.
      masks: masks of the params.

    Returns:
      The params' tree of float32 scalars in [0, 1]; 0 for an empty leaf.

    Raises:
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
      >>> masks = {"w": jnp.array([[True], [False]]), "b": jnp.array(True)}
      >>> found = sparsity_per_leaf(params, masks)
      >>> float(found["w"]), float(found["b"])
      (0.5, 0.0)
    """
    return jax.tree.map(
        lambda w, m: _removed(w, m) / np.float32(max(1, math.prod(np.shape(w)))),
        *(params, check(params, masks)),
    )


def sparsity(params: base.Params, masks: base.Masks) -> jax.Array:
    """Returns the fraction of prunable weights that is removed.

    Leaves with a scalar mask are never pruned and do not count, as in the figures
    that papers give. `jprune.summary` also has the fraction of all weights.

    Args:
      params: any pytree of arrays.
      masks: masks of the params.

    Returns:
      A float32 scalar in [0, 1]; 0 if no leaf can be pruned.

    Raises:
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
      >>> masks = {"w": jnp.array([[True, False]]), "b": jnp.array(True)}
      >>> float(sparsity(params, masks))
      0.5
    """
    masks = check(params, masks)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)
    prunable = [(w, m) for w, m in leaves if np.shape(m) != ()]
    size = sum(math.prod(np.shape(w)) for w, _ in prunable)
    removed = sum((_removed(w, m) for w, m in prunable), jnp.zeros((), jnp.float32))
    return removed / np.float32(max(1, size))


def pack(masks: base.Masks, params: base.Params) -> Any:
    """Packs masks to bits: one byte for eight weights.

    Eight neighbours along the last axis share a byte, in the order of `np.packbits`;
    the last byte of a row is padded with zeros. Leading axes keep their shardings; the
    last axis does where its shards are whole bytes. Masks that are scalars, or
    broadcast to their leaf, are not packed.

    Args:
      masks: mask tree.
      params: arrays or `jax.ShapeDtypeStruct`s with the shapes of the masked leaves:
        the params, or the masks themselves.

    Returns:
      The params' tree: uint8 of shape `(*leading, ceil(last / 8))` for masks of the
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
            lambda m: jnp.packbits(m, axis=-1), bits, like=packed_bits.bytes_like(bits)
        )

    return jax.tree.map(leaf, check(params, masks), params)


def unpack(packed: Any, params: base.Params) -> base.Masks:
    """Unpacks the masks that `pack` returned; boolean masks do not change.

    XLA fuses the unpacking into the operations that use the masks, so the unpacked
    masks need no memory.

    Args:
      packed: result of `pack`.
      params: arrays or `jax.ShapeDtypeStruct`s with the shapes that `pack` was given.

    Returns:
      The masks, bit for bit, with exactly the params' tree.

    Raises:
      PruningError: if the trees differ, or the shape of a packed leaf is not the one
        that `pack` returns; names the leaf.

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
        bits = functools.partial(packed_bits.unpacked, shape=shape)
        return compat.auto_partition(bits, jnp.asarray(m), like=w)

    return tree.map_with_path(leaf, params, tree.in_tree_of(params, packed, "masks"))


def is_packed(mask: Any) -> bool:
    """Tells whether a leaf holds a packed mask, not booleans.

    Args:
      mask: a leaf of masks, boolean or from `pack` (uint8).

    Returns:
      True for a packed mask.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[True, False, True]])
      >>> is_packed(mask), is_packed(pack({"w": mask}, {"w": jnp.ones((1, 3))})["w"])
      (False, True)
    """
    return jnp.result_type(mask) == jnp.uint8
