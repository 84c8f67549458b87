"""Paths, rules and predicates over parameter trees.

The only module that walks trees with `jax.tree_util`. A leaf is named by the keys that
lead to it joined with `/`, the same for Flax Linen, Flax NNX, Equinox and plain
dicts: boxes that hold one array under `.value` (an NNX Variable, a Linen
partitioned parameter) do not show, so `dense/kernel` is `dense/kernel`
everywhere.
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

# A 2-D array with one of these names on its way is not what a matrix product
# or a convolution multiplies by: tables that are looked up, and the biases and
# norms of attention and convolution layers that have two axes or more.
_NOT_A_KERNEL = re.compile(
    r".*(embed|norm|bias).*|(.*_)?(emb|posemb|cls|tokens?)|scale|offset|wte|wpe|b"
)


def leaf_path(keys: jax.tree_util.KeyPath) -> str:
    """Returns the name of a leaf: its keys joined by `/`, boxes left out.

    Args:
      keys: the key path that `jax.tree_util` gives for the leaf.

    Returns:
      For example `"encoder/0/attention/query/kernel"`; `""` for a bare array.
    """
    # Only an *attribute* called `value` is a box: a dict may hold a layer of
    # that name, as attention does.
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def leaf_paths(tree: Any) -> list[str]:
    """Returns the name of each leaf, in tree order.

    Args:
      tree: any pytree.

    Returns:
      The `/`-joined paths, as in `leaf_path`.

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
    """Maps `f(path, leaf, *leaves_of_rest)` over trees, with `/`-joined paths.

    Args:
      f: the function.
      tree: any pytree; its paths are used.
      *rest: trees of that structure, or with subtrees in place of its leaves.

    Returns:
      The tree of results.

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
      tree: any pytree, as in `leaf_paths`.

    Returns:
      Path -> leaf, in tree order.

    Raises:
      PruningError: if two leaves have the same path.
    """
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def match_rules(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
    """Returns, for each path that a rule matches, the value of the first that does.

    Args:
      rules: ordered `(pattern, value)`; a pattern is a regular expression that
        has to match a whole path.
      paths: the `/`-joined paths.

    Returns:
      path -> value; paths that no rule matches are left out.

    Raises:
      PruningError: if a rule decides for no path at all, which is nearly always
        a misspelt name or a rule in the wrong order.

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
                f"The rule {pattern!r} decides for no leaf: it matches none, or only "
                f"leaves that an earlier rule takes. Leaves: {_listing(paths)}"
            )
    return {path: rules[i][1] for path, i in winner.items() if i is not None}


def label(tree: Any, rules: Sequence[tuple[str, T]]) -> Any:
    """Returns the tree with each leaf replaced by the value of its first rule.

    What `optax.partition` needs to treat layers differently.

    Args:
      tree: any pytree.
      rules: as in `match_rules`; together they must match every leaf, so a last
        rule is often `(".*", something)`.

    Returns:
      The same tree with values for leaves.

    Raises:
      PruningError: if a rule decides for no leaf, or no rule matches a leaf.

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
    """True for floating-point arrays: the only leaves that can be pruned."""
    del path
    return jnp.issubdtype(_dtype(leaf), jnp.floating)


def is_kernel(path: str, leaf: Any, /) -> bool:
    """True for what a matrix product or a convolution multiplies by.

    These are the leaves that are pruned unless told otherwise: floating point,
    two axes or more, at least one element, and called `kernel` (Flax) or
    anything that does not sound like a bias, a norm, an embedding or a token.

    Args:
      path: the leaf's `/`-joined path.
      leaf: an array or a `jax.ShapeDtypeStruct`.

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
    """A predicate on paths; made by `matching` and `excluding`.

    Attributes:
      patterns: regular expressions that match whole paths; each of them has to
        match some leaf of the tree that the predicate is used on.
      inside: what a matching leaf is worth.
      among: the predicate that a leaf has to satisfy as well.
    """

    patterns: tuple[str, ...]
    inside: bool
    among: base.Predicate

    def __call__(self, path: str, leaf: Any, /) -> bool:
        """Returns True where the leaf is meant."""
        hit = any(re.fullmatch(pattern, path) for pattern in self.patterns)
        return hit == self.inside and self.among(path, leaf)


def matching(*patterns: str, among: base.Predicate = is_float) -> Matching:
    """A predicate: leaves whose whole path matches one of the patterns.

    Args:
      *patterns: regular expressions for `/`-joined paths.
      among: only leaves that satisfy this predicate too.

    Returns:
      A predicate; where it is used, a pattern that matches no leaf is an error.

    Example:
      >>> import jax.numpy as jnp
      >>> matching("block.*/kernel")("block_3/kernel", jnp.ones((2, 2)))
      True
    """
    return Matching(patterns, True, among)


def excluding(*patterns: str, among: base.Predicate = is_kernel) -> Matching:
    """A predicate: kernels except those whose whole path matches a pattern.

    Args:
      *patterns: regular expressions for `/`-joined paths.
      among: the leaves from which the patterns take away.

    Returns:
      A predicate; where it is used, a pattern that matches no leaf is an error.

    Example:
      >>> import jax.numpy as jnp
      >>> excluding("stem/.*")("stem/kernel", jnp.ones((2, 2)))
      False
    """
    return Matching(patterns, False, among)


def flags(where: base.Predicate, tree: Any) -> Any:
    """Evaluates a predicate on each leaf.

    Args:
      where: the predicate.
      tree: a pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The tree with Python bools for leaves.

    Raises:
      PruningError: if the predicate selects nothing, or one of its patterns
        matches no leaf.
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

    The tree keeps its shape, and `jax.tree.map` does not see what is hidden.

    Args:
      chosen: a tree of Python bools.
      tree: a tree of that structure; `None` (nothing was passed) stays `None`.

    Returns:
      The tree with `optax.MaskedNode()` where `chosen` is False.
    """
    if tree is None:
        return None
    return jax.tree.map(lambda c, x: x if c else optax.MaskedNode(), chosen, tree)


def merged(visible: Any, tree: Any) -> Any:
    """Returns a tree with its leaves replaced by those that are visible elsewhere.

    Args:
      visible: a tree as from `only`, with `optax.MaskedNode` for some leaves.
      tree: a tree of all leaves.

    Returns:
      The visible leaves, and the tree's where there is none.
    """
    hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda x, w: w if hidden(x) else x, visible, tree, is_leaf=hidden
    )


class KernelAxes(NamedTuple):
    """The roles of a kernel's axes; what is in neither is spatial.

    Attributes:
      input: the axes that a product sums over (the contraction), ascending.
      output: the axes that remain, one index per output feature, ascending.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]


KernelLayout = Callable[[str, Any], KernelAxes]


def kernel_axes(path: str, leaf: Any) -> KernelAxes:
    """Returns the roles of a kernel's axes by its framework's convention.

    JAX, Flax and Haiku store `(*spatial, in, out)`; Equinox and PyTorch, whose
    kernels are called `weight`, store `(out, in, *spatial)`. Flax's attention
    projections of three axes are `(in, heads, dim)` under `query`, `key` and
    `value` and `(heads, dim, out)` under `out`.

    Args:
      path: the leaf's `/`-joined path.
      leaf: an array of two axes or more.

    Returns:
      The axes by role.

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
        raise base.PruningError(
            f"{path!r} has shape {np.shape(leaf)}: axes have roles from two axes on."
        )
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
