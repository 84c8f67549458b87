"""The last link of a pruner: from scores to masks.

    keep_top(s)                      the best 1 - s of each leaf
    keep_top(s, scope="global")      the best 1 - s of all leaves together
    keep_within_budget(10**6)        the best value for a million bytes
    keep_n_of_m(2, 4)                the best 2 of every 4 along the input axis
    keep_above(t)                    scores above t

Pooled scores (from `pool_over_*`) give masks of whole channels or blocks, which
broadcast to the params.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import selection, tree
from jprune._core import base, compat, events, ordering
from jprune.links import _pooling, _values
from jprune.links._allocate import Allocation, uniform
from jprune.links._common import axes_of_role


class KeepState(NamedTuple):
    """State of a `keep_*` link.

    Attributes:
      count: int32 scalar, number of updates so far: the step of a schedule, unless the
        caller passes `step`.
      interval: static, no array: the steps in which the link's schedule changes, which
        `sparsify` reads; None for a number, or a schedule that has none.
    """

    count: base.Scalar
    interval: events.Interval | None = None


def keep_top(
    sparsity: base.Sparsity,
    *,
    scope: Literal["leaf", "global"] = "leaf",
    allocation: Allocation | None = None,
    min_kept: int = 0,
) -> base.Pruner:
    """Keeps the highest scores, so that a fraction `sparsity` is pruned.

    Exact: of n entries, n - round(n * sparsity) are kept. Ties go to the lower index in
    tree order.

    Args:
      sparsity: fraction removed, in [0, 1]; a number, a traced scalar, or a schedule
        from the training step to it. A traced value outside, or NaN, prunes nothing,
        and `jax.experimental.checkify` reports it.
      scope: "leaf" ranks the entries of each leaf separately, "global" ranks those of
        all leaves together.
      allocation: for scope "leaf", divides the kept entries among leaves; `uniform()`
        if None. See `jprune.links`.
      min_kept: minimum number of entries that each leaf keeps (smaller leaves keep
        all). With scope "global" the total does not change, unless the minimums sum to
        more than it, which then are kept; with scope "leaf" it may grow.

    Returns:
      A link: scores -> masks, True where kept. A schedule gets the keyword `step` of
      `update`, or without it the number of updates so far.

    Raises:
      PruningError: if the sparsity is no number in [0, 1], `scope` is not one of
        its values, an allocation is given with scope "global", or `min_kept` is
        negative.
      NonFiniteScoreError: if a score is NaN; see `jprune.selection.top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> link = keep_top(0.5)
      >>> params = {"w": jnp.array([0.3, 0.1, 0.2, 0.4])}
      >>> link.update(params, link.init(params), params)[0]
      {'w': Array([ True, False, False,  True], dtype=bool)}
    """
    selection.check_sparsity(sparsity)
    if scope not in ("leaf", "global"):
        raise base.PruningError(f"scope is 'leaf' or 'global'; got {scope!r}.")
    if scope == "global" and allocation is not None:
        raise base.PruningError(
            "An allocation divides the kept entries among leaves, which has no meaning "
            "with scope='global'; leave it out, or use scope='leaf'."
        )
    if min_kept < 0:
        raise base.PruningError(f"min_kept is a number >= 0; got {min_kept}.")

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        s = _values.value_at(sparsity, step)
        floors = jax.tree.map(lambda x: min(min_kept, np.size(x)), scores)
        if scope == "global":
            n = sum(np.size(x) for x in jax.tree.leaves(scores))
            k = selection.kept_count(n, s)
            if min_kept:
                return selection.top_k_with_floors(scores, k, floors)
            return selection.top_k(scores, k)
        counts = (allocation or uniform())(scores, params, s)
        if min_kept:
            counts = jax.tree.map(jnp.maximum, counts, floors)
        return selection.top_k_per_leaf(scores, counts)

    return _link(select, sparsity)


def bytes_of(path: str, w: Any) -> int:
    """Returns the bytes per weight of a leaf, the default `cost` of a budget.

    Args:
      path: path of the leaf; not used.
      w: leaf.

    Returns:
      Bytes of one entry, at least 1.

    Example:
      >>> bytes_of("dense/kernel", jnp.ones((2, 2), jnp.bfloat16))
      2
    """
    del path
    return max(1, jnp.result_type(w).itemsize)


def keep_within_budget(
    budget: base.Scalar | Callable[[Any], base.Scalar],
    cost: Callable[[str, Any], int] = bytes_of,
    *,
    min_kept: int = 0,
) -> base.Pruner:
    """Keeps the scores of best value for their cost, within a budget.

    With c_l the cost of a weight of leaf l, weights are kept in the order of score /
    c_l, as long as the sum of their costs is within the budget. So a weight of a
    convolution, which takes part in a thousand multiplications, needs a higher score.
    See `jprune.selection.top_within_budget`.

    Args:
      budget: largest total cost of the kept weights, >= 0, in the unit of the costs; a
        number, a traced scalar, or a schedule from the training step to it. Rounded to
        the nearest integer, and then exact, also beyond 2^31. (A float32, such as
        Optax's schedules return, holds integers above 2^24 in steps: of 512 at 5e9.)
        A traced value that is negative or NaN prunes nothing, and `checkify` reports
        it.
      cost: `(path, leaf) -> c_l`, a positive integer: bytes, FLOPs or picojoules per
        weight. A pooled score (after `pool_over_*`) costs as much as its weights
        together.
      min_kept: minimum number of entries that each leaf keeps (smaller leaves keep
        all), paid from the budget.

    Returns:
      A link: scores -> masks, True where kept. A schedule gets the keyword `step` of
      `update`, or without it the number of updates so far.

    Raises:
      PruningError: if the budget is a negative or infinite number or NaN, `min_kept` is
        negative, or (when used) a cost is not a positive integer, or more than 65536
        times the greatest common divisor of all; names the leaf.
      NonFiniteScoreError: if a score is NaN; see `jprune.selection.top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> link = keep_within_budget(6, lambda path, w: 4 if "conv" in path else 1)
      >>> params = {"conv": jnp.array([8.0, 5.0]), "dense": jnp.array([3.0, 1.0])}
      >>> masks = link.update(params, link.init(params), params)[0]
      >>> masks["conv"].tolist(), masks["dense"].tolist()
      ([True, False], [True, False])
    """
    _values.check_budget(budget)
    if min_kept < 0:
        raise base.PruningError(f"min_kept is a number >= 0; got {min_kept}.")

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        def price(path: str, w: Any, x: jax.Array) -> int:
            return cost(path, w) * max(1, np.size(w) // max(1, np.size(x)))

        costs = tree.map_with_path(price, params, scores)
        most = _values.whole(_values.value_at(budget, step))
        floors = None
        if min_kept:
            floors = jax.tree.map(lambda x: min(min_kept, np.size(x)), scores)
        return selection.top_within_budget(scores, costs, most, floors=floors)

    return _link(select, budget)


def keep_above(threshold: base.Sparsity) -> base.Pruner:
    """Keeps every score above a threshold.

    The comparison is exact for integers and for subnormal numbers, which devices flush
    to zero otherwise.

    Args:
      threshold: in the unit of the scores; a number, a traced scalar, or a schedule
        from the training step to it. A traced NaN prunes nothing, and `checkify`
        reports it.

    Returns:
      A link: scores -> masks, True where score > threshold. A schedule gets the keyword
      `step` of `update`, or without it the number of updates so far.

    Raises:
      PruningError: if the threshold is NaN, no number, or too large for a float64.
      NonFiniteScoreError: if a score is NaN; see `jprune.selection.top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> link = keep_above(0.25)
      >>> params = {"w": jnp.array([0.3, 0.1, 0.2, 0.4])}
      >>> link.update(params, link.init(params), params)[0]
      {'w': Array([ True, False, False,  True], dtype=bool)}
    """
    _values.check_threshold(threshold)

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        del params
        selection.check_no_nan(scores)
        t = _values.value_at(threshold, step)
        return jax.tree.map(lambda x: _values.above(jnp.asarray(x), t), scores)

    return _link(select, threshold)


def keep_n_of_m(
    n: int,
    m: int,
    *,
    axis: Literal["input", "output"] = "input",
    layout: tree.KernelLayout = tree.kernel_axes,
) -> base.Pruner:
    """Keeps the n highest scores of every m consecutive entries along an axis (N:M).

    Sparse matrix units group weights along the axis that is contracted, so the input
    axis is the default. Its position depends on the framework; see
    `jprune.kernel_axes`.

    Args:
      n: number of entries kept per group, in [1, m].
      m: size of a group; has to divide the axis.
      axis: role of the axis, "input" or "output". Of several axes with that role, the
        last one is grouped.
      layout: function `(path, leaf) -> KernelAxes`, the roles of the axes.

    Returns:
      A link: scores -> masks with exactly n of every m entries True; ties go to the
      lower index.

    Raises:
      PruningError: if n or m is no static integer, not 1 <= n <= m, `axis` is not one
        of its values, or (when used) a leaf has no such axis or m does not divide it;
        names the leaf.
      NonFiniteScoreError: if a score is NaN; see `jprune.selection.top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> link = keep_n_of_m(2, 4)
      >>> params = {"kernel": jnp.array([[1.0], [4.0], [3.0], [2.0]])}
      >>> link.update(params, link.init(params), params)[0]["kernel"][:, 0]
      Array([False,  True,  True, False], dtype=bool)

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021,
      arXiv:2104.08378. Zhou et al., Learning N:M Fine-grained Structured Sparse
      Neural Networks From Scratch, 2021, arXiv:2102.04010.
    """
    if not all(isinstance(x, int | np.integer) for x in (n, m)):
        raise base.PruningError(
            f"The n and m of an n:m pattern are static Python integers; got {n}:{m}."
        )
    if not 1 <= n <= m:
        raise base.PruningError(f"An n:m pattern needs 1 <= n <= m; got {n}:{m}.")
    if axis not in ("input", "output"):
        raise base.PruningError(f"axis is 'input' or 'output'; got {axis!r}.")

    def leaf(path: str, w: Any, x: jax.Array) -> jax.Array:
        along = axes_of_role(layout, axis, path, w)[-1]
        if x.shape[along] % m:
            raise base.PruningError(
                f"{m} does not divide axis {along} ({axis}) of {path!r}, shape "
                f"{x.shape}: exclude the leaf with where=, or choose another m."
            )
        pattern = functools.partial(_n_of_m, n=n, m=m, axis=along)
        return compat.auto_partition(pattern, x, like=x)

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        del step
        selection.check_no_nan(scores)
        return tree.map_with_path(leaf, params, scores)

    return _link(select)


@functools.partial(jax.jit, static_argnames=("n", "m", "axis"))
def _n_of_m(x: jax.Array, n: int, m: int, axis: int) -> jax.Array:
    """Masks of the n largest of every m entries, by rank.

    The rank of an entry is the number of entries of its group that are larger. m^2
    comparisons of whole slices, which XLA fuses into one pass, instead of a sort.
    """
    x = x if x.dtype.itemsize > 1 else x.astype(jnp.float32)
    bits = ordering.ordered_bits(x)
    groups = bits.reshape(*x.shape[:axis], x.shape[axis] // m, m, *x.shape[axis + 1 :])
    entries = [lax.index_in_dim(groups, i, axis + 1) for i in range(m)]
    kept = []
    for i, own in enumerate(entries):
        beaten = [other >= own for other in entries[:i]]
        beaten += [other > own for other in entries[i + 1 :]]
        rank = sum(
            (b.astype(jnp.int32) for b in beaten), jnp.zeros_like(own, jnp.int32)
        )
        kept.append(rank < n)
    return jnp.concatenate(kept, axis + 1).reshape(x.shape)


def _link(select: Any, schedule: Any = None) -> base.Pruner:
    """A link from `select(scores, params, step) -> masks` with the scores' shapes."""
    interval = events.interval_of(schedule)

    def init(params: base.Params) -> Any:
        del params
        return KeepState(jnp.zeros((), jnp.int32), interval)

    def update(
        updates: base.Scores,
        state: Any,
        params: Any = None,
        *,
        step: base.Scalar | None = None,
        **extra: Any,
    ):
        del extra
        if params is None or updates is None:
            raise base.PruningError(
                "A keep_* link needs scores and params: begin the pruner with a "
                "score_by_* link, and call update(grads, state, params)."
            )
        scores = tree.in_tree_of(params, updates, "scores")
        _check_shapes(params, scores)
        masks = select(scores, params, state.count if step is None else step)
        masks = jax.tree.map(lambda w, m: _pooling.spread(m, w), params, masks)
        return masks, state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _check_shapes(params: base.Params, scores: base.Scores) -> None:
    """Raises unless scores, perhaps pooled, have shapes that spread to their leaves."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(scores), strict=True)
    for i, (w, x) in enumerate(pairs):
        shape, pooled = np.shape(w), np.shape(x)
        if shape != pooled and (
            len(shape) != len(pooled)
            or any(n % max(1, k) for n, k in zip(shape, pooled, strict=True))
        ):
            raise base.PruningError(
                f"The scores of {tree.leaf_paths(params)[i]!r} have shape {pooled}; "
                f"those of single weights have the shape {shape}, and those of "
                "channels or blocks divide the shape."
            )
