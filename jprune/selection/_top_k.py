"""Exact top-k masks over a tree, by counting.

A selection finds the k-th largest score, keeps the scores above it, and of those equal
to it the ones of lowest index. To find it, each pass counts how many scores reach each
of seven pivots, which gives three bits of the answer. Scores are compared as integers
in the same order. So nothing is sorted, concatenated or gathered: a mesh exchanges a
few scalars per pass, k may be traced, and all backends agree.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from jprune import tree
from jprune._core import base, counting, words
from jprune.selection import _batching, _boundary, _cutoffs, _dtypes, _kernels

Count = jax.typing.ArrayLike | counting.Total
"""A number of entries: an integer, or a `kept_count` of 2^31 entries or more."""

_MANY_LEAVES = 200
_MANY_ENTRIES = 2**47 - 1  # the largest `Total`


def top_k(scores: base.Scores, k: Count, *, specs: Any = None) -> base.Masks:
    """Returns masks of the k largest scores of the whole tree.

    Keeps exactly k entries. Ties go to the lower index in tree order (leaves in the
    order of `jax.tree.leaves`, each in row-major order); -0.0 ties with 0.0. Sharded
    leaves keep their shardings and are not gathered.

    Outside of a trace, a loop on the host calls jitted counts of the scores, which
    compile once per shape of a large leaf and once for all smaller ones, so a tree of
    thousands of leaves takes seconds. Inside `jax.jit` the selection is part of the
    caller's program, whose compile time grows with the number of distinct shapes of
    small leaves and with the number of large leaves.

    Args:
      scores: tree of real arrays of any shapes, all floating point or all integer, with
        fewer than 2^32 entries per leaf.
      k: number of entries to keep, an integer in [0, n] for n scores in total; may be
        traced. Values outside are clipped. Where k may be 2^31 or more, a Python
        integer or the result of `kept_count`.
      specs: inside `jax.shard_map`, where leaves are local shards: tree of their
        `PartitionSpec`s, as in `in_specs`. The masks are the local shards of the masks
        of the whole arrays.

    Returns:
      The scores' tree of boolean arrays, True for the k largest scores.

    Raises:
      NonFiniteScoreError: if a score is NaN; names the leaf. Under `jit` this is a
        `checkify` debug check, and a NaN ranks above infinity: it is kept, so that it
        shows in the params instead of being masked.
      PruningError: if k is not an integer, or leaves are complex, mix floats and
        integers, or hold 2^32 scores or more.

    Example:
      >>> import jax.numpy as jnp
      >>> top_k({"a": jnp.array([3.0, 1.0]), "b": jnp.array([1.0, 2.0])}, 3)
      {'a': Array([ True,  True], dtype=bool), 'b': Array([False,  True], dtype=bool)}
    """
    return _select(scores, [k], specs=specs)


def top_k_per_leaf(
    scores: base.Scores, counts: base.Counts, *, specs: Any = None
) -> base.Masks:
    """Returns masks of the k largest scores of each leaf, with a k for each.

    Equal to `top_k` on each leaf, in one search for all leaves.

    Args:
      scores: tree of real arrays, as in `top_k`.
      counts: the scores' tree of integers, the number of entries that each leaf keeps;
        may be traced. Values outside [0, leaf size] are clipped.
      specs: as in `top_k`.

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
    each = jax.tree.structure(scores).flatten_up_to(counts)
    return _select(scores, each, alone=True, specs=specs)


def top_k_with_floors(
    scores: base.Scores, k: Count, floors: base.Counts, *, specs: Any = None
) -> base.Masks:
    """Returns masks of the k largest scores, with a minimum number kept per leaf.

    Each leaf first keeps as many of its largest scores as its floor says. The rest of
    the k entries are the largest of the remaining scores of the whole tree. If the
    floors sum to more than k, they take precedence.

    Args:
      scores: tree of real arrays, as in `top_k`.
      k: number of entries to keep, as in `top_k`.
      floors: the scores' tree of integers in [0, leaf size], the minimum number of
        entries that each leaf keeps; may be traced.
      specs: as in `top_k`.

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
    return _select(scores, [k], floors=floors, specs=specs)


def top_within_budget(
    scores: base.Scores,
    costs: base.Counts,
    budget: Count,
    *,
    floors: base.Counts | None = None,
    specs: Any = None,
) -> base.Masks:
    """Returns masks of the scores of best value for their costs, within a budget.

    An entry of leaf l costs c_l: its bytes, FLOPs or picojoules, for example. Entries
    are kept in the order of score / c_l, ties in tree order, as long as

        sum over leaves of c_l * kept_l <= budget.

    The first entry that does not fit ends the selection, so masks of a smaller budget
    are contained in those of a larger one. This is the greedy solution of the knapsack
    problem: no other selection of the same cost keeps a larger sum of scores, and the
    optimum for the budget is better by less than one entry. With equal costs it is
    `top_k`.

    Args:
      scores: tree of real arrays, as in `top_k`, not negative. Where costs differ,
        scores are compared in float32, or float64, as products with 1 / c_l, rounded
        to the mantissa of that type, without underflow.
      costs: the scores' tree of positive integers, known (not traced), each at most
        65536 times the greatest common divisor of all.
      budget: integer >= 0, in the unit of the costs; may be traced.
      floors: minimum number of entries per leaf, as in `top_k_with_floors`. They are
        kept even beyond the budget, and paid from it.
      specs: as in `top_k`.

    Returns:
      The scores' tree of boolean arrays.

    Raises:
      NonFiniteScoreError: as in `top_k`.
      PruningError: as in `top_k`; if the budget is not an integer; or if a cost is out
        of range, naming the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"conv": jnp.array([8.0, 5.0]), "dense": jnp.array([3.0, 1.0])}
      >>> masks = top_within_budget(scores, {"conv": 4, "dense": 1}, 6)
      >>> masks["conv"].tolist(), masks["dense"].tolist()
      ([True, False], [True, False])

    References:
      Dantzig, Discrete-Variable Extremum Problems, 1957 (the greedy bound).
    """
    each = _known_costs(scores, costs)
    # In units of the greatest common divisor of all costs.
    unit = math.gcd(*each)
    each = [cost // unit for cost in each]
    for path, cost in zip(tree.leaf_paths(scores), each, strict=True):
        if cost > 2**16:
            raise base.PruningError(
                f"The cost of {path!r} is {cost} times the greatest common divisor of "
                "all costs; at most 65536 times can be counted."
            )
    most = _divided(budget, max(1, unit))
    weights = None if set(each) <= {1} else each  # equal costs: a `top_k`
    return _select(scores, [most], floors=floors, costs=weights, specs=specs)


def count_top_k(scores: base.Scores, k: Count, *, specs: Any = None) -> base.Counts:
    """Returns how many entries of each leaf `top_k` keeps, without making masks.

    Args:
      scores: tree of real arrays, as in `top_k`.
      k: number of entries to keep, as in `top_k`.
      specs: as in `top_k`.

    Returns:
      The scores' tree of uint32 scalars.

    Raises:
      NonFiniteScoreError: as in `top_k`.
      PruningError: as in `top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([1.0, 2.0])}
      >>> {name: int(n) for name, n in count_top_k(scores, 3).items()}
      {'a': 2, 'b': 1}
    """
    return _select(scores, [k], specs=specs, as_counts=True)


def check_no_nan(scores: base.Scores) -> None:
    """Raises if a score is NaN.

    Args:
      scores: tree of real arrays. Traced ones are checked by a `checkify` debug check,
        which acts only under `jax.experimental.checkify`.

    Raises:
      NonFiniteScoreError: if a score is NaN; names every leaf with NaNs.

    Example:
      >>> check_no_nan({"a": jnp.ones(3)})
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


def _select(
    scores: base.Scores,
    wanted: Sequence[Any],
    *,
    alone: bool = False,
    floors: base.Counts | None = None,
    costs: list[int] | None = None,
    specs: Any = None,
    as_counts: bool = False,
) -> Any:
    """Checks the arguments, and runs the selection on the host or in the trace."""
    leaves, treedef = jax.tree.flatten(scores)
    if not leaves:
        return scores
    dtype = _dtypes.common_dtype(scores)
    spread = [None] * len(leaves) if specs is None else treedef.flatten_up_to(specs)
    sizes = [
        math.prod(np.shape(x)) * counting.shard_factor(spec)
        for x, spec in zip(leaves, spread, strict=True)
    ]
    if (most := max(sizes)) >= 2**32:
        raise base.PruningError(
            f"{tree.leaf_paths(scores)[sizes.index(most)]!r} has {most} scores; a leaf "
            "holds fewer than 2^32."
        )
    if costs is not None and dtype != jnp.float64:
        dtype = jnp.dtype(jnp.float32)
    task = _boundary.Task(
        budget=_integers(wanted),
        sizes=jnp.asarray(np.array(sizes, np.uint32)),  # traced within any trace
        floors=None if floors is None else _floors(treedef.flatten_up_to(floors)),
        costs=None if costs is None else jnp.asarray(np.array(costs, np.uint32)),
        rates=None if costs is None else jnp.asarray(1 / np.array(costs, dtype)),
    )
    work = jax.tree.leaves((leaves, task))
    on_host = not any(isinstance(x, jax.core.Tracer) for x in work)
    if on_host:
        known = jax.device_get(task)
        result, nan = _run(leaves, known, dtype, tuple(spread), as_counts)
    else:
        # With several devices, leaves may be sharded, which a trace does not tell.
        alone = jax.device_count() == 1
        result, nan = _run_traced(leaves, task, dtype, tuple(spread), as_counts, alone)
    _check_nan(scores, leaves, nan)
    return treedef.unflatten(result)


def _run(
    leaves: list[Any],
    task: _boundary.Task,
    dtype: jnp.dtype,
    specs: tuple[Any, ...],
    as_counts: bool,
    in_rows: bool = False,
    on_host: bool = True,
) -> tuple[list[Any], Any]:
    """Masks or counts, and for each leaf whether it has a NaN."""
    batches = _batching.batch(leaves, specs, dtype, on_host, in_rows)
    cut = _cutoffs.cutoffs(batches, dtype, task, on_host)
    nan = _kernels.has_nan(cut.greatest, dtype)
    if as_counts:
        return counting.unstacked(cut.counts), nan
    found = [_kernels.kept(b, dtype, task.rates, cut.keys, cut.ranks) for b in batches]
    return _batching.unbatch(batches, found, leaves), nan


# Jitted for callers inside a `vmap` only, where it would run operation by operation.
_run_traced = jax.jit(
    functools.partial(_run, on_host=False),
    static_argnames=("dtype", "specs", "as_counts", "in_rows"),
)


def _integers(counts: Sequence[Any]) -> counting.Total:
    """Integers as a `Total`, along a first axis."""
    if len(counts) == 1 and isinstance(counts[0], counting.Total):
        return jax.tree.map(jnp.atleast_1d, counts[0])
    for c in counts:
        if not _is_integer(c):
            raise base.PruningError(f"A number of entries is an integer; got {c}.")
    if any(isinstance(c, jax.core.Tracer) for c in counts):
        arrays = [c for c in counts if isinstance(c, jax.Array)]
        if len(arrays) == len(counts) and len({c.dtype for c in arrays}) == 1:
            # Stacked first: converted one by one, they compile for longer.
            return counting.total(jnp.stack(arrays))
        each = [counting.total(c) for c in counts]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *each)
    known = [int(c) for c in jax.device_get(list(counts))]
    return counting.total(np.array([min(max(c, 0), _MANY_ENTRIES) for c in known]))


def _divided(budget: Any, unit: int) -> Any:
    """Returns floor(budget / unit), for every kind of integer."""
    if not isinstance(budget, counting.Total):
        if not _is_integer(budget):
            raise base.PruningError(f"A budget is an integer; got {budget}.")
        if not isinstance(budget, jax.core.Tracer):
            return int(budget) // unit
    if unit == 1:
        return budget
    return words.quotient(words.of_total(counting.total(budget)), unit)


def _is_integer(n: Any) -> bool:
    """Whether n is an integer scalar; Python integers may exceed every dtype."""
    if isinstance(n, bool | int):
        return not isinstance(n, bool)
    return getattr(n, "shape", None) == () and jnp.issubdtype(n.dtype, jnp.integer)


def _floors(floors: Sequence[Any]) -> jax.Array:
    return _integers(floors).modular


def _known_costs(scores: base.Scores, costs: base.Counts) -> list[int]:
    """The cost of an entry of each leaf, as Python integers."""
    each = jax.tree.structure(scores).flatten_up_to(costs)
    for path, cost in zip(tree.leaf_paths(scores), each, strict=True):
        if isinstance(cost, jax.core.Tracer) or not _is_integer(cost):
            raise base.PruningError(
                f"A cost is a known integer, not a tracer; that of {path!r} is {cost}."
            )
        if cost < 1:
            raise base.PruningError(f"A cost is positive; that of {path!r} is {cost}.")
    return [int(cost) for cost in each]


def _check_nan(scores: base.Scores, leaves: list[Any], nan: jax.Array) -> None:
    """Raises if a leaf has a NaN; in a trace, through `checkify`."""
    if not isinstance(nan, jax.core.Tracer):
        if bad := np.flatnonzero(jax.device_get(nan)).tolist():
            paths = tree.leaf_paths(scores)
            raise base.NonFiniteScoreError(
                "NaN scores in "
                + ", ".join(
                    f"{paths[i]!r} ({int(jnp.isnan(leaves[i]).sum())} of "
                    f"{np.size(leaves[i])})"
                    for i in bad
                )
                + "."
            )
    elif len(leaves) <= _MANY_LEAVES:
        for i, path in enumerate(tree.leaf_paths(scores)):
            checkify.debug_check(~nan[i], f"NaN scores in {path!r}")
    else:  # one check per leaf would take most of the tracing time
        checkify.debug_check(
            ~jnp.any(nan),
            "NaN scores in leaf {n} of jprune.leaf_paths(scores)",
            n=jnp.argmax(nan),
        )
