"""Packing of a tree, each leaf in the format of its rule, and the bytes saved."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.formats import _formats, _grouped, _packed

Rules = Sequence[tuple[str, _formats.Format]]
"""`(pattern, format)`: formats of leaves, by regular expressions on their paths."""


def pack_tree(
    params: base.Params,
    masks: base.Masks,
    rules: Rules = ((".*", _formats.pack_bits),),
) -> Any:
    """Packs each leaf of a tree in the format of its rule.

    A leaf is packed as `Dense` if no rule matches it, its mask does not fit the format
    of its rule, or the format is not smaller; `packed_sizes` shows the formats. `Dense`
    holds the mask too, so nothing is lost.

    Args:
      params: any pytree of arrays.
      masks: masks of the params.
      rules: sequence of `(pattern, format)`; the first pattern, a regular expression,
        that matches the whole path of a leaf gives its format.

    Returns:
      The params' tree of packed weights.

    Raises:
      PruningError: if the masks do not fit the params, a rule applies to no leaf, or
        JAX would cast a leaf; names the leaf.

    Example:
      >>> from jprune import formats
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.eye(4), "bias": jnp.ones(4)}
      >>> masks = {"kernel": jnp.eye(4, dtype=bool), "bias": jnp.array(True)}
      >>> packed = pack_tree(params, masks, [(".*", formats.pack_n_of_m(1, 4))])
      >>> type(packed["kernel"]).__name__, type(packed["bias"]).__name__
      ('NOfM', 'Dense')
    """
    masks = masks_lib.check(params, masks)
    chosen = tree.match_rules(rules, tree.leaf_paths(params))

    def leaf(path: str, w: Any, m: Any) -> _packed.Packed:
        try:
            return _smaller(path, w, m, chosen.get(path, _formats.pack_dense))
        except base.PruningError as error:
            raise base.PruningError(f"{path!r}: {error}") from error

    return tree.map_with_path(leaf, params, masks)


def unpack_tree(packed: Any) -> tuple[base.Params, base.Masks]:
    """Unpacks the params and the masks of a tree of packed weights.

    Args:
      packed: tree of packed weights, as from `pack_tree`.

    Returns:
      The params, with zeros where they are pruned, and the masks, exact to the bit.

    Example:
      >>> import jax.numpy as jnp
      >>> params, masks = {"w": jnp.arange(3.0)}, {"w": jnp.array([True, False, True])}
      >>> unpack_tree(pack_tree(params, masks))[0]
      {'w': Array([0., 0., 2.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(packed, is_leaf=_packed.is_packed)
    weights, masks = zip(*(leaf.unpack() for leaf in leaves), strict=True)
    return treedef.unflatten(weights), treedef.unflatten(masks)


def packed_sizes(packed: Any) -> dict[str, Any]:
    """Returns the bytes of packed weights and of the dense ones, per leaf and in total.

    Args:
      packed: tree of packed weights, or the result of `jax.eval_shape` for one.

    Returns:
      A dict of two entries. `leaves`: path -> {format, shape, dtype, bytes_dense,
      bytes_packed}, where `bytes_dense` counts the weight without its mask. `total`:
      the sums of both.

    Raises:
      PruningError: if two leaves have the same path.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.arange(80) < 8}
      >>> packed_sizes(pack_tree({"w": jnp.ones(80)}, masks))["total"]
      {'bytes_dense': 320, 'bytes_packed': 42}
    """
    paths = tree.leaf_paths(
        jax.tree.map(lambda _: 0, packed, is_leaf=_packed.is_packed)
    )
    leaves = jax.tree.leaves(packed, is_leaf=_packed.is_packed)
    rows = {path: _sizes(leaf) for path, leaf in zip(paths, leaves, strict=True)}
    total = {
        name: sum(row[name] for row in rows.values())
        for name in ("bytes_dense", "bytes_packed")
    }
    return {"leaves": rows, "total": total}


def _smaller(path: str, w: Any, m: Any, pack: _formats.Format) -> _packed.Packed:
    dense = _formats.pack_dense(w, m)
    try:
        by_path = isinstance(pack, _grouped.ByPath)
        packed = pack(w, m, path) if by_path else pack(w, m)
    except _formats.FormatError:
        return dense
    return packed if _nbytes(packed) < _nbytes(dense) else dense


def _sizes(packed: _packed.Packed) -> dict[str, Any]:
    dtype = packed.values.dtype
    return {
        "format": type(packed).__name__,
        "shape": list(packed.shape),
        "dtype": str(dtype),
        "bytes_dense": math.prod(packed.shape) * dtype.itemsize,
        "bytes_packed": _nbytes(packed),
    }


def _nbytes(packed: _packed.Packed) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packed))
