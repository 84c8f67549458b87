"""The one dtype in which all scores are compared."""

import jax
import jax.numpy as jnp

from jprune import tree
from jprune._core import base


def common_dtype(scores: base.Scores) -> jnp.dtype:
    """Returns the one dtype, of 16, 32 or 64 bits, that holds all scores exactly.

    Args:
      scores: a tree of real arrays, all floating or all integer.

    Returns:
      A dtype.

    Raises:
      PruningError: if there is none; names leaves.
    """
    alike = {jnp.result_type(leaf) for leaf in jax.tree.leaves(scores)}
    if len(alike) == 1 and _is_itself(only := alike.pop()):
        return only  # without the paths, which cost time in trees of many leaves
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
            raise base.PruningError(f"{path!r} has scores of type {named[path]}.")
    if floats and others:
        raise base.PruningError(
            f"Floating scores ({min(floats)!r}) and integer scores ({min(others)!r}) "
            "cannot compete: no type holds both exactly."
        )
    width = 64 if any(d.itemsize == 8 for d in named.values()) else 32
    if any(d == jnp.uint32 for d in named.values()):
        width = 64  # of mixed widths, where int32 would not hold it
    dtype = jnp.dtype(f"{'float' if floats else 'int'}{width}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise base.PruningError(f"Scores of types {sorted(map(str, named.values()))}.")
    return dtype


def _is_itself(dtype: jnp.dtype) -> bool:
    """Whether scores of that type are compared in it."""
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return real and dtype.itemsize in (2, 4, 8)
