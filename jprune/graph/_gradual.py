"""Pruning and training in turns, from a function to a smaller one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jprune._core import base
from jprune.graph._compress import (
    Compressed,
    choose_widths,
    group_l2,
    may_shrink,
)
from jprune.graph._cost import Cost, multiply_adds
from jprune.graph._engine.sizes import known
from jprune.graph._groups import Group
from jprune.graph._obstacles import shrinkable
from jprune.graph._plan import Plan, compose, keep_of, make_plan
from jprune.graph._shrink import check_params, shrink
from jprune.graph._slicing import slice_tree
from jprune.graph._trace import Graph, trace

Train = Callable[[Callable[..., Any], base.Params, int], base.Params]
"""`(small_fn, small_params, step) -> params` of the same shapes, trained."""


def compress_gradually(
    fn: Callable[..., Any],
    params: base.Params,
    *inputs: Any,
    train: Train,
    steps: int = 5,
    remove: float = 0.5,
    cost: Cost = multiply_adds,
    score: Callable[[Graph, base.Params], Any] = group_l2,
    multiple_of: int = 8,
    exclude: str | Sequence[str] = (),
    most: float | Callable[[Group], float] = 1.0,
    shrinking: base.Predicate | None = None,
) -> Compressed:
    """Removes a fraction of a function's cost in steps, with training after each.

    Step i of n scores the trained entries that are left, and removes the lowest until

        cost_i <= (1 - remove i / n) cost_0

    as `compress` does in one step; then `train` recovers what was lost. A network that
    is pruned little by little ends better than one that loses as much at once.

    Args:
      fn: `(params, *inputs) -> results`, as in `compress`.
      params: pytree of arrays.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`s; their shapes count.
      train: `(small_fn, small_params, step) -> params`, called after each step with its
        number, from 0; it returns params of the same shapes. An optimizer is made
        anew in it.
      steps: number n of steps, at least 1.
      remove: fraction of the cost to remove in all steps together, in [0, 1).
      cost: what is reduced: `multiply_adds`, `parameters`, or another cost.
      score: `(graph, params) -> {group name: scores (size,)}`, at each step, of the
        function and the params that are left then.
      multiple_of: as in `compress`.
      exclude: regular expressions of the leaves that stay whole, as in `compress`.
      most: greatest fraction of a group's entries that all steps together remove, in
        [0, 1]; or a function `group -> fraction` of the full groups, a ratio per
        layer.
      shrinking: predicate of the results that may shrink, as in `compress`.

    Returns:
      A `Compressed`. Its plan and kept entries are those of the full params, and its
      params are the trained ones.

    Raises:
      PruningError: if `steps` is not positive, or as `compress`, before anything is
        trained; if `train` returns params of other shapes; if a later step cannot go
        on, as when all that is left to remove are experts: they are removed in the
        first step only, since a router of fewer experts freezes their axis.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((4, 64)), "out": jnp.ones((64, 2))}
      >>> def train(small_fn, small, step):
      ...   print(step, small["in"].shape)
      ...   return jax.tree.map(lambda w: 0.9 * w, small)
      >>> small = compress_gradually(
      ...   mlp, params, jnp.ones((5, 4)), train=train, steps=2, remove=0.5)
      0 (4, 48)
      1 (4, 32)
      >>> small.cost_before, small.cost_after  # multiply-adds
      (1920, 960)

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900;
      the iterative steps of its library. Molchanov et al., Pruning Convolutional Neural
      Networks for Resource Efficient Inference, 2016, arXiv:1611.06440, section 2.
    """
    if steps < 1:
        raise base.PruningError(f"steps is a positive number; got {steps}.")
    if not 0 <= remove < 1:
        raise base.PruningError(f"remove must be in [0, 1); got {remove}.")
    record = functools.partial(trace, shrinking=shrinking)
    full = record(fn, params, *inputs)
    where = may_shrink(full, exclude)
    shrinkable(full, where)
    scores = score(full, params)
    # A target that cannot be met is an error now, not after hours of training.
    choose_widths(full, scores, remove, cost, multiple_of, where, most)
    before, small_fn = known(cost(full, {})), fn
    graph, plan = full, make_plan(full, {})
    for step in range(steps):
        if step:
            graph = record(small_fn, params, *inputs)
            scores = score(graph, params)
        left, now = before * (1 - remove * (step + 1) / steps), known(cost(graph, {}))
        if now > left * (1 + 1e-12):  # rounding may have removed as much before
            of = _full_groups(graph, full, plan)
            keep = choose_widths(
                graph,
                scores,
                1 - left / now,
                cost,
                multiple_of,
                lambda g, of=of: where(of[g.name]),
                lambda g, of=of: _share_left(g, of[g.name], most),
            )
        else:
            keep = {}
        change = make_plan(graph, keep)
        plan = compose(plan, change)
        small = slice_tree(change, params)
        small_fn, shapes = shrink(full, full.params, plan)
        params = train(small_fn, small, step)
        check_params(params, shapes, "The params that train has to return")
    kept = keep_of(full, plan)
    after = cost(full, {name: int(mask.sum()) for name, mask in kept.items()})
    return Compressed(small_fn, params, plan, kept, full, before, after)


def _full_groups(graph: Graph, full: Graph, plan: Plan) -> dict[str, Group]:
    """Returns the full group of each group that a plan left.

    Names are no guide: where one head is left, there is no group of heads, and that of
    the head dimensions has its name.
    """
    left = keep_of(full, plan)
    known: dict[Any, list[Group]] = {}
    for name, group in full.groups.items():
        size = int(left[name].sum()) if name in left else group.size
        known.setdefault((_axes(group), size), []).append(group)
    found = {}
    for name, group in graph.groups.items():
        same = known.get((_axes(group), group.size))
        found[name] = same.pop(0) if same else group
    return found


def _axes(group: Group) -> frozenset[tuple[str, int]]:
    return frozenset((m.path, m.axis) for m in group.members)


def _share_left(
    group: Group, full: Group, most: float | Callable[[Group], float]
) -> float:
    """The fraction of what is left of a full group that may still go."""
    share = most(full) if callable(most) else most
    # Rounding must not make it negative later; a wrong share at first is for `choose`.
    left = 1 - (1 - share) * full.size / group.size
    return share if group.size == full.size else max(0.0, left)
