"""Trees as dicts, lists and tuples, which processes without the model's code know."""

from typing import Any

import jax
import numpy as np
from jax import tree_util

from jprune._core import base
from jprune.graph._state import children
from jprune.tree import leaf_path

_BOX = (tree_util.GetAttrKey("value"),)


def to_plain(tree: Any) -> Any:
    """Returns a tree with the same leaves in dicts, lists and tuples.

    Lists, tuples and None stay. All other nodes, such as modules, named tuples and
    states, become dicts with strings as keys; a box of one array, such as a Variable of
    Flax, becomes that array. The paths of leaves stay, but for an array under an
    attribute `value` that has others beside it, and their order may change.

    Args:
      tree: any pytree.

    Returns:
      The plain tree.

    Raises:
      PruningError: if two children of a node have the same name.

    Example:
      >>> import optax
      >>> to_plain(optax.TraceState(trace={1: [2.0, None]}))
      {'trace': {'1': [2.0, None]}}
    """
    level = children(tree)
    if tree is None or level is None:
        return tree
    if type(tree) in (list, tuple):
        return type(tree)(_unboxed(child) for _, child in level)
    names = [leaf_path(keys) for keys, _ in level]
    if len(set(names)) < len(names):
        raise base.PruningError(
            f"Two children of a {type(tree).__name__} have the same name: {names}."
        )
    return {name: _unboxed(x) for name, (_, x) in zip(names, level, strict=True)}


def _unboxed(node: Any) -> Any:
    level = children(node)
    if level is not None and [keys for keys, _ in level] == [_BOX]:
        inner = level[0][1]
        if children(inner) is None:
            return inner
    return to_plain(node)


def from_plain(plain: Any, like: Any) -> Any:
    """Returns the leaves of a plain tree in the structure that it was made from.

    Args:
      plain: a tree from `to_plain`.
      like: tree of that structure.

    Returns:
      A tree with the structure of `like`.

    Raises:
      PruningError: if the plain tree has other leaves than `like`.

    Example:
      >>> import optax
      >>> from_plain({"trace": [1.0]}, like=optax.TraceState(trace=[0.0]))
      TraceState(trace=[1.0])
    """
    each, structure = jax.tree.flatten(like)
    # Structs, not numbers: a class may look at the shapes that it is made of.
    structs = [
        jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)) for x in each
    ]
    numbered = to_plain(structure.unflatten(structs))
    if jax.tree.structure(numbered) != jax.tree.structure(plain):
        given, wanted = _paths(plain), _paths(numbered)
        raise base.PruningError(
            f"The tree has another structure than `like`. It lacks "
            f"{sorted(wanted - given)}; `like` lacks {sorted(given - wanted)}."
        )
    pairs = zip(jax.tree.leaves(numbered), jax.tree.leaves(plain), strict=True)
    leaves = {id(struct): x for struct, x in pairs}
    return structure.unflatten(leaves[id(struct)] for struct in structs)


def _paths(tree: Any) -> set[str]:
    return {leaf_path(keys) for keys, _ in jax.tree.leaves_with_path(tree)}
