"""Packing a whole model, each leaf in the format of its rule, and what that saves."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.formats import _formats

Rules = Sequence[tuple[str, _formats.Format]]


def pack_tree(
    params: base.Params,
    masks: base.Masks,
    rules: Rules = ((".*", _formats.pack_bits),),
) -> Any:
    """Returns the params with a packed weight for each leaf.

    A leaf goes dense that no rule matches, whose mask does not fit the format of its
    rule, or that is no smaller in it; `packed_sizes` says which. A dense leaf keeps
    its mask as well, so that nothing is lost.

    Args:
      params: any pytree of arrays.
      masks: its masks.
      rules: ordered `(pattern, format)`; the first whose regular expression matches
        a whole path counts.

    Returns:
      The params' tree; its leaves are `formats.Packed`.

    Raises:
      PruningError: if the masks are not masks of these params, a rule decides for no
        leaf, or JAX would cast a leaf, naming it.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.eye(4), "bias": jnp.ones(4)}
      >>> masks = {"kernel": jnp.eye(4, dtype=bool), "bias": jnp.array(True)}
      >>> packed = pack_tree(params, masks, [(".*", formats.pack_n_of_m(1, 4))])
      >>> type(packed["kernel"]).__name__, type(packed["bias"]).__name__
      ('NOfM', 'Dense')
    """
    masks = masks_lib.check(params, masks)
    chosen = tree.match_rules(rules, tree.leaf_paths(params))

    def leaf(path: str, w: Any, m: Any) -> _formats.Packed:
        try:
            return _smaller(w, m, chosen.get(path, _formats.pack_dense))
        except base.PruningError as error:
            raise base.PruningError(f"{path!r}: {error}") from error

    return tree.map_with_path(leaf, params, masks)


def unpack_tree(packed: Any) -> tuple[base.Params, base.Masks]:
    """Returns the params and the masks that `pack_tree` packed.

    Args:
      packed: a tree of packed weights.

    Returns:
      The params, zero where they are pruned, and the masks, to the bit.

    Example:
      >>> import jax.numpy as jnp
      >>> params, masks = {"w": jnp.arange(3.0)}, {"w": jnp.array([True, False, True])}
      >>> unpack_tree(pack_tree(params, masks))[0]
      {'w': Array([0., 0., 2.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(packed, is_leaf=_formats.is_packed)
    weights, masks = zip(*(leaf.unpack() for leaf in leaves), strict=True)
    return treedef.unflatten(weights), treedef.unflatten(masks)


def packed_sizes(packed: Any) -> dict[str, Any]:
    """Returns the bytes of each packed weight beside those of the dense one.

    Args:
      packed: a tree of packed weights, or of what `jax.eval_shape` says of them.

    Returns:
      `leaves`: path -> {format, shape, dtype, bytes_dense, bytes_packed}, where
      `bytes_dense` are those of the weight alone; `total`: the sums of both.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.arange(80) < 8}
      >>> packed_sizes(pack_tree({"w": jnp.ones(80)}, masks))["total"]
      {'bytes_dense': 320, 'bytes_packed': 42}
    """
    paths = tree.leaf_paths(
        jax.tree.map(lambda _: 0, packed, is_leaf=_formats.is_packed)
    )
    leaves = jax.tree.leaves(packed, is_leaf=_formats.is_packed)
    rows = {path: _sizes(leaf) for path, leaf in zip(paths, leaves, strict=True)}
    total = {
        name: sum(row[name] for row in rows.values())
        for name in ("bytes_dense", "bytes_packed")
    }
    return {"leaves": rows, "total": total}


def _smaller(w: Any, m: Any, pack: _formats.Format) -> _formats.Packed:
    dense = _formats.pack_dense(w, m)
    try:
        packed = pack(w, m)
    except _formats.FormatError:
        return dense
    return packed if _nbytes(packed) < _nbytes(dense) else dense


def _sizes(packed: _formats.Packed) -> dict[str, Any]:
    dtype = packed.values.dtype
    return {
        "format": type(packed).__name__,
        "shape": list(packed.shape),
        "dtype": str(dtype),
        "bytes_dense": math.prod(packed.shape) * dtype.itemsize,
        "bytes_packed": _nbytes(packed),
    }


def _nbytes(packed: _formats.Packed) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packed))
