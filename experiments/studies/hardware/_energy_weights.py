"""Pruning single weights under an energy or time budget of a machine, on digits.

The machine is Eyeriss with the treatment of zeros of its second version: zero weights
are neither stored nor computed with (Chen et al., Eyeriss v2, 2019, arXiv:1807.07928);
here ideally. A small trained network is pruned to 40 % of its cost, in three ways:

- uniform: the same share of each layer, by magnitude;
- global: the smallest weights of all layers;
- by worth: the smallest w^2 per cost of a weight (`jprune.hardware.worth`), which keeps
  the largest sum of w^2 within the budget.

Bisection brings all three to the same cost; they then train on with fixed masks.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jprune as jp
from experiments import ExperimentError
from experiments.harness.stats import rounded
from experiments.loops import channels, train
from experiments.models import cnn
from experiments.tasks import data
from jprune import graph as jg
from jprune import hardware as hw
from jprune import selection
from jprune.hardware import machines

WAYS = ("uniform", "global", "by worth")

Kernels = dict[str, jax.Array]
"""Kernels by path."""


class Settings(NamedTuple):
    """Settings.

    Attributes:
      seeds: seeds of initialisation and batches.
      steps: steps of the dense training.
      extra: steps after pruning.
      batch_size: examples per step.
      rate: peak learning rate; half of it after pruning.
      removed: share of energy or time to remove.
      bits: bits of weights and activations on the machine.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 400
    extra: int = 400
    batch_size: int = 64
    rate: float = 0.1
    removed: float = 0.6
    bits: int = 16


def machine() -> hw.Accelerator:
    """Returns Eyeriss that neither stores nor computes with zero weights."""
    one = jnp.float32(1)
    return machines.eyeriss()._replace(skip=one, compressed=one, gating=one)


def rows(
    settings: Settings,
    splits: data.Splits,
    metrics: dict[str, hw.Metric],
    split: Any,
    advance: Callable[[], None],
) -> dict[str, dict[str, list[float]]]:
    """Trains, prunes in every way under every budget, trains on, and evaluates.

    Args:
      settings: settings of this part.
      splits: splits of digits.
      metrics: limited metrics by name.
      split: split for the accuracy.
      advance: called after each network.
    """
    init = functools.partial(cnn.init, image_shape=splits.train.images.shape[1:])
    abstract = jax.eval_shape(init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, *splits.train.images.shape[1:]), jnp.float32)
    graph = jg.trace(cnn.apply, abstract, one)
    fit, tune = trainers(settings, splits, init, split)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in settings.seeds:
        params = fit(jax.random.key(seed))
        advance()
        for name, metric in metrics.items():
            left = share_left(settings, graph, metric)
            for way in WAYS:
                masks = chosen(settings, graph, metric, left, kernels(params), way)
                whole = jp.tree.map_with_path(
                    lambda path, x, masks=masks: masks.get(
                        path, jnp.ones_like(x, bool)
                    ),
                    params,
                )
                before, after = tune(params, whole, jax.random.key(1000 + seed))
                row = found.setdefault(f"{name}: {way}", {})
                kept = sum(int(m.sum()) for m in masks.values())
                size = sum(m.size for m in masks.values())
                for key, value in (
                    ("left", 100 * left(masks)),
                    ("weights", 100 * kept / size),
                    ("before", float(before)),
                    ("test", float(after)),
                ):
                    row.setdefault(key, []).append(rounded(value))
                advance()
    return found


def trainers(
    settings: Settings, splits: data.Splits, init: Any, split: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the dense training, and the masked training with its accuracies."""

    def percent(params: Any) -> jax.Array:
        found = cnn.apply(params, split.images).argmax(-1)
        return 100 * (found == split.labels).mean()

    fit = channels.trainer(
        channels.optimizer(settings.rate, settings.steps),
        splits,
        init,
        settings.steps,
        settings.batch_size,
        apply=cnn.apply,
    )

    @jax.jit
    def tune(params: Any, masks: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, _ = train.fit(
            lambda p, x: cnn.apply(jp.masks.apply(p, masks), x),
            channels.optimizer(settings.rate / 2, settings.extra),
            params,
            splits.train,
            key,
            steps=settings.extra,
            batch_size=settings.batch_size,
        )
        ends = (params, state.params)
        before, after = (percent(jp.masks.apply(p, masks)) for p in ends)
        return before, after

    return fit, tune


def kernels(params: Any) -> Kernels:
    """Returns the kernels, which are pruned."""
    each = jp.tree.by_path(params)
    return {path: x for path, x in each.items() if path.endswith("kernel")}


def share_left(
    settings: Settings, graph: jg.Graph, metric: hw.Metric
) -> Callable[[Kernels], float]:
    """Returns the remaining share of a cost as a function of masks."""

    @jax.jit
    def spent(density: Kernels) -> jax.Array:
        net = hw.from_graph(graph, bits=settings.bits, density=density)
        return metric(hw.cost(net, machine()))

    def left(masks: Kernels) -> float:
        density = {path: m.mean() for path, m in masks.items()}
        return float(spent(density) / spent(jax.tree.map(jnp.ones_like, density)))

    return left


def chosen(
    settings: Settings,
    graph: jg.Graph,
    metric: hw.Metric,
    left: Callable[[Kernels], float],
    weights: Kernels,
    way: str,
) -> Kernels:
    """Returns the masks that use the whole budget.

    Raises:
      ExperimentError: the cost without any weight exceeds the budget.
    """
    squares = jax.tree.map(jnp.square, weights)
    if way == "by worth":
        each = hw.worth(graph, machine(), metric, bits=settings.bits)
        dearest = max(each.values())
        costs = {path: max(1, round(2**16 * c / dearest)) for path, c in each.items()}
        total = sum(costs[path] * w.size for path, w in weights.items())

        def keep(share: float) -> Kernels:
            return selection.top_within_budget(squares, costs, int(share * total))

    elif way == "global":
        total = sum(w.size for w in weights.values())

        def keep(share: float) -> Kernels:
            return selection.top_k(squares, int(share * total))

    else:

        def keep(share: float) -> Kernels:
            counts = {path: int(share * w.size) for path, w in weights.items()}
            return selection.top_k_per_leaf(squares, counts)

    budget = 1 - settings.removed
    if (least := left(keep(0.0))) > budget:
        raise ExperimentError(
            f"{100 * least:.0f} % of the cost remain without any weight, which is more "
            f"than the budget of {100 * budget:.0f} %"
        )
    low, high = 0.0, 1.0  # the share `low` fits the budget
    for _ in range(20):
        middle = (low + high) / 2
        fits = left(keep(middle)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return keep(low)
