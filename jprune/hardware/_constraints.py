"""Pruning under a budget of a machine: energy, time or bytes in place of a sparsity.

as_graph_cost(machine, metric)  a cost of groups' sizes, for `jprune.graph.choose`
worth(graph, machine, ..)       what a weight costs, for `jprune.keep_within_budget`
saving(found, full)             for `jprune.learned.controllers.lagrangian`
fit(workload, ...)              keep ratios that meet a budget: a projection
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import graph as graph_lib
from jprune._core import base, roots
from jprune.graph import Graph
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._cost import cost
from jprune.hardware._tracing import Metric, from_graph
from jprune.hardware._workload import Workload

_HALVINGS = 40


def worth(
    graph: Graph, machine: Accelerator, metric: Metric, **fields: Any
) -> dict[str, float]:
    """Returns the cost that each leaf adds per non-zero weight.

    The machine's saving if all weights of the leaf become zero, divided by their
    number. Work that zero weights do not save, as on machines that skip nothing, is not
    included.

    Args:
      graph: result of `jprune.graph.trace`.
      machine: the accelerator; it has to save something for zero weights.
      metric: `Cost -> scalar`, such as `lambda found: found.energy`.
      **fields: as in `from_graph`.

    Returns:
      Path of each leaf that multiplies -> cost of one of its weights, at least 0.
      Rounded to multiples of a unit, of which the most expensive weight costs at most
      2^16, it is the cost for `jprune.keep_within_budget`.

    Raises:
      PruningError: if the function has no product, or a field does not exist.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> from jprune.hardware import machines
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((64, 512)), "out": jnp.ones((512, 8))}
      >>> graph = jg.trace(mlp, params, jnp.ones((32, 64)))
      >>> chip = machines.eyeriss()._replace(compressed=jnp.float32(1.0))
      >>> each = worth(graph, chip, lambda found: found.energy)
      >>> sorted(each), all(x > 0 for x in each.values())
      (['in', 'out'], True)
    """
    used = [path for o in graph_lib.operations(graph) for path in o.leaves]
    paths = list(dict.fromkeys(used))
    size = graph_lib.measure(graph)
    weights = {p: float(math.prod(map(size, graph.axes[p]))) for p in paths}

    # The full network, and for each leaf the network with that leaf zero, in one trace.
    densities = jnp.concatenate([jnp.ones((1, len(paths))), 1 - jnp.eye(len(paths))])

    @jax.jit
    @jax.vmap
    def at(row: jax.Array) -> Any:
        density = dict(zip(paths, row, strict=True))
        return metric(cost(from_graph(graph, density=density, **fields), machine))

    whole, *less = np.asarray(at(densities), np.float64).tolist()
    return {
        p: max(0.0, whole - rest) / weights[p]
        for p, rest in zip(paths, less, strict=True)
    }


def saving(found: Any, full: Any) -> jax.Array:
    """Returns the fraction of a cost that is saved, 1 - found / full.

    Serves as the sparsity of `jprune.learned.controllers.lagrangian`, which drives it
    to its target during training, with a smooth cost of soft sizes.

    Args:
      found: cost of the pruned network, differentiable.
      full: cost of the unpruned network, positive.

    Returns:
      A scalar below 1; negative if the pruned network costs more.

    Example:
      >>> float(saving(30.0, 40.0))  # 30 of 40 mJ remain
      0.25
    """
    return 1 - jnp.asarray(found) / jnp.asarray(full)


def fit(
    workload: Workload,
    machine: Accelerator,
    metric: Metric,
    budget: Any,
    *,
    where: Any = True,
    least: float = 0.05,
    temperature: float = 0.05,
) -> Workload:
    """Lowers keep ratios until a budget is met.

    keep' = max(least, keep - t), with the smallest t in [0, 1] for which the smooth
    cost is at most the budget: the projection onto the budget along equal steps, by
    bisection. Jits, and vmaps over machines and budgets.

    Args:
      workload: workload whose `keep` to lower.
      machine: the accelerator.
      metric: `Cost -> scalar`, such as `lambda found: found.seconds`.
      budget: upper limit, in the unit of the metric; may be traced.
      where: booleans that broadcast with `keep`, True for ratios that may change.
      least: lower bound of the ratios, in (0, 1].
      temperature: temperature of the smooth cost.

    Returns:
      A `Workload`; with the lowest ratios if the budget cannot be met.

    Raises:
      PruningError: if `least` is not in (0, 1].

    Example:
      >>> from jprune.hardware import machines, networks
      >>> net, chip = networks.bert_base(128), machines.tpu_v1()
      >>> full = cost(net, chip, temperature=0.05).seconds
      >>> less = fit(net, chip, lambda found: found.seconds, 0.7 * full)
      >>> round(float(cost(less, chip, temperature=0.05).seconds / full), 3)
      0.7
    """
    if not 0 < least <= 1:
        raise base.PruningError(
            f"The least keep ratio has to be in (0, 1]; got {least}."
        )
    keep, allowed = workload.keep, jnp.broadcast_to(where, workload.keep.shape)

    def lowered(t: Any) -> Workload:
        floor = jnp.minimum(keep, least)
        less = jnp.where(allowed, jnp.maximum(floor, keep - t), keep)
        return workload._replace(keep=less)

    def spent(t: Any) -> Any:
        return metric(cost(lowered(t), machine, temperature=temperature))

    zero = jnp.zeros((), keep.dtype)
    left = lambda t: budget - spent(t)  # noqa: E731
    _, least_cut = roots.bisect(left, zero, zero + 1, _HALVINGS)
    return lowered(jnp.where(left(zero) >= 0, zero, least_cut))
