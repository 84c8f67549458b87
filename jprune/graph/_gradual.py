"""Pruning and training in turns, from a function to a smaller one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jprune._core import base
from jprune.graph._budget import is_width
from jprune.graph._compress import Compressed, choose_widths, group_l2
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
        anew in it, or its state is cut by `slice_tree`.
      steps: number n of steps, at least 1.
      remove: fraction of the cost to remove in all steps together, in [0, 1).
      cost: what is reduced: `multiply_adds`, `parameters`, or another cost.
      score: `(graph, params) -> {group name: scores (size,)}`, at each step.
      multiple_of: as in `compress`.
      exclude: regular expressions of the leaves that stay whole, as in `compress`.
      most: greatest fraction of a group's entries that all steps together remove, in
        [0, 1]; or a function `group -> fraction`, a ratio per layer.
      shrinking: predicate of the results that may shrink, as in `compress`.

    Returns:
      A `Compressed`. Its plan and kept entries are those of the full params, and its
      params are the trained ones.

    Raises:
      PruningError: if `steps` is not positive, `train` returns params of other shapes,
        or as `compress`.

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
    shrinkable(full, is_width)
    before, small_fn = known(cost(full, {})), fn
    plan: Plan = {}
    for step in range(steps):
        graph = record(small_fn, params, *inputs) if step else full
        left = before * (1 - remove * (step + 1) / steps)
        keep = choose_widths(
            graph,
            score(graph, params),
            max(0.0, 1 - left / cost(graph, {})),
            cost,
            multiple_of,
            exclude,
            lambda g: _share_left(g, full.groups.get(g.name, g).size, most),
        )
        change = make_plan(graph, keep)
        plan = compose(plan, change)
        small = slice_tree(change, params)
        small_fn, shapes = shrink(full, full.params, plan)
        params = train(small_fn, small, step)
        check_params(params, shapes, "The params that train has to return")
    kept = keep_of(full, plan)
    after = cost(full, {name: int(mask.sum()) for name, mask in kept.items()})
    return Compressed(small_fn, params, plan, kept, full, before, after)


def _share_left(
    group: Group, size: int, most: float | Callable[[Group], float]
) -> float:
    """The fraction of what is left of a group of some size that may still go."""
    share = most(group) if callable(most) else most
    # Rounding must not make it negative later; a wrong share at first is for `choose`.
    left = 1 - (1 - share) * size / group.size
    return share if group.size == size else max(0.0, left)
