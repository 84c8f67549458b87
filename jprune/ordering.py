"""Scores as integers in the same order: what selection compares."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import base, tree


def ordered_bits(x: jax.Array) -> jax.Array:
    """Returns signed integers in the order of `x`, of its own width.

    a < b if and only if bits(a) < bits(b), and a == b likewise, for every pair
    of floats other than NaN, subnormal numbers and both zeros included; every
    NaN ranks above infinity. Only integer operations touch the values, because
    floating-point comparisons flush subnormal numbers to zero on some devices.

    Args:
      x: a floating or integer array of 16, 32 or 64 bits.

    Returns:
      An array of `x`'s shape, dtype int16, int32 or int64.

    Example:
      >>> import jax.numpy as jnp
      >>> bits = ordered_bits(jnp.array([-1.0, -0.0, 0.0, 1e-45, jnp.inf, jnp.nan]))
      >>> [int(b) for b in jnp.sign(bits[1:] - bits[:-1])]
      [1, 0, 1, 1, 1]
    """
    signed = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    least = np.array(jnp.iinfo(signed).min, signed)
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return lax.bitcast_convert_type(x, signed) ^ least
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x
    bits = lax.bitcast_convert_type(x, signed)
    infinity = np.asarray(jnp.inf, x.dtype).view(signed)
    # A negative float has the sign bit, and its magnitude grows downwards.
    ordered = jnp.where(bits < 0, least - bits, bits)
    nan = jnp.abs(ordered) > infinity
    return jnp.where(nan, infinity + np.array(1, signed), ordered)


def greatest_number(dtype: jnp.dtype) -> int:
    """Returns the largest of `ordered_bits` that is not a NaN's.

    Args:
      dtype: of the scores.

    Returns:
      An integer.
    """
    signed = np.dtype(f"int{dtype.itemsize * 8}")
    if jnp.issubdtype(dtype, jnp.floating):
        return int(np.asarray(jnp.inf, dtype).view(signed))
    return int(np.iinfo(signed).max)


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
