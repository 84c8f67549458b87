"""One call from a function to a smaller one, composed of the steps of this package."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._budget import choose, is_width
from jprune.graph._cost import Cost, multiply_adds
from jprune.graph._groups import Group
from jprune.graph._obstacles import shrinkable
from jprune.graph._plan import Plan, make_plan
from jprune.graph._scores import group_scores
from jprune.graph._shrink import shrink
from jprune.graph._trace import Graph, trace

_STATISTICS = ("mean", "var", "running_mean", "running_var")


class Compressed(NamedTuple):
    """A smaller function, and what it was made from.

    Attributes:
      fn: the function on smaller arrays, `(params, *inputs) -> results`.
      params: the smaller params.
      plan: kept entries of each axis of the params, as plain data; `slice_tree` cuts
        an optimizer's state by it.
      keep: group name -> bools `(size,)`, True = keep, for the groups that shrink.
      graph: the recorded function at full size.
      cost_before: cost of the full function, in the unit of the `cost` that
        `compress` reduced: multiply-adds by default.
      cost_after: cost of the small function. `print_summary(graph, sizes=sizes(graph,
        keep))` shows the costs of each product.
    """

    fn: Callable[..., Any]
    params: base.Params
    plan: Plan
    keep: dict[str, np.ndarray]
    graph: Graph
    cost_before: Any
    cost_after: Any


def group_l2(graph: Graph, params: base.Params) -> dict[str, jax.Array]:
    """Scores entries by the mean squared norm of their coupled weights.

        I_k = mean over members of (sum of w^2 over the member's slice k)

    divided by its mean over the group, so that all groups can compete. These are
    `group_scores(graph, params, each=np.square)` without state: what the function
    changes in place, leaves of a collection `batch_stats`, and vectors called `mean`,
    `var`, `running_mean` or `running_var`.

    Args:
      graph: the recorded function.
      params: arrays.

    Returns:
      Group name -> scores `(size,)`, float32.

    Raises:
      PruningError: if a leaf is not one of the params, has another shape, or is a
        shape without values; or if no leaf is a float that is learned.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 3.0]]), "out": jnp.array([[1.0], [1.0]])}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> group_l2(graph, params)
      {'in[1]': Array([0.33333334, 1.6666666 ], dtype=float32)}

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900,
      section 3.3; see `jprune.recipes.group_magnitude`.
    """
    paths = list(graph.axes)
    state = {paths[i] for i in graph.state if i < len(paths)}

    def learned_float(path: str, leaf: Any, /) -> bool:
        return _is_learned(path, leaf) and path not in state

    return group_scores(graph, params, each=np.square, where=learned_float)


def _is_learned(path: str, leaf: Any, /) -> bool:
    *parents, name = path.split("/")
    statistic = name in _STATISTICS and np.ndim(leaf) == 1
    return tree.is_float(path, leaf) and not statistic and "batch_stats" not in parents


def whole_heads(graph: Graph) -> Callable[[Group], bool]:
    """Returns the predicate of widths that are pruned if heads stay whole or go.

    Attention loses whole heads, and the heads that are left keep their dimensions:
    widths such as 64 suit matrix units, 9 or 11 do not. Where the number of heads is
    fixed, because there is one head or the function freezes their axis, head
    dimensions may shrink.

    Args:
      graph: the recorded function.

    Returns:
      `group -> bool`, for `where=` of `choose` and `keep_groups`: False for stacked
      layers, for tables, and for head dimensions of leaves in which heads can be
      removed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> def attend(p, x):
      ...   q, k, v = (jnp.einsum("nd,dhk->nhk", x, p[name]) for name in "qkv")
      ...   return jnp.einsum("nhk,hkd->nd", jax.nn.dot_product_attention(q, k, v),
      ...                     p["out"])
      >>> params = {name: jnp.ones((3, 2, 16)) for name in "qkv"}
      >>> params["out"] = jnp.ones((2, 16, 3))
      >>> graph = jg.trace(attend, params, jnp.ones((5, 3)))
      >>> where = jg.whole_heads(graph)
      >>> {name: where(group) for name, group in graph.groups.items()}
      {'k[1]': True, 'k[2]': False, 'v[2]': False}
    """
    with_heads = {
        m.path for g in graph.groups.values() if g.kind == "heads" for m in g.members
    }

    def where(group: Group) -> bool:
        inside = any(m.path in with_heads for m in group.members)
        return is_width(group) and not (group.kind == "head" and inside)

    return where


def compress(
    fn: Callable[..., Any],
    params: base.Params,
    *inputs: Any,
    remove: float = 0.5,
    cost: Cost | None = multiply_adds,
    score: Callable[[Graph, base.Params], Any] = group_l2,
    multiple_of: int = 8,
    exclude: str | Sequence[str] = (),
    shrinking: base.Predicate | None = None,
) -> Compressed:
    """Removes a fraction of a function's cost, in one call.

    It is the composition of five steps; write them out to change one of them:

        graph = jg.trace(fn, params, *inputs, shrinking=shrinking)
        scores = jg.group_l2(graph, params)
        keep = jg.choose(graph, scores, remove, cost=jg.multiply_adds,
                         multiple_of=multiple, where=jg.whole_heads(graph))
        plan = jg.make_plan(graph, keep)
        small_fn, small_params = jg.shrink(graph, params, plan)

    where `multiple(group)` is 1 for heads and experts, whose number is no width of a
    matrix product, and `multiple_of` otherwise. All groups compete, and of attention
    whole heads are removed: see `whole_heads`. It also returns the cost before
    and after.

    Args:
      fn: `(params, *inputs) -> results`, as in `trace`.
      params: pytree of arrays.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`s; their shapes count.
      remove: fraction of the cost to remove, in [0, 1).
      cost: what is reduced: `multiply_adds`, `parameters`, another cost, or None for
        the number of entries.
      score: `(graph, params) -> {group name: scores (size,)}`, the highest are kept.
        The scores of different groups must be on one scale.
      multiple_of: widths become multiples of this number, except those that are
        smaller than it; the numbers of heads and experts are not rounded. On CPUs,
        multiples of 8 are as fast as larger ones, and others are slower, most of all
        in convolutions (`python -m experiments bench shrink`). They also suit 16-bit
        products of GPUs. On a TPU pass 128, its number of lanes, if widths are several
        times that. The default is one number, so that a plan does not depend on the
        device where it was made.
      exclude: regular expressions that match whole paths of leaves, one or several. A
        group with such a leaf stays whole: with a leaf that writes to a residual
        stream, so does the stream.
      shrinking: predicate of the leaves of the results that may shrink, such as new
        batch statistics that are returned; None for no leaf.

    Returns:
      A `Compressed`: the small function, its params, the plan, the kept entries of
      groups, the graph, and the cost before and after.

    Raises:
      PruningError: if `remove` is outside [0, 1), a pattern matches no leaf, no group
        may shrink, nothing is removed, or the minimum sizes cost more than what is
        left; says what stands in the way. With small widths, a smaller `multiple_of`
        allows more; with few wide heads, so do the steps with `where=jg.is_width`,
        which also cuts head dimensions.

    Example:
      Then fine-tune; an optimizer's state is cut by the same plan:

      >>> import jax, jax.numpy as jnp, optax
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((4, 64)), "out": jnp.ones((64, 2))}
      >>> state = optax.adam(1e-3).init(params)
      >>> small = jg.compress(mlp, params, jnp.ones((5, 4)), remove=0.5)
      >>> jax.tree.map(jnp.shape, small.params)
      {'in': (4, 32), 'out': (32, 2)}
      >>> small.cost_before, small.cost_after  # multiply-adds
      (1920, 960)
      >>> jax.jit(small.fn)(small.params, jnp.ones((5, 4))).shape
      (5, 2)
      >>> state = jg.slice_tree(small.plan, state)
      >>> state[0].mu["in"].shape
      (4, 32)
    """
    if not 0 <= remove < 1:
        raise base.PruningError(f"remove must be in [0, 1); got {remove}.")
    graph = trace(fn, params, *inputs, shrinking=shrinking)
    shrinkable(graph, is_width)
    scores = score(graph, params)
    where = may_shrink(graph, exclude)
    keep = choose_widths(graph, scores, remove, cost, multiple_of, where)
    if remove and not keep:
        raise base.PruningError(
            f"remove={remove} of the entries removes none: all sizes are rounded to "
            f"multiples of multiple_of={multiple_of}, and none is smaller then. Pass a "
            "smaller multiple_of, or a cost, whose budget always holds."
        )
    plan = make_plan(graph, keep)
    small_fn, small_params = shrink(graph, params, plan)
    cost = _entries_of(keep) if cost is None else cost
    left = {name: int(mask.sum()) for name, mask in keep.items()}
    before, after = cost(graph, {}), cost(graph, left)
    return Compressed(small_fn, small_params, plan, keep, graph, before, after)


def choose_widths(
    graph: Graph,
    scores: Mapping[str, Any],
    remove: float,
    cost: Cost | None,
    multiple_of: int,
    where: Callable[[Group], bool],
    most: float | Callable[[Group], float] = 1.0,
) -> dict[str, np.ndarray]:
    """Returns the entries that `compress` keeps; its arguments are those."""
    return choose(
        graph,
        scores,
        remove,
        cost=cost,
        multiple_of=lambda g: 1 if g.kind in ("heads", "expert") else multiple_of,
        most=most,
        where=where,
    )


def may_shrink(graph: Graph, exclude: str | Sequence[str]) -> Callable[[Group], bool]:
    """Returns the predicate of the groups that `compress` shrinks."""
    whole, excluded = whole_heads(graph), _excluded(graph, exclude)
    return lambda g: whole(g) and not any(m.path in excluded for m in g.members)


def _entries_of(keep: dict[str, np.ndarray]) -> Cost:
    """Returns the cost that counts entries of the groups that may shrink."""
    return lambda graph, left: sum(left.get(n, graph.groups[n].size) for n in keep)


def _excluded(graph: Graph, exclude: str | Sequence[str]) -> set[str]:
    """Returns the paths of the leaves that patterns match; each has to match one."""
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    if not patterns:
        return set()
    every = tree.matching(*patterns, among=lambda path, leaf: True)
    chosen = tree.by_path(tree.flags(every, graph.params))
    return {path for path, hit in chosen.items() if hit}
