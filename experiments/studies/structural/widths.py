"""Widths of a small residual network at half of its multiply-adds, as a picture.

The criterion is group magnitude with a global ranking; for accuracies see
`group_pruning`.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.loops import train
from experiments.models import resnet
from experiments.tasks import data
from jprune import graph as jg


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      seeds: seeds of initialisation and batches; only the first one is used.
      steps: training steps, with Adam.
      batch_size: examples per step.
      depth: depth of the residual network.
      width: channels of its first stage.
      rate: learning rate.
      removed: share of multiply-adds to remove.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 100
    batch_size: int = 64
    depth: int = 14
    width: int = 16
    rate: float = 3e-3
    removed: float = 0.5


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, scores the groups and prunes."""
    splits = jax.tree.map(jnp.asarray, data.load("digits", data_dir))
    shape = splits.train.images.shape[1:]
    task = progress.add_task("train", total=1)

    @jax.jit
    def fit(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        init = functools.partial(
            resnet.init, image_shape=shape, depth=settings.depth, width=settings.width
        )
        state, _ = train.fit(
            resnet.apply,
            optax.adam(settings.rate),
            init(first),
            splits.train,
            second,
            steps=settings.steps,
            batch_size=settings.batch_size,
        )
        return state.params

    params = jax.device_get(fit(jax.random.key(settings.seeds[0])))
    progress.advance(task)
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    graph = jg.trace(resnet.apply, params, one)
    scores = jg.group_scores(graph, jax.tree.map(np.square, params))
    keep = jg.choose(graph, scores, settings.removed, cost=jg.multiply_adds)
    left = {name: int(size) for name, size in jg.sizes(graph, keep).items()}
    full = {name: group.size for name, group in graph.groups.items()}
    cost = jg.summary(graph, sizes=left)["total"]
    figures = {"widths": full, "left": full | left, "cost": cost}

    def draw(path: Path) -> None:
        jg.draw_widths(graph, left, path)

    return Outcome(figures, {"main": table(figures, settings)}, draw)


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per group."""
    rows = [
        (name, str(size), str(figures["left"][name]))
        for name, size in figures["widths"].items()
    ]
    return Table(
        columns=("group", "width", "left"),
        rows=tuple(rows),
        caption=(
            f"digits, ResNet-{settings.depth} of width {settings.width} after "
            f"{settings.steps} steps; group magnitude, all groups competing."
        ),
    )


def share(figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the remaining multiply-adds in percent."""
    cost = figures["cost"]
    return 100 * cost["after"]["multiply_adds"] / cost["before"]["multiply_adds"], None


STUDY = Study(
    settings=Settings(),
    claims=(
        Claim(
            "digits, ResNet-14, a budget of half the multiply-adds: what is used (%)",
            "jprune",
            ("<=", 50),
            share,
        ),
    ),
    run=run,
)
