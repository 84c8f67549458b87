"""Exact top-k masks over a tree, by counting.

"Keep the best k" is one kernel: find the k-th largest score, keep what is above
it, and of what equals it the lowest indices. The k-th largest comes from
counting how many scores reach each of a few pivots, three bits of the answer a
pass, on an unsigned integer view of the scores that preserves their order. So
nothing is sorted, concatenated or gathered: a mesh exchanges a few scalars a
pass, k may be traced, and no two backends disagree.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import checkify

from jprune import base, counting, tree


def top_k(scores: base.Scores, k: jax.typing.ArrayLike) -> base.Masks:
    """Returns masks of the k largest scores of the whole tree.

    Exactly k entries are kept. Ties go to the lower index in tree order (the
    leaves in the order of `jax.tree.leaves`, each in row-major order); -0.0
    ties with 0.0. Leaves keep their sharding and none is gathered.

    Args:
      scores: a tree of real arrays of any shapes, all floating or all integer.
      k: how many to keep, an integer in [0, n] for n scores in all; may be
        traced. Values outside are clipped.

    Returns:
      The scores' tree of boolean arrays, True for the k largest.

    Raises:
      NonFiniteScoreError: if a score is NaN, naming the leaf. Under `jit` the
        same is a `checkify` debug check, and a NaN ranks above infinity: it is
        kept, where it shows, and not hidden behind a mask.
      PruningError: if k is not an integer, or leaves are complex, mix floats
        and integers, or hold 2^31 scores or more in all.

    Example:
      >>> import jax.numpy as jnp
      >>> top_k({"a": jnp.array([3.0, 1.0]), "b": jnp.array([1.0, 2.0])}, 3)
      {'a': Array([ True,  True], dtype=bool), 'b': Array([False,  True], dtype=bool)}
    """
    return _select(scores, [k])


def top_k_per_leaf(scores: base.Scores, counts: base.Counts) -> base.Masks:
    """Returns masks of the largest scores of each leaf.

    As `top_k` on each leaf, in one search for all of them.

    Args:
      scores: as in `top_k`.
      counts: the scores' tree of integers, how many each leaf keeps; may be
        traced. Values outside [0, leaf size] are clipped.

    Returns:
      The scores' tree of boolean arrays.

    Raises:
      NonFiniteScoreError: as in `top_k`.
      PruningError: as in `top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([1.0, 2.0])}
      >>> top_k_per_leaf(scores, {"a": 1, "b": 1})
      {'a': Array([ True, False], dtype=bool), 'b': Array([False,  True], dtype=bool)}
    """
    return _select(scores, jax.tree.structure(scores).flatten_up_to(counts))


def top_k_with_floors(
    scores: base.Scores, k: jax.typing.ArrayLike, floors: base.Counts
) -> base.Masks:
    """Returns masks of the k largest scores, with a least number kept per leaf.

    Each leaf first keeps its own `floor` largest; the rest of the k goes to the
    largest of what remains in the whole tree. If the floors add up to more than
    k, they win.

    Args:
      scores: as in `top_k`.
      k: as in `top_k`.
      floors: the scores' tree of integers in [0, leaf size]; may be traced.

    Returns:
      The scores' tree of boolean arrays with max(k, sum of floors) True.

    Raises:
      NonFiniteScoreError: as in `top_k`.
      PruningError: as in `top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"big": jnp.array([9.0, 8.0, 7.0]), "small": jnp.array([0.1, 0.2])}
      >>> top_k_with_floors(scores, 3, {"big": 1, "small": 1})["small"]
      Array([False,  True], dtype=bool)
    """
    first = top_k_per_leaf(scores, floors)
    return _select(scores, [k], first)


def kept_count(size: int, sparsity: jax.typing.ArrayLike) -> jax.Array:
    """Returns how many of `size` entries a sparsity keeps.

    size - round(size * sparsity), halves to even. A Python or NumPy number is
    evaluated in float64; a JAX array, traced or not, in split float32 arithmetic
    that is good to a tenth of a unit for every size below 2^31, where a plain
    product would be wrong by up to 64.

    Args:
      size: a number of entries in [0, 2^31).
      sparsity: a fraction in [0, 1]; JAX arrays are clipped to it.

    Returns:
      An int32 scalar in [0, size].

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], or the size has
        more than 31 bits.

    Example:
      >>> int(kept_count(1000, 0.9))
      100
    """
    if size >= 2**31:
        raise base.PruningError(f"{size} entries; fewer than 2^31 can be counted.")
    if not isinstance(sparsity, jax.Array):
        return jnp.asarray(known_kept_count(size, sparsity), jnp.int32)
    s = jnp.clip(jnp.asarray(sparsity, jnp.float32), 0.0, 1.0)
    # sparsity = coarse / 4096 + fine and size = 4096 * high + low, so that the
    # large part of the product is an exact integer and only a small rest rounds.
    coarse = jnp.floor(s * 4096)
    fine = s - coarse / 4096
    high, low = divmod(size, 4096)
    removed = high * coarse.astype(jnp.int32) + jnp.round(
        low * coarse / 4096 + np.float32(size) * fine
    ).astype(jnp.int32)
    return size - jnp.clip(removed, 0, size)


def known_kept_count(size: int, sparsity: jax.typing.ArrayLike) -> int:
    """Returns `kept_count` of a Python or NumPy number as a Python integer.

    Args:
      size: a number of entries, not negative.
      sparsity: a fraction in [0, 1].

    Returns:
      size - round(size * sparsity), halves to even, in float64.

    Raises:
      PruningError: if the sparsity is outside [0, 1].
    """
    return size - round(size * float(check_sparsity(sparsity)))


def check_sparsity(sparsity: jax.typing.ArrayLike) -> Any:
    """Returns the sparsity; raises if it is a number that is not in [0, 1].

    Args:
      sparsity: a Python or NumPy number; JAX arrays pass unchecked, traced or
        not, because looking at them would wait for the device.

    Returns:
      The argument.

    Raises:
      PruningError: if a known value is outside [0, 1] or NaN.
    """
    if not isinstance(sparsity, jax.Array):
        values = np.asarray(sparsity, np.float64)
        if not np.all((values >= 0) & (values <= 1)):
            raise base.PruningError(
                f"A sparsity is the fraction removed, in [0, 1]; got {sparsity}."
            )
    return sparsity


def check_no_nan(scores: base.Scores) -> None:
    """Raises if a score is NaN.

    Args:
      scores: a tree of real arrays.

    Raises:
      NonFiniteScoreError: naming every leaf with a NaN. Traced scores are
        checked by `jax.experimental.checkify` where it is in force.
    """
    bad = []
    for path, leaf in zip(
        tree.leaf_paths(scores), jax.tree.leaves(scores), strict=True
    ):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        count = jnp.sum(jnp.isnan(leaf), dtype=jnp.int32)
        if isinstance(count, jax.core.Tracer):
            checkify.debug_check(count == 0, f"NaN scores in {path!r}: {{n}}", n=count)
        elif count > 0:
            bad.append(f"{path!r} ({int(count)} of {np.size(leaf)})")
    if bad:
        raise base.NonFiniteScoreError(f"NaN scores in {', '.join(bad)}.")


def ordered_bits(x: jax.Array) -> jax.Array:
    """Returns unsigned integers in the order of `x`, of its own width.

    a < b if and only if bits(a) < bits(b), and a == b likewise, for every pair
    of floats other than NaN, subnormal numbers and both zeros included; a NaN
    ranks above infinity. Only integer operations touch the values, because
    floating-point comparisons flush subnormal numbers to zero on some devices.

    Args:
      x: a floating or integer array of 16, 32 or 64 bits.

    Returns:
      An array of `x`'s shape, dtype uint16, uint32 or uint64.
    """
    width = x.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{width}")
    sign = np.array(1 << (width - 1), unsigned)
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    bits = lax.bitcast_convert_type(x, unsigned)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return bits ^ sign
    magnitude = bits & ~sign
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, x.dtype), unsigned)
    ordered = jnp.where((bits & sign) == 0, bits | sign, ~bits)
    ordered = jnp.where(magnitude == 0, sign, ordered)  # -0.0 is 0.0
    return jnp.where(magnitude > infinity, infinity + 1 | sign, ordered)


def _select(scores: base.Scores, counts: list, kept: base.Masks = None) -> base.Masks:
    """Checks the scores and selects: one count for all leaves, or one for each."""
    check_no_nan(scores)
    leaves, treedef = jax.tree.flatten(scores)
    if not leaves:
        return scores
    sizes = [math.prod(np.shape(x)) for x in leaves]
    size = sum(sizes) if len(counts) == 1 else max(sizes)  # what is counted together
    if size >= 2**31:
        raise base.PruningError(
            f"{size} scores compete; fewer than 2^31 can be counted."
        )
    for c in counts:
        if not jnp.issubdtype(jnp.result_type(c), jnp.integer):
            raise base.PruningError(f"A count of entries is an integer; got {c}.")
    k = jnp.stack([jnp.asarray(c, jnp.int32) for c in counts])
    barred = None if kept is None else treedef.flatten_up_to(kept)
    return treedef.unflatten(_top_k(_common_dtype(scores), leaves, k, barred))


def _common_dtype(scores: base.Scores) -> jnp.dtype:
    """The one dtype, of 16, 32 or 64 bits, that holds all scores exactly."""
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
    dtypes = set(named.values())
    if (
        len(dtypes) == 1
        and (only := dtypes.pop()).itemsize in (2, 4, 8)
        and only.kind != "b"
    ):
        return only
    width = 64 if any(d.itemsize == 8 for d in named.values()) else 32
    if any(d == jnp.uint32 for d in named.values()):
        width = 64  # of mixed widths, where int32 would not hold it
    dtype = jnp.dtype(f"{'float' if floats else 'int'}{width}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise base.PruningError(f"Scores of types {sorted(map(str, named.values()))}.")
    return dtype


@functools.partial(jax.jit, static_argnums=0)
def _top_k(
    dtype: jnp.dtype, leaves: list[jax.Array], k: jax.Array, kept: list | None
) -> list[jax.Array]:
    """Masks of k entries: those already kept, then the largest of the rest.

    `k` has shape (1,) where all leaves compete, (leaves,) where each is alone.
    """
    keys = [ordered_bits(jnp.asarray(x).astype(dtype)) for x in leaves]
    if kept is not None:
        keys = [jnp.where(m, 0, x) for m, x in zip(kept, keys, strict=True)]
        k = k - counting.tally([[m] for m in kept], k.size)[:, 0]
    masks = _largest(keys, jnp.maximum(k, 0), kept)
    return masks if kept is None else list(map(jnp.logical_or, kept, masks))


def _largest(keys: list[jax.Array], k: jax.Array, barred: list | None) -> list:
    """Masks of the k largest keys that are not barred, ties to the lower index.

    A barred key has to be zero. It may then tie with a key of zero, and is kept
    out there by the ranks of the ties.
    """
    sizes = np.array([x.size for x in keys])
    alone = k.size == len(keys)
    group = np.arange(len(keys)) if alone else np.zeros(len(keys), int)
    total = sizes if alone else sizes.sum(keepdims=True)
    k = jnp.minimum(k, jnp.asarray(total, jnp.int32))
    threshold = counting.kth_largest(keys, k, keys[0].dtype.itemsize * 8)
    above = [x > threshold[g] for x, g in zip(keys, group, strict=True)]
    ties = [x == threshold[g] for x, g in zip(keys, group, strict=True)]
    counts = counting.tally([[a, t] for a, t in zip(above, ties, strict=True)], k.size)
    wanted = k - counts[:, 0]
    if barred is not None:
        ties = [tie & ~b for tie, b in zip(ties, barred, strict=True)]
    # The same search ranks the ties: by how far they are from the end.
    ends = sizes if alone else sizes[::-1].cumsum()[::-1]
    ranks = [
        jnp.where(tie, jnp.uint32(end) - counting.flat_index(tie), 0)
        for tie, end in zip(ties, ends, strict=True)
    ]
    bits = int(total.max()).bit_length()
    needed = jnp.any(counts[:, 1] > wanted)
    cutoff = counting.kth_largest(ranks, wanted, bits, needed)
    return [
        a | (tie & (rank >= cutoff[g]) & (wanted[g] > 0))
        for a, tie, rank, g in zip(above, ties, ranks, group, strict=True)
    ]
