"""Removes half of a small detector's parameters by network slimming.

A YOLO at toy size detects coloured shapes. An L1 penalty on the scales of its
normalizations, with a coefficient that rises and falls, is applied during training.
The channels with the smallest scales are removed, by one threshold or one for each part
of the network, and the network trains on, optionally distilled with the spatial
attention of the dense network. As in `group_pruning`, all networks train at full size
with the removed channels left out of every sum.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import detection
from experiments.models import detector
from experiments.tasks import scenes
from jprune import graph as jg

SLIMMED = (
    "Channel pruned YOLO V5s-based deep learning approach for rapid and accurate apple "
    "fruitlet detection before fruit thinning, 2021"
)
GROUPED = (
    "Group channel pruning and spatial attention distilling for object detection, "
    "2022, arXiv:2306.01526"
)
SCALES = jp.matching(".*norm/scale")


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      seeds: seeds of initialisation and pictures.
      steps: steps of the first training.
      extra: steps after pruning, and of the dense network that trains on.
      batch_size: pictures per step.
      width: channels of the first layer.
      rate: peak learning rate of Adam.
      pull: maximum coefficient of the L1 penalty on scales.
      lead: weight of the attention loss.
      removed: share of parameters to remove.
      calibration: number of pictures for the statistics of normalizations.
      tested: number of test pictures.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 800
    extra: int = 200
    batch_size: int = 16
    width: int = 12
    rate: float = 1e-2
    pull: float = 3e-3
    lead: float = 10.0
    removed: float = 0.5
    calibration: int = 256
    tested: int = 512


class Method(NamedTuple):
    """A row: whether scales were penalized, what competes, whether it is distilled."""

    pulled: bool
    compete: jg.Compete
    led: bool = False


def part(group: jg.Group) -> str:
    """Key of the parts that compete apart: before each scale, and the neck."""
    return group.name.split("/")[0]


METHODS = {
    "one threshold, without the pull": Method(False, jg.all_groups),
    "one threshold": Method(True, jg.all_groups),
    "one for each part": Method(True, part),
    "one threshold, distilled": Method(True, jg.all_groups, led=True),
    "one for each part, distilled": Method(True, part, led=True),
}


def seen(params: Any, images: jax.Array) -> tuple[Any, Any]:
    """Returns the outputs of a batch, and the attention maps of its features."""
    found = detector.forward(params, images)
    return found.outputs, [jp.distill.attention_map(x) for x in found.features]


def judged(params: Any, calibration: jax.Array, images: jax.Array) -> Any:
    """Returns outputs with normalization statistics of the calibration pictures."""
    stats = detector.forward(params, calibration).stats
    return detector.forward(params, images, stats).outputs


def graphs(settings: Settings) -> tuple[jg.Graph, jg.Graph]:
    """Returns the graphs of a training step and of an evaluation."""

    def pictures(count: int) -> Any:
        shape = (count, scenes.SIDE, scenes.SIDE, 3)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    init = functools.partial(
        detector.init, classes=scenes.CLASSES, width=settings.width
    )
    params = jax.eval_shape(init, jax.random.key(0))
    training = jg.trace(seen, params, pictures(settings.batch_size))
    calibration, tested = pictures(settings.calibration), pictures(settings.tested)
    return training, jg.trace(judged, params, calibration, tested)


def pull_at(settings: Settings, step: jax.Array) -> jax.Array:
    """L1 coefficient of a step: rises over the first half, falls over the second."""
    # The paper adapts the coefficient during training; this study does not test how.
    return settings.pull * jnp.sin(jnp.pi * step / settings.steps)


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Returns Adam with warm-up and a cosine decay."""
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        0.0, rate, warmup_steps=max(steps // 10, 1), decay_steps=steps
    )
    return optax.adam(schedule)


@functools.lru_cache(maxsize=1)
def compiled(settings: Settings) -> tuple[Any, Any, Any]:
    """Returns the training, the training after pruning and the evaluation, jitted."""
    training, judging = graphs(settings)

    def descend(loss: Any, rate: float, steps: int, params: Any, key: jax.Array) -> Any:
        """Adam on `loss(params, images, objects)`, with an L1 penalty on scales."""
        tx = optimizer(rate, steps)

        def step(carry: Any, given: Any) -> tuple[Any, None]:
            (params, state), (key, pull) = carry, given
            batch = scenes.scenes(key, settings.batch_size)
            grads = jax.grad(loss)(params, *batch)
            grads, _ = jg.add_l1(pull, SCALES).update(grads, optax.EmptyState(), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def go(pulls: jax.Array) -> Any:
            given = jax.random.split(key, steps), pulls
            return jax.lax.scan(step, (params, tx.init(params)), given)[0][0]

        return go

    @jax.jit
    def fit(key: jax.Array, pulled: jax.Array) -> Any:
        def loss(params: Any, images: jax.Array, objects: scenes.Objects) -> jax.Array:
            return detection.loss(detector.forward(params, images).outputs, objects)

        first, second = jax.random.split(key)
        params = detector.init(first, scenes.CLASSES, width=settings.width)
        pulls = pulled * pull_at(settings, jnp.arange(settings.steps))
        return descend(loss, settings.rate, settings.steps, params, second)(pulls)

    @jax.jit
    def tune(params: Any, keep: Any, teacher: Any, lead: jax.Array, key: Any) -> Any:
        pruned = jg.without_entries(training, keep)

        def loss(params: Any, images: jax.Array, objects: scenes.Objects) -> jax.Array:
            outputs, maps = pruned(params, images)
            apart = jp.distill.attention_loss(maps, seen(teacher, images)[1])
            return detection.loss(outputs, objects) + lead * apart

        none = jnp.zeros(settings.extra)
        rate = settings.rate / 2
        return descend(loss, rate, settings.extra, params, key)(none)

    @jax.jit
    def judge(params: Any, keep: Any) -> Any:
        # Keys that no training uses, since those are made by splitting.
        calibration, _ = scenes.scenes(jax.random.key(2**31), settings.calibration)
        images, objects = scenes.scenes(jax.random.key(2**31 + 1), settings.tested)
        outputs = jg.without_entries(judging, keep)(params, calibration, images)
        return jax.vmap(detection.detect)(outputs), objects

    return fit, tune, judge


def percent(settings: Settings, params: Any, keep: Any) -> float:
    """Returns the mean average precision on the test pictures, in percent."""
    found, objects = jax.device_get(compiled(settings)[2](params, keep))
    return 100 * detection.mean_average_precision(found, objects, scenes.CLASSES)


def chosen(
    settings: Settings, graph: jg.Graph, method: Method, params: Any
) -> dict[str, jax.Array]:
    """Returns the masks of a threshold on scales, one for every group."""
    sizes = jax.tree.map(np.abs, jax.device_get(params))
    scores = jg.group_scores(graph, sizes, normalize=None, where=SCALES)
    keep = jg.choose(
        graph, scores, settings.removed, compete=method.compete, cost=jg.parameters
    )
    return jax.tree.map(jnp.asarray, everything(graph) | keep)


def everything(graph: jg.Graph) -> dict[str, Any]:
    """Returns masks that remove nothing."""
    return {n: np.ones(g.size, bool) for n, g in graph.groups.items()}


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, prunes with every method, trains on, and evaluates."""
    del data_dir
    fit, tune, _ = compiled(settings)
    graph, _ = graphs(settings)
    whole = jax.tree.map(jnp.asarray, everything(graph))
    rows: dict[str, dict[str, list[float]]] = {}
    figures: dict[str, Any] = {"methods": rows, "missing": missing(graph)}
    total = len(settings.seeds) * (3 + len(METHODS))
    task = progress.add_task("train, prune, train on", total=total)

    def note(name: str, keep: Any, before: float, after: float) -> None:
        row = rows.setdefault(name, {k: [] for k in ("before", "test", *COSTS)})
        row["before"].append(rounded(before))
        row["test"].append(rounded(after))
        sizes = {n: int(m.sum()) for n, m in keep.items()}
        for cost, of in COSTS.items():
            row[cost].append(rounded(100 * of(graph, sizes) / of(graph, {})))

    for seed in settings.seeds:
        trained = {}
        for pulled in (False, True):
            key = jax.random.key(seed)
            trained[pulled] = jax.block_until_ready(fit(key, jnp.float32(pulled)))
            progress.advance(task)
        key, dense = jax.random.key(1000 + seed), trained[False]
        before = percent(settings, dense, whole)
        after = tune(dense, whole, dense, jnp.float32(0.0), key)
        note("dense", whole, before, before)
        note("dense, pulled", whole, *2 * [percent(settings, trained[True], whole)])
        note("dense, trained on", whole, before, percent(settings, after, whole))
        progress.advance(task)
        for name, method in METHODS.items():
            params = trained[method.pulled]
            keep = chosen(settings, graph, method, params)
            before = percent(settings, params, keep)
            lead = jnp.float32(settings.lead * method.led)
            params = tune(params, keep, dense, lead, key)
            note(name, keep, before, percent(settings, params, keep))
            if seed == settings.seeds[0] and name == "one threshold":
                figures["agreement"] = apart(settings, params, keep)
            progress.advance(task)
    return Outcome(figures, {"main": table(figures, settings)})


COSTS = {"parameters": jg.parameters, "multiply_adds": jg.multiply_adds}


def apart(settings: Settings, params: Any, keep: Any) -> float:
    """Returns the relative error of smaller arrays against removal at full size."""
    graph, _ = graphs(settings)
    images, _ = scenes.scenes(jax.random.key(2**31), settings.batch_size)
    small, left = jg.shrink(graph, params, keep=keep)
    pairs = zip(
        jax.tree.leaves(jax.jit(small)(left, images)),
        jax.tree.leaves(jax.jit(jg.without_entries(graph, keep))(params, images)),
        strict=True,
    )
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def missing(graph: jg.Graph) -> list[str]:
    """Returns kernel channels that are in no group, and fixed ones that are in one.

    The channels of the picture and of the outputs must not be in a group.
    """
    grouped = {str(m) for g in graph.groups.values() for m in g.members}
    kernels = [path for path in graph.axes if path.endswith("kernel")]
    channels = {f"{path}[{axis}]" for path in kernels for axis in (2, 3)}
    stay = {"fine/stem/kernel[2]", "heads/fine/kernel[3]", "heads/coarse/kernel[3]"}
    return sorted((channels - stay - grouped) | (stay & grouped))


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per method."""
    rows = [
        (
            name,
            "" if "dense" in name else plus_minus(found["before"]),
            plus_minus(found["test"]),
            f"{mean_and_spread(found['parameters'])[0]:.0f} %",
            f"{mean_and_spread(found['multiply_adds'])[0]:.0f} %",
        )
        for name, found in figures["methods"].items()
    ]
    return Table(
        columns=(
            "thresholds on scales",
            "before fine-tuning",
            "mAP at 0.5 (%)",
            "parameters",
            "multiply-adds",
        ),
        rows=tuple(rows),
        caption=(
            f"Coloured shapes, drawn anew for every step; {settings.tested} test "
            f"pictures. {settings.steps} steps of {settings.batch_size}, then "
            f"{settings.extra} after pruning; mean ± standard deviation over "
            f"{len(settings.seeds)} seeds. The pull is the L1 on scales during the "
            "first training; distilled: with the spatial attention of the dense "
            "network at both scales."
        ),
    )


def above(
    ours: str, theirs: str, figures: dict[str, Any]
) -> tuple[float, float | None]:
    """Measures the difference of two methods in points, paired by seed."""
    a, b = (figures["methods"][name]["test"] for name in (ours, theirs))
    return mean_and_spread([x - y for x, y in zip(a, b, strict=True)])


def better(which: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the gain of one choice, averaged over the other choice."""
    pairs = {
        "parts": [("one for each part", "one threshold")],
        "distilled": [("one threshold, distilled", "one threshold")],
    }
    pairs["parts"].append(("one for each part, distilled", "one threshold, distilled"))
    pairs["distilled"].append(("one for each part, distilled", "one for each part"))
    rows = figures["methods"]
    gaps = np.array(
        [np.subtract(rows[a]["test"], rows[b]["test"]) for a, b in pairs[which]]
    )
    return mean_and_spread(gaps.mean(0))


STUDY = Study(
    Settings(),
    (
        Claim(
            "detector, half the parameters: points of mAP that slimming loses",
            SLIMMED,
            ("<=", 1.0),
            functools.partial(above, "dense, trained on", "one threshold"),
        ),
        Claim(
            "detector: channels that no group has, those of picture and outputs aside",
            "jprune",
            ("<=", 0),
            lambda figures: (float(len(figures["missing"])), None),
        ),
        Claim(
            "detector: points that thresholds of parts are above one for all",
            GROUPED,
            (">", 0.0),
            functools.partial(better, "parts"),
        ),
        Claim(
            "detector: points that spatial attention distillation adds",
            GROUPED,
            (">", 0.0),
            functools.partial(better, "distilled"),
        ),
        Claim(
            "detector: smaller arrays against removal at full size, relative",
            "jprune",
            ("<=", 1e-5),
            lambda figures: (figures["agreement"], None),
        ),
    ),
    run,
)
