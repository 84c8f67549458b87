"""Criteria for pruning channels of a residual network to half the multiply-adds.

Every criterion starts from the same trained networks, removes entries of groups, with a
global ranking, until half of the multiply-adds remain, and trains on for the same
number of steps. Two rows train the network for pruning: by decaying weak groups, and by
an L1 penalty on the scales of normalizations. All networks train at full size, see
`experiments.loops.channels`; one of them is shrunk to check that the smaller arrays
give the same numbers.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import channels
from experiments.models import resnet
from experiments.tasks import data
from jprune import graph as jg

DEPGRAPH = "DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900"
SCALES = jp.matching(".*norm/scale")


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      dataset: name of the data set, one of `data.SETS`.
      seeds: seeds of initialisation and batches.
      steps: steps of the dense training.
      extra: steps after pruning, and of the dense network that trains on.
      batch_size: examples per step.
      depth: depth of the residual network.
      width: channels of its first stage.
      rate: peak learning rate.
      removed: share of multiply-adds to remove.
      decay: coefficient of the decay of weak groups, for the network trained with it.
      pull: coefficient of the L1 penalty on scales, for the network trained with it.
    """

    dataset: str = "digits"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 300
    extra: int = 150
    batch_size: int = 64
    depth: int = 8
    width: int = 16
    rate: float = 0.1
    removed: float = 0.5
    decay: float = 5e-4
    pull: float = 1e-3


class Method(NamedTuple):
    """A row: how the network was trained, the criterion, and its scope."""

    trained: str
    score: Callable[..., Any]
    compete: jg.Compete = jg.all_groups


def methods(graph: jg.Graph) -> dict[str, Method]:
    """Returns the methods by name; criteria are `(params, grads, seed) -> scores`."""

    def by(weight: Callable[[Any, Any], Any], **options: Any) -> Any:
        def score(params: Any, grads: Any, seed: int) -> Any:
            del seed
            each = jax.tree.map(weight, params, grads)
            return jg.group_scores(graph, each, **options)

        return score

    def random(params: Any, grads: Any, seed: int) -> dict[str, np.ndarray]:
        del params, grads
        draw = np.random.default_rng(seed).uniform
        return {n: draw(size=g.size) for n, g in graph.groups.items()}

    square = lambda w, g: w * w  # noqa: E731
    group = by(square)
    return {
        "random": Method("plain", random),
        "first layer alone, L2": Method("plain", by(square, combine=jg.first_member)),
        "group, L1": Method("plain", by(lambda w, g: np.abs(w))),
        "group, L2": Method("plain", group),
        "group, L2, the same share of each": Method("plain", group, jg.each_group),
        "group, Taylor": Method("plain", by(lambda w, g: np.abs(w * g))),
        "scales of normalizations": Method("plain", by(square, where=SCALES)),
        "group, L2, after group decay": Method("decay", group),
        "scales, after their L1": Method("slim", by(square, where=SCALES)),
    }


def course_of(settings: Settings) -> channels.Course:
    """Returns the training of the networks."""
    return channels.Course(*(getattr(settings, n) for n in channels.Course._fields))


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, prunes by every criterion, trains on, and evaluates on the test split."""
    splits = jax.tree.map(jnp.asarray, data.load(settings.dataset, data_dir))
    shape = splits.train.images.shape[1:]
    init = functools.partial(
        resnet.init, image_shape=shape, depth=settings.depth, width=settings.width
    )
    abstract = jax.eval_shape(init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    costs = jg.trace(resnet.apply, abstract, one)
    names = methods(costs)
    task = progress.add_task("train, prune, train on", total=3 + 2 * len(names))
    dense = trained(settings, splits, init, costs, lambda: progress.advance(task))
    rows: dict[str, dict[str, list[float]]] = {
        "dense": row(),
        "dense, trained on": row(),
    }
    tune = functools.partial(channels.tuned, course_of(settings), splits)
    whole = {n: jnp.ones(g.size, bool) for n, g in costs.groups.items()}
    for name, method in {"dense": None, **names}.items():
        for seed in settings.seeds:
            params = dense[method.trained if method else "plain"][seed]
            keep = whole
            if method is not None:
                keep = chosen(settings, splits, costs, method, params, seed)
            before, after = tune(params, keep, jax.random.key(1000 + seed))
            into = rows.setdefault(name, row())
            note(into, costs, keep, before if method is None else after, before)
            if method is None:
                note(rows["dense, trained on"], costs, keep, after, before)
        progress.advance(task, 2 if method else 0)
    figures = {"methods": rows, "agreement": agreement(settings, costs, dense, splits)}
    return Outcome(figures, {"main": table(figures, settings)})


def row() -> dict[str, list[float]]:
    """Returns an empty row: lists of figures over seeds."""
    return {"test": [], "before": [], "multiply_adds": [], "parameters": []}


def note(
    into: dict[str, list[float]], graph: jg.Graph, keep: Any, test: Any, before: Any
) -> None:
    """Appends the figures of a network to a row, shares in percent."""
    sizes = {n: int(m.sum()) for n, m in keep.items()}
    into["test"].append(rounded(test))
    into["before"].append(rounded(before))
    for name, cost in (
        ("multiply_adds", jg.multiply_adds),
        ("parameters", jg.parameters),
    ):
        into[name].append(rounded(100 * cost(graph, sizes) / cost(graph, {})))


def trained(
    settings: Settings, splits: data.Splits, init: Any, graph: jg.Graph, advance: Any
) -> dict[str, dict[int, Any]]:
    """Returns the trained networks: training -> seed -> params."""
    links = {
        "plain": optax.identity(),
        "decay": jg.add_group_decay(graph, settings.decay),
        "slim": jg.add_l1(settings.pull, SCALES),
    }
    found: dict[str, dict[int, Any]] = {}
    for how, link in links.items():
        tx = optax.chain(link, channels.optimizer(settings.rate, settings.steps))
        size = settings.steps, settings.batch_size
        fit = channels.trainer(tx, splits, init, *size)
        found[how] = {seed: fit(jax.random.key(seed)) for seed in settings.seeds}
        advance()
    return found


def chosen(
    settings: Settings,
    splits: data.Splits,
    graph: jg.Graph,
    method: Method,
    params: Any,
    seed: int,
) -> dict[str, jax.Array]:
    """Returns the masks of a criterion, one for every group.

    Gradients are those of a quarter of the train split.
    """
    quarter = len(splits.train.labels) // 4
    batch = splits.train.images[:quarter], splits.train.labels[:quarter]
    # On the host, since each of dozens of shapes would compile its own sum.
    arrays = jax.device_get((params, gradient(params, *batch)))
    scores = method.score(*arrays, seed)
    keep = jg.choose(
        graph, scores, settings.removed, compete=method.compete, cost=jg.multiply_adds
    )
    full = {n: np.ones(g.size, bool) for n, g in graph.groups.items()}
    return jax.tree.map(jnp.asarray, full | keep)


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch, with its own batch statistics."""
    logits = resnet.apply(params, images)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


gradient = jax.jit(jax.grad(loss))


def agreement(
    settings: Settings, graph: jg.Graph, dense: Any, splits: data.Splits
) -> float:
    """Returns the relative error of smaller arrays against removal at full size."""
    params = dense["plain"][settings.seeds[0]]
    method = methods(graph)["group, L2"]
    keep = chosen(settings, splits, graph, method, params, settings.seeds[0])
    images = splits.validation.images[:1]
    small, left = jg.shrink(graph, params, keep=keep)
    ours, full = small(left, images), jg.without_entries(graph, keep)(params, images)
    return float(jnp.abs(ours - full).max() / jnp.abs(full).max())


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per criterion."""
    rows = [
        (
            name,
            plus_minus(found["before"]) if "dense" not in name else "",
            plus_minus(found["test"]),
            f"{mean_and_spread(found['multiply_adds'])[0]:.0f} %",
            f"{mean_and_spread(found['parameters'])[0]:.0f} %",
        )
        for name, found in figures["methods"].items()
    ]
    return Table(
        columns=(
            "criterion",
            "before fine-tuning",
            "test accuracy (%)",
            "multiply-adds",
            "parameters",
        ),
        rows=tuple(rows),
        caption=(
            f"{settings.dataset}, ResNet-{settings.depth} of width {settings.width}: "
            f"{settings.steps} steps, then {settings.extra} after pruning; mean ± "
            f"standard deviation over {len(settings.seeds)} seeds. All groups compete "
            "where nothing else is said; nothing was tuned."
        ),
    )


def lost(name: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the loss of a criterion against the dense network, in points."""
    return _gap("dense, trained on", name, figures)


def gained(
    ours: str, theirs: str, figures: dict[str, Any]
) -> tuple[float, float | None]:
    """Measures the difference of two criteria in points, paired by seed."""
    return _gap(ours, theirs, figures)


def _gap(ours: str, theirs: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    a, b = (figures["methods"][name]["test"] for name in (ours, theirs))
    return mean_and_spread([x - y for x, y in zip(a, b, strict=True)])


STUDY = Study(
    Settings(),
    (
        Claim(
            "digits, half the multiply-adds: points that group L2 loses",
            DEPGRAPH,
            ("<=", 1.0),
            functools.partial(lost, "group, L2"),
        ),
        Claim(
            "digits: points that group L2 is above its first layer alone",
            DEPGRAPH,
            (">=", 0.0),
            functools.partial(gained, "group, L2", "first layer alone, L2"),
        ),
        Claim(
            "digits: smaller arrays against removal at full size, relative",
            "jprune",
            ("<=", 1e-5),
            lambda figures: (figures["agreement"], None),
        ),
    ),
    run,
)
