"""Predicates: which leaves are pruned, and trees that show only these."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._core import base
from jprune.tree._compare import in_tree_of
from jprune.tree._paths import check_pattern, leaf_path, matches

# Arrays with one of these names in their path are not kernels, even with two axes or
# more: lookup tables, among them rotary ones, and the biases and norms of attention and
# convolution layers.
_NOT_A_KERNEL = re.compile(
    r".*(embed|norm|bias).*|(.*_)?(emb|posemb|cls|tokens?)|scale|offset|wte|wpe|b"
    r"|(rope|rotary)(_(freqs?|cos|sin|table|cache))?|(inv_)?freqs(_.*)?"
    r"|(cos|sin)(_cached?|_table)?"
)

# Layers that return logits of a vocabulary, whose pruning costs more accuracy than it
# saves, and which often share the weights of an embedding. Also if called `kernel`.
_HEADS = frozenset({"lm_head", "logits_dense"})


def is_float(path: str, leaf: Any, /) -> bool:
    """Selects floating-point leaves, the only ones that can be pruned.

    Args:
      path: path of the leaf, which is not used.
      leaf: array, number or `jax.ShapeDtypeStruct`.

    Returns:
      True for a leaf of a floating-point type.

    Example:
      >>> import jax.numpy as jnp
      >>> is_float("dense/kernel", jnp.ones(2)), is_float("step", jnp.array(0))
      (True, False)
    """
    del path
    return jnp.issubdtype(_dtype(leaf), jnp.floating)


def is_kernel(path: str, leaf: Any, /) -> bool:
    """Selects kernels: the weights of matrix products and convolutions.

    The default choice of leaves to prune. A kernel is floating point, has two axes or
    more and at least one entry, and is called `kernel` (Flax), or has a path without
    the names of biases, norms, embeddings, tokens and rotary tables (`rope`, `freqs`,
    `cos_cached`). The heads of language models, `lm_head` and `logits_dense`, are
    left out too. `jprune.report.summary` lists what was left out for its name.

    Args:
      path: path of the leaf, joined by `/` or, as in flat dicts, by dots.
      leaf: array or `jax.ShapeDtypeStruct`.

    Returns:
      True for a kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> is_kernel("dense/kernel", jnp.ones((3, 2)))
      True
      >>> is_kernel("embed/weight", jnp.ones((3, 2)))
      False
      >>> is_kernel("lm_head.weight", jnp.ones((3, 2)))
      False
    """
    parts = re.split("[/.]", path.lower())
    named = parts[-1] == "kernel" or not any(map(_NOT_A_KERNEL.fullmatch, parts))
    named = named and _HEADS.isdisjoint(parts)
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
        hit = any(matches(pattern, path) for pattern in self.patterns)
        return hit == self.inside and self.among(path, leaf)


def matching(*patterns: str, among: base.Predicate = is_float) -> Matching:
    """Selects the leaves whose path matches one of the patterns.

    Args:
      *patterns: regular expressions that have to match whole `/`-joined paths.
      among: predicate that selected leaves have to satisfy as well.

    Returns:
      A predicate. A pattern that matches no leaf raises where the predicate is used.

    Raises:
      PruningError: if a pattern is not a regular expression.

    Example:
      >>> import jax.numpy as jnp
      >>> matching("block.*/kernel")("block_3/kernel", jnp.ones((2, 2)))
      True
    """
    return Matching(tuple(map(check_pattern, patterns)), True, among)


def excluding(*patterns: str, among: base.Predicate = is_kernel) -> Matching:
    """Selects the kernels whose path matches none of the patterns.

    Args:
      *patterns: regular expressions that have to match whole `/`-joined paths.
      among: predicate that selects the leaves from which matches are excluded.

    Returns:
      A predicate. A pattern that matches no leaf raises where the predicate is used.

    Raises:
      PruningError: if a pattern is not a regular expression.

    Example:
      >>> import jax.numpy as jnp
      >>> excluding("stem/.*")("stem/kernel", jnp.ones((2, 2)))
      False
    """
    return Matching(tuple(map(check_pattern, patterns)), False, among)


def only(chosen: Any, tree: Any, name: str = "values") -> Any:
    """Replaces the leaves that are not chosen by `optax.MaskedNode`.

    The structure of the tree stays, and `jax.tree.map` skips the hidden leaves.

    Args:
      chosen: tree of Python bools, as from `flags`.
      tree: tree of the same structure, or None, which stays None.
      name: what the tree is, in the plural, for the message of an error.

    Returns:
      The tree with `optax.MaskedNode()` where `chosen` is False.

    Raises:
      PruningError: if the tree has other leaves; names the first path that differs.

    Example:
      >>> only({"a": True, "b": False}, {"a": 1.0, "b": 2.0})
      {'a': 1.0, 'b': MaskedNode()}
    """
    if tree is None:
        return None
    treedef = jax.tree.structure(chosen)
    try:  # leaves of `tree` may be hidden already: it need not have the same structure
        nodes = treedef.flatten_up_to(tree)
    except (TypeError, ValueError):
        nodes = jax.tree.leaves(in_tree_of(chosen, tree, name))
    picked = zip(jax.tree.leaves(chosen), nodes, strict=True)
    return treedef.unflatten([x if c else optax.MaskedNode() for c, x in picked])


def merged(visible: Any, tree: Any) -> Any:
    """Fills the hidden leaves of a tree with those of another.

    Args:
      visible: tree with `optax.MaskedNode` for some leaves, as from `only`.
      tree: tree with all leaves.

    Returns:
      The leaves of `visible`, and those of `tree` where `visible` has none.

    Example:
      >>> tree = {"a": 1.0, "b": 2.0}
      >>> visible = only({"a": True, "b": False}, {"a": 10.0, "b": 20.0})
      >>> merged(visible, tree)
      {'a': 10.0, 'b': 2.0}
    """
    hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda x, w: w if hidden(x) else x, visible, tree, is_leaf=hidden
    )


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def described(tree: Any) -> list[str]:
    """Returns the path, type and shape of each leaf, for a message."""
    return [
        f"{leaf_path(keys)} {_dtype(leaf)}{list(np.shape(leaf))}"
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
