"""Which leaves are chosen: the argument `where` of pruners, in all of its forms."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from jprune._core import base
from jprune.tree._compare import in_tree_of
from jprune.tree._paths import by_path, leaf_paths, listing, map_with_path, matches
from jprune.tree._predicates import described, matching

Where = base.Predicate | str | Sequence[str] | Any
"""Which leaves are chosen, in one of four forms:

- a predicate `(path, leaf) -> bool`, such as `is_kernel` or `excluding("head/.*")`;
- a pattern, short for `matching(pattern)`;
- a list or tuple of patterns, short for `matching(*patterns)`;
- a tree of Python bools with the structure of the params, as `optax.masked` takes it.
"""


def check_where(where: Where) -> Where:
    """Returns a predicate or a tree of bools; raises for what can be neither.

    Args:
      where: a `Where`.

    Returns:
      A `Matching` for patterns; a predicate or a tree of bools is returned unchanged.

    Raises:
      PruningError: if a pattern is not a regular expression, or a leaf of a tree is
        not a Python bool; names the leaf.

    Example:
      >>> check_where(["block.*/kernel", "head/kernel"]).patterns
      ('block.*/kernel', 'head/kernel')
    """
    if isinstance(where, str):
        return matching(where)
    if isinstance(where, list | tuple) and all(isinstance(x, str) for x in where):
        if not where:
            raise base.PruningError(f"where={where!r} contains no pattern.")
        return matching(*where)
    if _is_of_bools(where) or callable(where):
        return where
    for path, leaf in by_path(where).items():
        if not _is_bool(leaf):
            raise base.PruningError(
                "where is a predicate, a pattern, a list of patterns or a tree of "
                f"Python bools; at {path!r} it has {_kind(leaf)}."
            )
    raise base.PruningError(f"where={where!r} selects nothing: it has no leaves.")


def flags(where: Where, tree: Any) -> Any:
    """Evaluates a choice of leaves on each leaf of a tree.

    Args:
      where: a predicate `(path, leaf) -> bool`, a pattern, a list of patterns, or a
        tree of Python bools; see `Where`.
      tree: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree of Python bools, with the structure of `tree`.

    Raises:
      PruningError: if no leaf is selected, a pattern matches no leaf, or a tree of
        bools has other leaves than `tree`; names the first path that differs.

    Example:
      >>> params = {"a": np.ones((2, 2)), "b": np.ones(2)}
      >>> flags("a", params)
      {'a': True, 'b': False}
      >>> flags({"a": False, "b": True}, params)
      {'a': False, 'b': True}
    """
    where = check_where(where)
    if _is_of_bools(where):
        chosen, what = _in_place(where, tree), "where, a tree of bools,"
    else:
        paths = leaf_paths(tree)
        for pattern in getattr(where, "patterns", ()):
            if not any(matches(pattern, path) for path in paths):
                raise base.PruningError(
                    f"The pattern {pattern!r} matches no leaf; it has to match a whole "
                    f"path, as '.*kernel' does. Leaves: {listing(paths)}"
                )
        predicate: Any = where
        chosen = map_with_path(lambda path, leaf: bool(predicate(path, leaf)), tree)
        what = f"The predicate {getattr(where, '__name__', where)!r}"
    if not any(jax.tree.leaves(chosen)):
        raise base.PruningError(
            f"{what} selects nothing. Leaves: {listing(described(tree))}"
        )
    return chosen


def _in_place(where: Any, tree: Any) -> Any:
    """The bools in the structure of a tree, which may hide some leaves from them."""
    # `optax.partition` and `optax.masked` hide leaves from what they wrap.
    whole = jax.tree.map(lambda x: 0, tree, is_leaf=_is_hidden)
    given = in_tree_of(whole, where, "bools of where")
    return jax.tree.map(
        lambda x, c: x if _is_hidden(x) else bool(c), tree, given, is_leaf=_is_hidden
    )


def _is_hidden(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_of_bools(where: Any) -> bool:
    """Whether it is a tree of bools, which may be callable, as Equinox modules are."""
    leaves = jax.tree.leaves(where)
    return bool(leaves) and all(map(_is_bool, leaves))


def _is_bool(leaf: Any) -> bool:
    return isinstance(leaf, bool | np.bool_)


def _kind(leaf: Any) -> str:
    if isinstance(leaf, jax.Array | np.ndarray):
        return (
            f"an array of type {leaf.dtype} and shape {leaf.shape}. Masks belong in "
            "jprune.apply; where has one bool for each leaf"
        )
    return f"{leaf!r:.80}, of type {type(leaf).__name__}"
