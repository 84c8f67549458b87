"""The dtype in which scores are compared."""

import jax
import jax.numpy as jnp

from jprune import tree
from jprune._core import base


def common_dtype(scores: base.Scores) -> jnp.dtype:
    """Returns a dtype of 16, 32 or 64 bits that holds all scores exactly.

    Args:
      scores: tree of real arrays, all floating point or all integer.

    Returns:
      A dtype.

    Raises:
      PruningError: if there is no such dtype; names leaves.
    """
    alike = {jnp.result_type(leaf) for leaf in jax.tree.leaves(scores)}
    if len(alike) == 1 and _is_itself(only := alike.pop()):
        return only  # without paths, which take time for many leaves
    named = {
        path: jnp.result_type(leaf)
        for path, leaf in zip(
            tree.leaf_paths(scores), jax.tree.leaves(scores), strict=True
        )
    }
    floats = {p for p, d in named.items() if jnp.issubdtype(d, jnp.floating)}
    others = {p for p, d in named.items() if p not in floats}
    for path in others:
        if not (jnp.issubdtype(named[path], jnp.integer) or named[path].kind == "b"):
            raise base.PruningError(
                f"{path!r} has scores of type {named[path]}; scores are real numbers."
            )
    if floats and others:
        raise base.PruningError(
            f"Floating-point scores ({min(floats)!r}) and integer scores "
            f"({min(others)!r}) cannot be compared exactly: convert one of them."
        )
    width = 64 if any(d.itemsize == 8 for d in named.values()) else 32
    if any(d == jnp.uint32 for d in named.values()):
        width = 64  # of mixed widths, where int32 would not hold it
    dtype = jnp.dtype(f"{'float' if floats else 'int'}{width}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise base.PruningError(
            f"Scores of types {sorted(map(str, named.values()))} are compared in "
            f"{dtype}: convert them, or set jax_enable_x64."
        )
    return dtype


def _is_itself(dtype: jnp.dtype) -> bool:
    """Whether scores of a dtype are compared in that dtype."""
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return real and dtype.itemsize in (2, 4, 8)
