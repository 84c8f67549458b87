"""Paths of leaves, rules and predicates on paths, and the roles of kernel axes.

    leaf_paths, leaf_path                  paths, such as "dense/kernel"
    by_path, map_with_path                 leaves by their paths
    is_kernel, is_float                    predicates: which leaves are pruned
    matching, excluding, Matching          predicates from regular expressions
    label, match_rules                     values for leaves, by rules on paths
    flags, only, merged                    mark leaves, hide the others, fill them in
    kernel_axes, KernelAxes                input and output axes of a kernel

A path joins the keys that lead to a leaf with `/`. It is the same for Flax Linen, Flax
NNX, Equinox and plain dicts: boxes that hold one array under `.value` (an NNX Variable,
a Linen partitioned parameter) are left out.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._core import base

T = TypeVar("T")

# Arrays with one of these names in their path are not kernels, even with two axes or
# more: lookup tables, and the biases and norms of attention and convolution layers.
_NOT_A_KERNEL = re.compile(
    r".*(embed|norm|bias).*|(.*_)?(emb|posemb|cls|tokens?)|scale|offset|wte|wpe|b"
)


def leaf_path(keys: jax.tree_util.KeyPath) -> str:
    """Returns the path of a leaf: its keys joined by `/`, without boxes.

    Args:
      keys: key path of the leaf, from `jax.tree_util`.

    Returns:
      A path such as `"encoder/0/attention/query/kernel"`; `""` for a bare array.
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
        raise base.PruningError(f"Two leaves have the same path: {_listing(twice)}")
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
    """
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def match_rules(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
    """Returns the value of the first rule that matches each path.

    Args:
      rules: sequence of `(pattern, value)`; a pattern is a regular expression that
        has to match the whole path.
      paths: `/`-joined paths.

    Returns:
      A dict from path to value, without the paths that no rule matches.

    Raises:
      PruningError: if a rule applies to no path, which usually means a misspelt name
        or rules in the wrong order.

    Example:
      >>> match_rules([("out/.*", 0.5), (".*/kernel", 0.9)],
      ...             ["hidden/kernel", "out/kernel", "out/bias"])
      {'hidden/kernel': 0.9, 'out/kernel': 0.5, 'out/bias': 0.5}
    """
    paths = list(paths)
    winner = {
        path: next(
            (i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)),
            None,
        )
        for path in paths
    }
    for i, (pattern, _) in enumerate(rules):
        if i not in winner.values():
            raise base.PruningError(
                f"The rule {pattern!r} applies to no leaf: it matches none, or only "
                f"leaves that an earlier rule matches. Leaves: {_listing(paths)}"
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
      PruningError: if a rule applies to no leaf, or a leaf has no rule.

    Example:
      >>> label({"a": 1.0, "b": 2.0}, [("a", "dense"), (".*", "sparse")])
      {'a': 'dense', 'b': 'sparse'}
    """
    values = match_rules(rules, leaf_paths(tree))
    missing = [path for path in leaf_paths(tree) if path not in values]
    if missing:
        raise base.PruningError(f"No rule matches these leaves: {_listing(missing)}")
    return map_with_path(lambda path, _: values[path], tree)


def is_float(path: str, leaf: Any, /) -> bool:
    """Selects floating-point leaves, the only ones that can be pruned."""
    del path
    return jnp.issubdtype(_dtype(leaf), jnp.floating)


def is_kernel(path: str, leaf: Any, /) -> bool:
    """Selects kernels: the weights of matrix products and convolutions.

    The default choice of leaves to prune. A kernel is floating point, has two axes or
    more and at least one entry, and is called `kernel` (Flax), or has a path without
    the names of biases, norms, embeddings and tokens.

    Args:
      path: `/`-joined path of the leaf.
      leaf: array or `jax.ShapeDtypeStruct`.

    Returns:
      True for a kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> is_kernel("dense/kernel", jnp.ones((3, 2)))
      True
      >>> is_kernel("embed/weight", jnp.ones((3, 2)))
      False
    """
    *parents, name = path.lower().split("/")
    named = name == "kernel" or not any(
        _NOT_A_KERNEL.fullmatch(part) for part in [*parents, name]
    )
    return named and is_float(path, leaf) and np.ndim(leaf) >= 2 and np.size(leaf) > 0


class Matching(NamedTuple):
    """A predicate on paths, as `matching` and `excluding` return it.

    Attributes:
      patterns: regular expressions that match whole paths. Each of them has to match
        a leaf of the tree that the predicate is applied to.
      inside: True to select the leaves that match, False to exclude them.
      among: further predicate that selected leaves have to satisfy.
    """

    patterns: tuple[str, ...]
    inside: bool
    among: base.Predicate

    def __call__(self, path: str, leaf: Any, /) -> bool:
        """Returns True if the leaf is selected."""
        hit = any(re.fullmatch(pattern, path) for pattern in self.patterns)
        return hit == self.inside and self.among(path, leaf)


def matching(*patterns: str, among: base.Predicate = is_float) -> Matching:
    """Selects the leaves whose path matches one of the patterns.

    Args:
      *patterns: regular expressions that have to match whole `/`-joined paths.
      among: predicate that selected leaves have to satisfy as well.

    Returns:
      A predicate. A pattern that matches no leaf raises where the predicate is used.

    Example:
      >>> import jax.numpy as jnp
      >>> matching("block.*/kernel")("block_3/kernel", jnp.ones((2, 2)))
      True
    """
    return Matching(patterns, True, among)


def excluding(*patterns: str, among: base.Predicate = is_kernel) -> Matching:
    """Selects the kernels whose path matches none of the patterns.

    Args:
      *patterns: regular expressions that have to match whole `/`-joined paths.
      among: predicate that selects the leaves from which matches are excluded.

    Returns:
      A predicate. A pattern that matches no leaf raises where the predicate is used.

    Example:
      >>> import jax.numpy as jnp
      >>> excluding("stem/.*")("stem/kernel", jnp.ones((2, 2)))
      False
    """
    return Matching(patterns, False, among)


def flags(where: base.Predicate, tree: Any) -> Any:
    """Evaluates a predicate on each leaf.

    Args:
      where: predicate `(path, leaf) -> bool`.
      tree: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree of Python bools, with the structure of `tree`.

    Raises:
      PruningError: if the predicate selects no leaf, or one of its patterns matches
        no leaf.
    """
    paths = leaf_paths(tree)
    for pattern in getattr(where, "patterns", ()):
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise base.PruningError(
                f"The pattern {pattern!r} matches no leaf. Leaves: {_listing(paths)}"
            )
    chosen = map_with_path(lambda path, leaf: bool(where(path, leaf)), tree)
    if not any(jax.tree.leaves(chosen)):
        raise base.PruningError(
            f"The predicate {getattr(where, '__name__', where)!r} selects nothing. "
            f"Leaves: {_listing(_described(tree))}"
        )
    return chosen


def only(chosen: Any, tree: Any) -> Any:
    """Replaces the leaves that are not chosen by `optax.MaskedNode`.

    The structure of the tree stays, and `jax.tree.map` skips the hidden leaves.

    Args:
      chosen: tree of Python bools, as from `flags`.
      tree: tree of the same structure, or None, which stays None.

    Returns:
      The tree with `optax.MaskedNode()` where `chosen` is False.

    Example:
      >>> only({"a": True, "b": False}, {"a": 1.0, "b": 2.0})
      {'a': 1.0, 'b': MaskedNode()}
    """
    if tree is None:
        return None
    return jax.tree.map(lambda c, x: x if c else optax.MaskedNode(), chosen, tree)


def merged(visible: Any, tree: Any) -> Any:
    """Fills the hidden leaves of a tree with those of another.

    Args:
      visible: tree with `optax.MaskedNode` for some leaves, as from `only`.
      tree: tree with all leaves.

    Returns:
      The leaves of `visible`, and those of `tree` where `visible` has none.
    """
    hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda x, w: w if hidden(x) else x, visible, tree, is_leaf=hidden
    )


class KernelAxes(NamedTuple):
    """The roles of a kernel's axes; axes with neither role are spatial.

    Attributes:
      input: axes that the product contracts (sums over), ascending.
      output: axes of output features, ascending.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]


KernelLayout = Callable[[str, Any], KernelAxes]
"""`(path, leaf) -> KernelAxes`, such as `kernel_axes`."""


def kernel_axes(path: str, leaf: Any) -> KernelAxes:
    """Returns the roles of a kernel's axes, by the conventions of frameworks.

    JAX, Flax and Haiku store `(*spatial, in, out)`; Equinox and PyTorch, whose
    kernels are called `weight`, store `(out, in, *spatial)`. Flax's attention
    projections of three axes are `(in, heads, dim)` under `query`, `key` and
    `value` and `(heads, dim, out)` under `out`.

    Args:
      path: `/`-joined path of the leaf.
      leaf: array of two axes or more.

    Returns:
      The axes of each role.

    Raises:
      PruningError: if the leaf has fewer than two axes.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_axes("conv/kernel", jnp.ones((3, 3, 16, 32)))
      KernelAxes(input=(2,), output=(3,))
      >>> kernel_axes("conv/weight", jnp.ones((32, 16, 3, 3)))
      KernelAxes(input=(1,), output=(0,))
    """
    ndim = np.ndim(leaf)
    if ndim < 2:
        shape = np.shape(leaf)
        raise base.PruningError(f"{path!r} has shape {shape}: fewer than two axes.")
    *parents, name = path.split("/")
    layer = parents[-1] if parents else ""
    if name == "weight" or name.startswith("weight_"):  # weight_ih of an LSTM
        return KernelAxes((1,), (0,))
    if ndim == 3 and layer in ("query", "key", "value"):
        return KernelAxes((0,), (1, 2))
    if ndim == 3 and layer == "out":
        return KernelAxes((0, 1), (2,))
    return KernelAxes((ndim - 2,), (ndim - 1,))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _described(tree: Any) -> list[str]:
    return [
        f"{leaf_path(keys)} {_dtype(leaf)}{list(np.shape(leaf))}"
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _listing(names: Sequence[str], most: int = 20) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
