"""Pruning weights and channels under an energy or time budget of a machine.

For weights see `_energy_weights`. For channels, a trained residual network is pruned to
40 % of its energy, or of its time, on Eyeriss, and trains on. Uniform pruning removes
the same share of every group; pruning by worth ranks the entries of all groups by score
per joule, or per second. Both end at the same cost, so accuracies can be compared.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import channels
from experiments.models import resnet
from experiments.studies.hardware import _energy_weights as energy_weights
from experiments.tasks import data
from jprune import graph as jg
from jprune import hardware as hw
from jprune.hardware import machines

METRICS: dict[str, hw.Metric] = {
    "energy": lambda found: found.energy,
    "time": lambda found: found.seconds,
}
WAYS = ("the same share of each group", "by worth")


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      weights: settings of the part about weights; all others are about channels.
      seeds: seeds of initialisation and batches.
      steps: steps of the dense training.
      extra: steps after pruning.
      removed: share of energy or time to remove.
      depth: depth of the residual network.
      width: channels of its first stage.
      bits: bits of weights and activations on the machine.
    """

    weights: energy_weights.Settings = energy_weights.Settings()
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    extra: int = 150
    removed: float = 0.6
    depth: int = 8
    width: int = 16
    bits: int = 16


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, prunes in all ways under both budgets, and trains on."""
    splits = jax.tree.map(jnp.asarray, data.load("digits", data_dir))
    single = settings.weights
    each = 1 + len(METRICS) * len(energy_weights.WAYS)
    total = each * len(single.seeds) + 5 * len(settings.seeds)
    task = progress.add_task("train, prune, train on", total=total)

    def advance() -> None:
        progress.advance(task)

    of_weights = energy_weights.rows(single, splits, METRICS, splits.test, advance)
    of_channels = channel_rows(settings, splits, advance)
    figures = {"weights": of_weights, "channels": of_channels}
    tables = {
        "main": weights_table(of_weights, single),
        "channels": table(of_channels, settings),
    }
    return Outcome(figures, tables)


def channel_rows(
    settings: Settings, splits: data.Splits, advance: Callable[[], None]
) -> dict[str, dict[str, list[float]]]:
    """Trains, prunes channels in both ways under both budgets, and trains on."""
    shape = splits.train.images.shape[1:]
    init = functools.partial(
        resnet.init, image_shape=shape, depth=settings.depth, width=settings.width
    )
    abstract = jax.eval_shape(init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    graph = jg.trace(resnet.apply, abstract, one)
    course = channels.Course(
        steps=settings.steps,
        extra=settings.extra,
        depth=settings.depth,
        width=settings.width,
    )
    tx = channels.optimizer(course.rate, course.steps)
    fit = channels.trainer(tx, splits, init, course.steps, course.batch_size)
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in settings.seeds:
        params = fit(jax.random.key(seed))
        advance()
        scores = jg.group_scores(
            graph, jax.device_get(jax.tree.map(jnp.square, params))
        )
        for metric, measure in METRICS.items():
            for way in WAYS:
                keep, left = chosen(settings, graph, scores, measure, way)
                before, after = channels.tuned(
                    course, splits, params, keep, jax.random.key(1000 + seed)
                )
                row = rows.setdefault(f"{metric}: {way}", {})
                for name, value in (("left", 100 * left), ("test", after)):
                    row.setdefault(name, []).append(rounded(value))
                row.setdefault("before", []).append(rounded(before))
                advance()
    return rows


def chosen(
    settings: Settings,
    graph: jg.Graph,
    scores: dict[str, Any],
    measure: hw.Metric,
    way: str,
) -> tuple[dict[str, jax.Array], float]:
    """Returns the masks of all groups, and the remaining share of the cost.

    The worth of an entry is its score divided by its cost, which is the derivative of
    the smooth cost with respect to the size of its group.
    """
    on = functools.partial(
        hw.as_graph_cost, machines.eyeriss(), measure, bits=settings.bits
    )
    cost, compete = on(), jg.each_group
    if way == "by worth":
        slope = jax.grad(lambda sizes: on(temperature=0.05)(graph, sizes))
        whole = {n: jnp.float32(g.size) for n, g in graph.groups.items()}
        price = {n: float(x) for n, x in slope(whole).items()}
        scores = {n: np.asarray(scores[n]) / price[n] for n in scores}
        compete = jg.all_groups
    keep = jg.choose(graph, scores, settings.removed, compete=compete, cost=cost)
    left = float(cost(graph, jg.sizes(graph, keep)) / cost(graph, {}))
    full = {n: np.ones(g.size, bool) for n, g in graph.groups.items()}
    return jax.tree.map(jnp.asarray, full | keep), left


def table(rows: dict[str, dict[str, list[float]]], settings: Settings) -> Table:
    """Returns the table with a row per budget and way."""
    return Table(
        columns=("budget: way", "left (%)", "before fine-tuning", "test accuracy (%)"),
        rows=tuple(
            (name, *(plus_minus(row[k]) for k in ("left", "before", "test")))
            for name, row in rows.items()
        ),
        caption=(
            f"digits, ResNet-{settings.depth} of width {settings.width} in "
            f"{settings.bits} bits on Eyeriss, one image: {100 * settings.removed:.0f} "
            f"% of its energy, or time, goes. {settings.steps} steps, then "
            f"{settings.extra}; group L2; mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def weights_table(
    rows: dict[str, dict[str, list[float]]], settings: energy_weights.Settings
) -> Table:
    """Returns the table with a row per budget and way."""
    keys = ("left", "weights", "before", "test")
    return Table(
        columns=(
            *("budget: way", "left (%)", "weights (%)", "before fine-tuning"),
            "test accuracy (%)",
        ),
        rows=tuple(
            (name, *(plus_minus(row[k]) for k in keys)) for name, row in rows.items()
        ),
        caption=(
            f"digits, a CNN of two convolutions and two dense layers in "
            f"{settings.bits} bits on Eyeriss with the zeros of Eyeriss v2 (none "
            f"stored, none computed with), one image: {100 * settings.removed:.0f} % "
            f"of its energy, or time, goes. {settings.steps} steps, then "
            f"{settings.extra}; by w^2; mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def missed(
    part: str, target: float, figures: dict[str, Any]
) -> tuple[float, float | None]:
    """Measures the largest deviation from the target, in percent of it."""
    lefts = [x for row in figures[part].values() for x in row["left"]]
    return rounded(max(100 * abs(x - target) / target for x in lefts)), None


def gained(
    part: str, metric: str, uniform: str, figures: dict[str, Any]
) -> tuple[float, float | None]:
    """Measures pruning by worth minus uniform pruning, in points."""
    ways = (uniform, "by worth")
    same, worth = (figures[part][f"{metric}: {way}"]["test"] for way in ways)
    return mean_and_spread([b - a for a, b in zip(same, worth, strict=True)])


def _claims(part: str, removed: float, uniform: str) -> tuple[Claim, ...]:
    target = 100 * (1 - removed)
    return (
        Claim(
            f"digits, {part}, budgets of energy and time on Eyeriss: missed by (% of "
            "target)",
            "jprune",
            ("<=", 2),
            functools.partial(missed, part, target),
        ),
        *(
            Claim(
                f"digits, {part}, {target:.0f} % of the {metric} on Eyeriss: points by "
                "worth over uniform",
                "jprune",
                (">", 0),
                functools.partial(gained, part, metric, uniform),
            )
            for metric in METRICS
        ),
    )


STUDY = Study(
    Settings(),
    (
        *_claims("weights", Settings().weights.removed, energy_weights.WAYS[0]),
        *_claims("channels", Settings().removed, WAYS[0]),
    ),
    run,
)
