"""Trees that have to agree: gradients, scores and masks with their params."""

from typing import Any

import jax
import numpy as np

from jprune._core import base
from jprune.tree._paths import by_path


def in_tree_of(
    like: Any, tree: Any, name: str, *, of: str = "params", shapes: bool = False
) -> Any:
    """Returns a tree in the structure of another; raises unless their paths agree.

    Trees with the same paths are equal here: they may differ in the boxes around their
    arrays, such as Flax NNX's Variables, or in the order of their keys.

    Args:
      like: the tree that gives the structure.
      tree: the tree to compare with it.
      name: what `tree` is, in the plural, for the message: "gradients", "masks".
      of: what `like` is, in the plural.
      shapes: whether the shapes of the leaves have to agree, too.

    Returns:
      The leaves of `tree`, in the structure of `like`.

    Raises:
      PruningError: if the paths, or with `shapes` the shapes, differ; names the first
        leaf that does.

    Example:
      >>> in_tree_of({"a": 1, "b": 2}, {"a": 3, "b": 4}, "gradients")
      {'a': 3, 'b': 4}
    """
    treedef = jax.tree.structure(like)
    if treedef != jax.tree.structure(tree):
        tree = _by_paths(like, tree, name, of)
    if shapes:
        pairs = zip(jax.tree.leaves(like), jax.tree.leaves(tree), strict=True)
        for i, (x, y) in enumerate(pairs):
            if np.shape(x) != np.shape(y):
                path = list(by_path(like))[i]
                raise base.PruningError(
                    f"The {name} have shape {np.shape(y)} at {path!r}, where the {of} "
                    f"have shape {np.shape(x)}."
                )
    return tree


def _by_paths(like: Any, tree: Any, name: str, of: str) -> Any:
    ours, theirs = by_path(like), by_path(tree)
    lacks = [path for path in ours if path not in theirs]
    extra = [path for path in theirs if path not in ours]
    if lacks:
        instead = f"; they have {_first(extra)}, which the {of} lack" if extra else ""
        raise base.PruningError(
            f"The {name} have no leaf {_first(lacks)}, which the {of} have{instead}."
        )
    if extra:
        raise base.PruningError(
            f"The {name} have a leaf {_first(extra)}, which the {of} lack."
        )
    return jax.tree.structure(like).unflatten(theirs[path] for path in ours)


def _first(paths: list[str]) -> str:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"{paths[0]!r}{more}"
