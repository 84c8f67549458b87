"""Paths of leaves, and values for leaves by rules on their paths."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax

from jprune._core import base

T = TypeVar("T")


def leaf_path(keys: jax.tree_util.KeyPath) -> str:
    """Returns the path of a leaf: its keys joined by `/`, without boxes.

    Args:
      keys: key path of the leaf, from `jax.tree_util`.

    Returns:
      A path such as `"encoder/0/attention/query/kernel"`; `""` for a bare array.

    Example:
      >>> found = jax.tree_util.tree_leaves_with_path({"dense": [1.0, {"bias": 2.0}]})
      >>> [leaf_path(keys) for keys, leaf in found]
      ['dense/0', 'dense/1/bias']
    """
    # Only an *attribute* called `value` is a box: attention layers are dicts with a
    # key of that name.
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def leaf_paths(tree: Any) -> list[str]:
    """Returns the path of each leaf, in tree order.

    Args:
      tree: any pytree.

    Returns:
      A list of `/`-joined paths; see `leaf_path`.

    Raises:
      PruningError: if two leaves have the same path.

    Example:
      >>> leaf_paths({"dense": {"kernel": 1.0, "bias": 2.0}})
      ['dense/bias', 'dense/kernel']
    """
    paths = [leaf_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if len(set(paths)) < len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise base.PruningError(f"Two leaves have the same path: {listing(twice)}")
    return paths


def map_with_path(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps a function of paths and leaves over trees.

    Args:
      f: function `(path, leaf, *leaves_of_rest) -> result`.
      tree: any pytree, which gives the paths.
      *rest: trees with the structure of `tree`, or with subtrees for its leaves.

    Returns:
      A tree of results, with the structure of `tree`.

    Example:
      >>> map_with_path(lambda path, leaf: f"{path}: {leaf}", {"a": {"b": 1}})
      {'a': {'b': 'a/b: 1'}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: f(leaf_path(keys), *leaves), tree, *rest
    )


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths.

    Args:
      tree: any pytree.

    Returns:
      A dict from path to leaf, in tree order.

    Raises:
      PruningError: if two leaves have the same path.

    Example:
      >>> by_path({"dense": {"kernel": 1.0, "bias": 2.0}})
      {'dense/bias': 2.0, 'dense/kernel': 1.0}
    """
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def check_pattern(pattern: str) -> str:
    """Returns a pattern; raises unless it is a regular expression.

    Args:
      pattern: regular expression for whole paths, in the syntax of `re`.

    Returns:
      The pattern.

    Raises:
      PruningError: if it is not a string, or `re` cannot compile it; gives the words
        of `re`.

    Example:
      >>> check_pattern("block.*/kernel")
      'block.*/kernel'
    """
    if not isinstance(pattern, str):
        raise base.PruningError(
            f"A pattern is a string; got {pattern!r:.80}, of type "
            f"{type(pattern).__name__}."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise base.PruningError(
            f"The pattern {pattern!r} is not a regular expression: {error}. Write "
            "'.*' for any characters; re.escape quotes special ones."
        ) from None
    return pattern


def matches(pattern: str, path: str) -> bool:
    """Returns whether a pattern matches the whole path."""
    return re.fullmatch(pattern, path) is not None


def match_rules(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
    """Returns the value of the first rule that matches each path.

    Args:
      rules: sequence of `(pattern, value)`; a pattern is a regular expression that
        has to match the whole path.
      paths: `/`-joined paths.

    Returns:
      A dict from path to value, without the paths that no rule matches.

    Raises:
      PruningError: if a pattern is not a regular expression, or a rule applies to no
        path, which usually means a misspelt name or rules in the wrong order.

    Example:
      >>> match_rules([("out/.*", 0.5), (".*/kernel", 0.9)],
      ...             ["hidden/kernel", "out/kernel", "out/bias"])
      {'hidden/kernel': 0.9, 'out/kernel': 0.5, 'out/bias': 0.5}
    """
    paths = list(paths)
    for pattern, _ in rules:
        check_pattern(pattern)
    winner = {
        path: next(
            (i for i, (pattern, _) in enumerate(rules) if matches(pattern, path)),
            None,
        )
        for path in paths
    }
    for i, (pattern, _) in enumerate(rules):
        if i not in winner.values():
            raise base.PruningError(
                f"The rule {pattern!r} applies to no leaf: it matches none, or only "
                f"leaves that an earlier rule matches. Leaves: {listing(paths)}"
            )
    return {path: rules[i][1] for path, i in winner.items() if i is not None}


def label(tree: Any, rules: Sequence[tuple[str, T]]) -> Any:
    """Labels each leaf with the value of the first rule that matches its path.

    `optax.partition` takes such labels, to treat layers differently.

    Args:
      tree: any pytree.
      rules: sequence of `(pattern, value)`; a pattern is a regular expression that
        has to match the whole path. Every leaf needs a rule, so the last one is
        often `(".*", value)`.

    Returns:
      A tree of values, with the structure of `tree`.

    Raises:
      PruningError: if a pattern is not a regular expression, a rule applies to no
        leaf, a leaf has no rule, or the tree is None.

    Example:
      >>> label({"a": 1.0, "b": 2.0}, [("a", "dense"), (".*", "sparse")])
      {'a': 'dense', 'b': 'sparse'}
    """
    if tree is None:
        raise base.PruningError(
            "label needs a tree, and got None. (optax.partition labels the gradients: "
            "pass some to prune and refresh, such as zeros of the params.)"
        )
    values = match_rules(rules, leaf_paths(tree))
    missing = [path for path in leaf_paths(tree) if path not in values]
    if missing:
        raise base.PruningError(f"No rule matches these leaves: {listing(missing)}")
    return map_with_path(lambda path, _: values[path], tree)


def listing(names: Sequence[str], most: int = 20) -> str:
    """Returns the names with commas, at most some of them, for a message."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
