"""The last link of a pruner: from scores to masks.

    keep_top(s)                      the best 1 - s of each leaf
    keep_top(s, scope="global")      the best 1 - s of all leaves together
    keep_within_budget(10**6)        the best value for a million bytes
    keep_n_of_m(2, 4)                the best 2 of each 4 along the input axis
    keep_above(t)                    what scores more than t

A score tree whose leaves are coarser than the params (after `pool_over_*`) gives
masks that broadcast: a channel or a block is kept or pruned as a whole.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import selection, tree
from jprune._core import base, compat, counting, ordering, precision
from jprune.links import _pooling
from jprune.links._allocate import Allocation, uniform


class KeepState(NamedTuple):
    """State of a `keep_*` link.

    Attributes:
      count: int32 scalar, updates so far: the clock of a schedule where the
        caller passes no `step`.
    """

    count: base.Scalar


def keep_top(
    sparsity: base.Sparsity,
    *,
    scope: Literal["leaf", "global"] = "leaf",
    allocation: Allocation | None = None,
    min_kept: int = 0,
) -> base.Pruner:
    """Keeps the highest scores and prunes a fraction `sparsity` of all.

    Exact: of n entries n - round(n * sparsity) are kept, ties going to the lower
    index in tree order.

    Args:
      sparsity: a fraction removed in [0, 1], a traced scalar, or a schedule
        from the training step to it.
      scope: what competes, the entries of each leaf or those of all leaves.
      allocation: for `scope="leaf"`, how the budget is divided; `uniform()` if
        None. See `jprune.links`.
      min_kept: the least number of entries that a leaf keeps (all of a leaf
        that is smaller). Within scope "global" it comes out of the budget;
        within scope "leaf" it goes on top of it.

    Returns:
      A link: scores -> masks. The keyword `step` of `update` is the clock of a
      schedule; without it the link counts its own updates.

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], the scope is not
        one of the two, an allocation is given to scope "global", or `min_kept`
        is negative.
      NonFiniteScoreError: if a score is NaN; see `jprune.selection.top_k`.

    Example:
      >>> import jax.numpy as jnp
      >>> link = keep_top(0.5)
      >>> params = {"w": jnp.array([0.3, 0.1, 0.2, 0.4])}
      >>> link.update(params, link.init(params), params)[0]
      {'w': Array([ True, False, False,  True], dtype=bool)}
    """
    if not callable(sparsity):
        selection.check_sparsity(sparsity)
    if scope not in ("leaf", "global"):
        raise base.PruningError(f"A scope is 'leaf' or 'global'; got {scope!r}.")
    if scope == "global" and allocation is not None:
        raise base.PruningError(
            "An allocation divides a budget among leaves: it has "
            "no meaning with scope='global'."
        )
    if min_kept < 0:
        raise base.PruningError(f"min_kept counts entries; got {min_kept}.")

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        s = _value(sparsity, step)
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

    return _link(select)


def bytes_of(path: str, w: Any) -> int:
    """Returns the bytes of a weight: the usual `cost` of `keep_within_budget`.

    Args:
      path: of the leaf; not looked at.
      w: the leaf.

    Returns:
      Bytes of one of its entries, at least 1.
    """
    del path
    return max(1, jnp.result_type(w).itemsize)


def keep_within_budget(
    budget: base.Scalar | Callable[[Any], base.Scalar],
    cost: Callable[[str, Any], int] = bytes_of,
    *,
    min_kept: int = 0,
) -> base.Pruner:
    """Keeps the scores that are the best value for their cost, within a budget.

    With c_l the cost of a weight of leaf l, weights are taken in the order of
    score / c_l while the sum of their costs is within the budget: a weight of a
    convolution that is multiplied a thousand times has to be worth it. See
    `jprune.selection.top_within_budget`.

    Args:
      budget: how much all kept weights may cost together, an integer in the unit
        of the costs, traced or not; or a schedule from the training step to it,
        rounded to an integer.
      cost: `(path, leaf) -> c_l`, a positive integer: its bytes, FLOPs, picojoules.
        A score that stands for several weights (after `pool_over_*`) costs what
        they cost together.
      min_kept: as in `keep_top`: it comes out of the budget.

    Returns:
      A link: scores -> masks.

    Raises:
      PruningError: if the budget is a negative number, `min_kept` is negative, or
        (when used) a cost is not a positive integer, or the largest is more than
        65536 times the greatest common divisor of all; names the leaf.
      NonFiniteScoreError: if a score is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> link = keep_within_budget(6, lambda path, w: 4 if "conv" in path else 1)
      >>> params = {"conv": jnp.array([8.0, 5.0]), "dense": jnp.array([3.0, 1.0])}
      >>> masks = link.update(params, link.init(params), params)[0]
      >>> masks["conv"].tolist(), masks["dense"].tolist()
      ([True, False], [True, False])
    """
    if not callable(budget):
        _whole(budget)
    if min_kept < 0:
        raise base.PruningError(f"min_kept counts entries; got {min_kept}.")

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        costs = tree.map_with_path(
            lambda path, w, x: cost(path, w) * (np.size(w) // max(1, np.size(x))),
            params,
            scores,
        )
        most = _whole(_value(budget, step))
        floors = None
        if min_kept:
            floors = jax.tree.map(lambda x: min(min_kept, np.size(x)), scores)
        return selection.top_within_budget(scores, costs, most, floors=floors)

    return _link(select)


def keep_above(threshold: base.Sparsity) -> base.Pruner:
    """Keeps every score above a threshold.

    Args:
      threshold: a number, a traced scalar, or a schedule from step to it.

    Returns:
      A link: scores -> masks, True where score > threshold.

    Raises:
      NonFiniteScoreError: if a score is NaN.
    """

    def select(
        scores: base.Scores, params: base.Params, step: base.Scalar
    ) -> base.Masks:
        del params
        selection.check_no_nan(scores)
        t = _value(threshold, step)
        return jax.tree.map(lambda x: _above(jnp.asarray(x), t), scores)

    return _link(select)


def keep_n_of_m(
    n: int,
    m: int,
    *,
    axis: Literal["input", "output"] = "input",
    layout: tree.KernelLayout = tree.kernel_axes,
) -> base.Pruner:
    """Keeps the n highest scores of every m consecutive entries along an axis.

    Sparse matrix units contract along the input axis, so that is the default;
    which axis that is depends on the framework, see `jprune.kernel_axes`.

    Args:
      n: how many of a group are kept, in [1, m].
      m: the size of a group; has to divide the axis.
      axis: the role of the axis. Of several axes in that role the last is meant.
      layout: which axes of a leaf play which role.

    Returns:
      A link: scores -> masks with exactly n of each m True; of equal scores the
      lower index is kept.

    Raises:
      PruningError: if not 1 <= n <= m, the axis is neither role, or m does not
        divide the axis of a leaf.
      NonFiniteScoreError: if a score is NaN.

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
    if not 1 <= n <= m:
        raise base.PruningError(f"n:m keeps n of m with 1 <= n <= m; got {n}:{m}.")
    if axis not in ("input", "output"):
        raise base.PruningError(f"An axis is 'input' or 'output'; got {axis!r}.")

    def leaf(path: str, w: Any, x: jax.Array) -> jax.Array:
        roles = layout(path, w)
        along = (roles.input if axis == "input" else roles.output)[-1]
        if x.shape[along] % m:
            raise base.PruningError(
                f"{m} does not divide axis {along} ({axis}) of {path!r}, shape "
                f"{x.shape}: choose other leaves with where=, or another m."
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
    """The n largest of each m along an axis, by counting who beats whom.

    m^2 comparisons of whole slices, which XLA fuses into one pass; nothing is
    sorted.
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


def _whole(budget: Any) -> Any:
    """The nearest integer: exact for Python numbers, and for what a float32 holds."""
    if isinstance(budget, jax.Array):
        floating = jnp.issubdtype(budget.dtype, jnp.floating)
        return counting.nearest(budget) if floating else budget
    if not 0 <= budget < float("inf"):
        raise base.PruningError(f"A budget is a number >= 0; got {budget}.")
    return round(budget.item() if isinstance(budget, np.generic) else budget)


def _above(x: jax.Array, t: Any) -> jax.Array:
    """Whether x > t, in the order of the integer view: nothing is flushed to zero."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return _integers_above(x, t)
    x = precision.wide(x)
    # A known number is rounded on the host, where subnormal numbers survive.
    t = t.astype(x.dtype) if isinstance(t, jax.Array) else jnp.asarray(t, x.dtype)
    return ordering.ordered_bits(x) > ordering.ordered_bits(t)


def _integers_above(x: jax.Array, t: Any) -> jax.Array:
    """Whether integers are above a threshold that their type may not hold."""
    least, most = int(jnp.iinfo(x.dtype).min), int(jnp.iinfo(x.dtype).max)
    if not isinstance(t, jax.Array):
        whole = math.floor(min(max(t, least - 1), most))
        if whole < least:
            return jnp.ones_like(x, bool)
        return x > np.array(whole, x.dtype)
    if jnp.issubdtype(t.dtype, jnp.integer):
        own = jnp.iinfo(t.dtype)
        ends = max(least, int(own.min)), min(most, int(own.max))
        low, high = (np.array(end, t.dtype) for end in ends)
        return (t < low) | (x > jnp.clip(t, low, high).astype(x.dtype))
    t = precision.wide(t)
    within = (t >= least) & (t < float(most + 1))
    whole = jnp.where(within, jnp.floor(t), 0).astype(x.dtype)
    return (t < least) | (within & (x > whole))


def _value(value: base.Sparsity, step: base.Scalar) -> jax.typing.ArrayLike:
    return value(step) if callable(value) else value


def _link(select: Any) -> base.Pruner:
    """A link from `select(scores, params, step) -> masks` of the scores' shapes."""

    def init(params: base.Params) -> KeepState:
        del params
        return KeepState(jnp.zeros((), jnp.int32))

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
                "A pruner needs scores and params: begin it with a score_by_* link, "
                "and call update(grads, state, params)."
            )
        masks = select(updates, params, state.count if step is None else step)
        masks = jax.tree.map(lambda w, m: _pooling.spread(m, w), params, masks)
        return masks, KeepState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
