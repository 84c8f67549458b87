"""A small CNN, pruned in three ways.

Every network has the same number of training steps:

    dense       half of the steps, then the other half without pruning
    one-shot    the same first half, then pruning in one step, then fine-tuning
    gradual     pruned from the first step on, increasingly during the first half
    2:4         like one-shot, in the pattern of sparse matrix units

Hyper-parameters were chosen on the validation split, with other seeds; the test split
is read once, for the figures.
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
from experiments import ExperimentError, models
from experiments.harness import plots
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import train
from experiments.tasks import data

GMP = "To prune, or not to prune, 2017, arXiv:1710.01878"
N_OF_M = "Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378"


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      dataset: name of the data set, one of `data.SETS`.
      seeds: seeds of initialisation and batches; the splits have a fixed seed.
      steps: training steps of each network; one-shot pruning is after half of them.
      batch_size: examples per step.
      learning_rate: peak learning rate of AdamW.
      weight_decay: weight decay of AdamW, relative to the learning rate.
      channels: channels of the two convolutions.
      hidden: width of the dense layer.
      sparsities: sparsities of the curve, ascending.
      sparsity: sparsity in the table.
    """

    dataset: str = "digits"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 1e-2
    weight_decay: float = 0.6
    channels: tuple[int, int] = (32, 32)
    hidden: int = 512
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    sparsity: float = 0.95


def dense(sparsity: jax.Array, adamw: optax.GradientTransformation, steps: int):
    """Prunes nothing."""
    del sparsity, steps
    return adamw


def one_shot(sparsity: jax.Array, adamw: optax.GradientTransformation, steps: int):
    """Prunes globally at the first step, then fine-tunes."""
    del steps
    pruner = jp.recipes.magnitude(sparsity, scope="global")
    return jp.sparsify(adamw, pruner, end=0)


def gradual(sparsity: jax.Array, adamw: optax.GradientTransformation, steps: int):
    """Increases the sparsity over the first half of the steps, in about 50 updates."""
    ramp = steps // 2
    pruner = jp.recipes.gradual_magnitude(sparsity, begin=0, steps=ramp, scope="global")
    return jp.sparsify(adamw, pruner, every=max(ramp // 50, 1), end=ramp)


def two_of_four(sparsity: jax.Array, adamw: optax.GradientTransformation, steps: int):
    """Prunes to 2:4 at the first step, then fine-tunes; the first layer stays dense.

    Its one or three input channels cannot be divided into groups of four.
    """
    del sparsity, steps  # the pattern determines the sparsity
    where = jp.excluding("conv1/.*")
    return jp.sparsify(adamw, jp.recipes.n_of_m(2, 4), end=0, where=where)


def optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """Returns AdamW with a short warm-up and a cosine decay over the steps."""
    rate = optax.schedules.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        warmup_steps=max(steps // 20, 1),
        decay_steps=steps,
    )
    # b2 averages over 100 steps, since these runs are short.
    return optax.adamw(rate, b2=0.99, weight_decay=settings.weight_decay)


class Trained(NamedTuple):
    """The networks of one method, on the host.

    Attributes:
      sparsities: target sparsity of each level.
      params: parameters, `(levels, seeds, ...)`.
      masks: masks, `(levels, seeds, ...)`.
      seconds: training time per network.
      compile_seconds: total compilation time.
    """

    sparsities: tuple[float, ...]
    params: Any
    masks: Any
    seconds: float
    compile_seconds: float


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains all networks."""
    if settings.steps < 4:
        raise ExperimentError(f"--steps must be at least 4, got {settings.steps}")
    splits = jax.tree.map(jnp.asarray, data.load(settings.dataset, data_dir))
    methods = train_all(settings, splits.train, progress)
    figures = {"test_images": len(splits.test.labels), **report(methods, splits)}
    tables = {
        "main": comparison(figures, settings),
        "curve": curve(figures, settings),
    }
    return Outcome(figures, tables, functools.partial(draw, figures, settings))


def train_all(
    settings: Settings, examples: data.Examples, progress: Any
) -> dict[str, Trained]:
    """Returns the networks by method."""
    half = settings.steps // 2
    keys, start = jax.jit(functools.partial(begin, settings, examples))()

    def fit(label: str, tx_for: Callable, params: Any, levels: Any, stream: int):
        steps = settings.steps if tx_for is gradual else half
        task = progress.add_task(label, total=steps)
        return train.fit_grid(
            models.cnn.apply,
            lambda level: tx_for(level, optimizer(settings, steps), steps),
            params,
            examples,
            keys[stream],
            jnp.asarray(levels, jnp.float32),
            steps=steps,
            batch_size=settings.batch_size,
            on_progress=lambda done: progress.update(task, completed=done),
        )

    first = fit("train dense", dense, start, [0.0], 0)
    trained = train.one_network(first.state.params)  # of the single level
    # Sparsity 0 is the dense baseline with the same number of steps.
    levels = settings.sparsities
    shot = fit("one-shot, fine-tune", one_shot, trained, [0.0, *levels], 1)
    grown = fit("gradual", gradual, start, levels, 0)
    pattern = fit("2:4, fine-tune", two_of_four, trained, [0.5], 1)
    return {
        "dense": on_host(shot, slice(0, 1), (0.0,), first),
        "one_shot": on_host(shot, slice(1, None), levels, first),
        "gradual": on_host(grown, slice(None), levels),
        "two_of_four": on_host(pattern, slice(None), (0.5,), first),
    }


def begin(settings: Settings, examples: data.Examples) -> tuple[jax.Array, Any]:
    """Returns keys `(2, seeds)` for the batches of each half, and initial params."""

    def one(seed: jax.Array) -> tuple[jax.Array, Any]:
        key, *streams = jax.random.split(jax.random.key(seed), 3)
        params = models.cnn.init(
            key,
            examples.images.shape[1:],
            data.CLASSES,
            channels=settings.channels,
            hidden=settings.hidden,
        )
        return jnp.stack(streams), params

    return jax.vmap(one, out_axes=(1, 0))(jnp.asarray(settings.seeds))


def on_host(
    grid: train.Grid,
    levels: slice,
    sparsities: tuple[float, ...],
    before: train.Grid | None = None,
) -> Trained:
    """Returns some levels of a grid; `before` is the grid that they started from."""
    networks = (grid.state.params, jp.masks_of(grid.state.opt_state))
    params, masks = jax.tree.map(lambda leaf: np.asarray(leaf)[levels], networks)
    seconds = sum(
        g.seconds / g.curves.loss[..., 0].size for g in (grid, before) if g is not None
    )
    return Trained(sparsities, params, masks, seconds, grid.compile_seconds)


def report(methods: dict[str, Trained], splits: data.Splits) -> dict[str, Any]:
    """Returns the figures of each method as plain numbers.

    Accuracies are in percent, `[levels][seeds]`. Kept weights are counted for the
    first seed; they are the same for all seeds.
    """
    # All networks and both splits at once, for a single compilation.
    joined = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *(m.params for m in methods.values())
    )
    images = jnp.concatenate([splits.validation.images, splits.test.images])
    labels = np.concatenate([splits.validation.labels, splits.test.labels])
    right = np.asarray(train.grid_classes(models.cnn.apply, joined, images)) == labels
    figures, first = {}, 0
    for name, method in methods.items():
        levels = range(first, first := first + len(method.sparsities))
        validation, test = np.split(right[levels], [len(splits.validation.labels)], -1)
        figures[name] = {
            "target_sparsity": list(method.sparsities),
            "test_accuracy": percent(test),
            "validation_accuracy": percent(validation),
            "kept": [kept(method, level) for level in range(len(levels))],
            "seconds_per_network": rounded(method.seconds),
            "compile_seconds": rounded(method.compile_seconds),
        }
    return figures


def percent(right: np.ndarray) -> list[list[float]]:
    """Returns the share of True along the last axis in percent."""
    return np.round(100 * right.mean(-1), 3).tolist()


def kept(method: Trained, level: int) -> dict[str, Any]:
    """Returns the totals of `jprune.summary` for the first seed of a level."""
    network = jax.tree.map(lambda leaf: leaf[level, 0], (method.params, method.masks))
    return jp.summary(*network)["total"]


def comparison(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per method."""
    level = settings.sparsities.index(settings.sparsity)
    rows = (
        ("dense", "dense", 0),
        ("one-shot + fine-tuning", "one_shot", level),
        ("gradual", "gradual", level),
        ("2:4 + fine-tuning", "two_of_four", 0),
    )
    half = settings.steps // 2
    return Table(
        columns=(
            "method",
            "test acc. (%)",
            "sparsity",
            "kept",
            "kB → sparse",
            "s / net",
        ),
        rows=tuple(line(name, figures[key], at) for name, key, at in rows),
        caption=(
            f"{settings.dataset}: {figures['test_images']:,} test images, mean ± "
            f"standard deviation over {len(settings.seeds)} seeds. Each network has "
            f"{settings.steps} steps: one-shot and 2:4 prune after {half} and "
            f"fine-tune for {half}, gradual prunes during the first {half}. Sparsity "
            "is that of the pruned layers (2:4 leaves the first one dense). All prune "
            "by magnitude, 2:4 in its groups and the others across layers. Kept: "
            "weights. Sparse kB: the kept values and one bit per weight. Seconds are "
            "of training, without compilation."
        ),
    )


def line(name: str, found: dict[str, Any], level: int) -> tuple[str, ...]:
    """Returns the cells of one method."""
    total = found["kept"][level]
    pruned = total["sparsity"] > 0
    kilobytes = f"{total['bytes_dense'] / 1e3:.1f}"
    return (
        name,
        plus_minus(found["test_accuracy"][level]),
        f"{100 * total['sparsity']:.1f} %" if pruned else "0",
        f"{total['kept']:,}",
        f"{kilobytes} → {total['bytes_sparse'] / 1e3:.1f}" if pruned else kilobytes,
        f"{found['seconds_per_network']:.1f}",
    )


def curve(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of test accuracies by sparsity."""
    rows = (
        (label, *map(plus_minus, figures[key]["test_accuracy"]))
        for label, key in (
            ("one-shot + fine-tuning", "one_shot"),
            ("gradual", "gradual"),
        )
    )
    reference = plus_minus(figures["dense"]["test_accuracy"][0])
    return Table(
        columns=(
            "test accuracy (%) at",
            *(f"{100 * s:g} %" for s in settings.sparsities),
        ),
        rows=tuple(rows),
        caption=f"Same networks and budget; dense: {reference}.",
    )


def draw(figures: dict[str, Any], settings: Settings, path: Path) -> None:
    """Plots accuracy by sparsity."""

    def points(label: str, key: str) -> plots.Curve:
        sparsities = [total["sparsity"] for total in figures[key]["kept"]]
        return plots.Curve(label, sparsities, figures[key]["test_accuracy"])

    plots.sparsity_accuracy(
        path,
        [
            points("gradual", "gradual"),
            points("one-shot + fine-tuning", "one_shot"),
            points("2:4 + fine-tuning", "two_of_four"),
        ],
        dense=figures["dense"]["test_accuracy"][0],
        title=(
            f"Pruning a small CNN on {settings.dataset}: {settings.steps} steps each, "
            f"{len(settings.seeds)} seeds"
        ),
    )


def dense_accuracy(figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the test accuracy of the dense networks in percent."""
    return mean_and_spread(figures["dense"]["test_accuracy"][0])


def against_dense(
    key: str, sparsity: float
) -> Callable[[dict[str, Any]], tuple[float, float | None]]:
    """Measures test accuracy minus dense in points, paired by seed."""

    def measure(figures: dict[str, Any]) -> tuple[float, float | None]:
        level = figures[key]["target_sparsity"].index(sparsity)
        pruned = np.asarray(figures[key]["test_accuracy"][level])
        return mean_and_spread(pruned - figures["dense"]["test_accuracy"][0])

    return measure


def claims(title: str, dense_above: float) -> tuple[Claim, ...]:
    """Returns the claims for a data set; the first is about the dense network."""
    return (
        Claim(
            f"{title}, dense: test accuracy (%)",
            "jprune",
            (">", dense_above),
            dense_accuracy,
        ),
        Claim(
            f"{title}, gradual magnitude at 95 %: test accuracy minus dense (points)",
            GMP,
            (">=", -1.0),
            against_dense("gradual", 0.95),
        ),
        Claim(
            f"{title}, 2:4 and fine-tuning: test accuracy minus dense (points)",
            N_OF_M,
            (">=", -1.0),
            against_dense("two_of_four", 0.5),
        ),
    )


# For more and larger images, each of which is seen about once.
LARGER = Settings(steps=1_000, batch_size=64, hidden=128, learning_rate=3e-3)

DIGITS = Study(Settings(), claims("digits", 97.0), run)
MNIST = Study(LARGER._replace(dataset="mnist"), claims("MNIST", 97.0), run)
FASHION_MNIST = Study(
    LARGER._replace(dataset="fashion-mnist"), claims("Fashion-MNIST", 85.0), run
)
CIFAR_10 = Study(LARGER._replace(dataset="cifar-10"), claims("CIFAR-10", 55.0), run)
