"""Accuracy and savings of SpAtten's techniques for a small vision transformer.

The protocol is that of `spatten_accuracy`: half of the training is dense, a schedule is
chosen on the validation split, and the other half is run once dense and once with all
techniques. The test split is read once.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import finetune as ft
from experiments.loops import train
from experiments.models import encoder, vit
from experiments.studies.attention import _levels as sl
from experiments.studies.attention import _plots as plots
from experiments.tasks import data
from jprune import attention as ja

CANDIDATES = tuple(
    sl.Level(tokens, start, 1.0, 0.5, ja.Bits(6, 4, 4, 6), 0.1)
    for tokens, start in ((0.55, 0.85), (0.45, 0.7), (0.4, 0.6), (0.3, 0.5))
)
SHARES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      dataset: name of the data set, one of `data.SETS`.
      seeds: seeds of initialisation and batches.
      steps: steps of each half of the training.
      batch_size: images per step.
      rate: peak learning rate.
      patch: side of a patch.
      width: width of the residual stream.
      depth: number of layers.
      heads: heads per layer.
      candidates: candidate schedules.
      dram: required reduction of attention's traffic, relative to float32.
      attention: required reduction of attention's multiply-adds.
    """

    dataset: str = "fashion-mnist"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 500
    batch_size: int = 64
    rate: float = 2e-3
    patch: int = 4
    width: int = 64
    depth: int = 6
    heads: int = 4
    candidates: tuple[sl.Level, ...] = CANDIDATES
    dram: float = 8.0
    attention: float = 1.8


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, chooses schedules, prunes, trains on, and evaluates on test."""
    splits = jax.tree.map(jnp.asarray, data.load(settings.dataset, data_dir))
    task = progress.add_task("train and prune", total=len(settings.seeds))
    each = []
    for seed in settings.seeds:
        each.append(one(settings, splits, seed, shown=seed == settings.seeds[0]))
        progress.advance(task)
    rows = {
        name: {
            key: [rounded(found["rows"][name][key]) for found in each]
            for key in each[0]["rows"][name]
        }
        for name in sl.ROWS
    }
    dense = np.asarray(rows["dense"]["score"])
    for row in rows.values():
        row["lost"] = [rounded(x) for x in dense - np.asarray(row["score"])]
    shown = {key: each[0][key] for key in ("curve", "pictures", "seconds")}
    levels = [found["level"] for found in each]
    figures: dict[str, Any] = {"rows": rows, "levels": levels, **shown}

    def draw(path: Path) -> None:
        title = f"{settings.dataset}: patches that leave the attention of each layer"
        plots.images(path, figures["pictures"], figures["curve"], title=title)

    return Outcome(figures, {"main": table(figures, settings)}, draw)


def one(
    settings: Settings, splits: data.Splits, seed: int, *, shown: bool
) -> dict[str, Any]:
    """Returns the figures of a seed."""
    shape = splits.train.images.shape[1:]
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    sizes_in = {n: getattr(settings, n) for n in ("patch", "width", "depth")}
    params = vit.init(first, shape, **sizes_in)
    sizes = sl.sizes_of(params, settings.heads)
    begin = train.TrainState(params, optimizer(settings).init(params))
    middle = trained(settings, begin, splits.train, second, None)

    def judge(params: Any, part: data.Examples, kept: ft.Kept) -> Any:
        return judged(settings.heads, params, part, kept)

    of = functools.partial(judge, middle.params, splits.validation)
    tried = sl.try_out(settings.candidates, sizes, of)
    picked = sl.pick(tried, settings.dram, settings.attention)
    level = settings.candidates[picked]
    tuned = trained(settings, middle, splits.train, third, level)
    dense = trained(settings, middle, splits.train, third, None)

    def final(pruned: bool, kept: ft.Kept) -> Any:
        score, _, counts = judge((tuned if pruned else dense).params, splits.test, kept)
        return score, counts

    found = {
        "level": level._asdict() | {"bits": level.bits._asdict()},
        "tried": tried,
        "rows": sl.breakdown(level, sizes, final),
    }
    if shown:
        found["curve"] = curve(judge, splits, dense, tuned, sizes)
        kept = sl.kept_of(level, sizes, quantized=True)
        images: Any = splits.test.images
        found["pictures"] = pictures(settings, tuned.params, images, kept)
        found["seconds"] = seconds(settings, tuned.params, images[:64], level, sizes)
    return found


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Returns Adam with warm-up and a cosine decay over both halves."""
    steps = 2 * settings.steps
    rate = optax.schedules.warmup_cosine_decay_schedule(
        0.0, settings.rate, warmup_steps=max(steps // 10, 1), decay_steps=steps
    )
    return optax.adamw(rate, weight_decay=1e-2)


def trained(
    settings: Settings,
    state: train.TrainState,
    examples: data.Examples,
    key: jax.Array,
    level: sl.Level | None,
) -> train.TrainState:
    """Returns the state after half of the training, dense or with all techniques."""
    run = _compiled(settings._replace(seeds=(), candidates=()), level)
    return run(state, examples, key)


@functools.lru_cache
def _compiled(settings: Settings, level: sl.Level | None) -> Any:
    def go(state: Any, examples: data.Examples, key: jax.Array) -> train.TrainState:
        sizes = sl.sizes_of(state.params, settings.heads)
        kept = sl.kept_of(level, sizes, quantized=True, shrink=True)
        size = settings.batch_size, settings.steps
        batches = train.epoch_batches(key, len(examples.labels), *size)

        def apply(params: Any, images: jax.Array) -> jax.Array:
            return outputs(params, images, settings.heads, kept)[0]

        tx = optimizer(settings)
        return train.advance(apply, tx, examples, state, batches)[0]

    return jax.jit(go)


def outputs(
    params: Any, images: jax.Array, heads: int, kept: ft.Kept
) -> tuple[jax.Array, encoder.Encoded]:
    """Returns logits, and the result of the encoder."""
    slots = None
    if kept.shares is not None:
        slots = encoder.room(params["positions"].shape[0], kept.shares)
    found = vit.encode(
        params,
        images,
        heads=heads,
        pruning=kept.pruning,
        progressive=kept.progressive,
        slots=slots,
    )
    return vit.logits(params, found), found


PIECE = 250  # images per evaluation batch


@functools.partial(jax.jit, static_argnums=(0, 5))
def _judge(
    heads: int, params: Any, images: Any, labels: Any, pruning: Any, progressive: Any
) -> Any:
    """Evaluates a batch; images with the label -1 only fill it up."""
    kept = ft.Kept(pruning, progressive)
    logits, found = outputs(params, images, heads, kept)
    real = labels >= 0
    counts = jax.tree.map(lambda x: (x * real).sum(-1), found.counts)
    losses = ft.losses(logits, jnp.maximum(labels, 0)) * real
    right = (logits.argmax(-1) == labels) & real
    return right.sum(), losses.sum(), counts, found.alive


def judged(heads: int, params: Any, part: data.Examples, kept: ft.Kept) -> Any:
    """Returns accuracy in percent, mean loss, and the counts summed over images."""
    count = len(part.labels)
    extra = -count % PIECE
    images = np.concatenate(
        [part.images, np.zeros_like(part.images[:1].repeat(extra, 0))]
    )
    labels = np.concatenate([part.labels, np.full(extra, -1, np.int32)])
    found = []
    for i in range(0, count, PIECE):
        piece = images[i : i + PIECE], labels[i : i + PIECE]
        *sums, _ = _judge(heads, params, *piece, kept.pruning, kept.progressive)
        found.append(jax.tree.map(lambda x: np.asarray(x, np.float64), sums))
    right, loss, counts = jax.tree.map(lambda *x: sum(x), *found)
    return 100 * float(right) / count, float(loss) / count, counts


def curve(
    judge: Any, splits: data.Splits, dense: Any, tuned: Any, sizes: sl.Sizes
) -> dict[str, Any]:
    """Returns validation accuracy by the mean share of tokens, for both networks."""
    scores = []
    for share in SHARES:
        level = sl.Level(share, min(1.0, 1.5 * share))
        kept = sl.kept_of(level, sizes, quantized=False)
        found = (judge(s.params, splits.validation, kept)[0] for s in (dense, tuned))
        scores.append([rounded(score) for score in found])
    return {"shares": list(SHARES), "scores": scores}


def pictures(
    settings: Settings, params: Any, images: jax.Array, kept: ft.Kept
) -> list[dict[str, Any]]:
    """Returns the first four test images, and the remaining patches of each layer."""
    labels = np.full(PIECE, -1, np.int32)
    inputs = images[:PIECE], labels, kept.pruning, kept.progressive
    *_, found = _judge(settings.heads, params, *inputs)
    side = images.shape[1] // settings.patch
    alive = np.asarray(found)[:, :4, 1:].reshape(-1, 4, side, side)
    return [
        {
            "pixels": np.asarray(images[i, :, :, 0]).round(3).tolist(),
            "alive": alive[:, i].astype(int).tolist(),
        }
        for i in range(4)
    ]


def seconds(
    settings: Settings, params: Any, images: jax.Array, level: sl.Level, sizes: sl.Sizes
) -> dict[str, float]:
    """Returns milliseconds per image, dense and with fewer tokens.

    Heads, values and bits are masks and rounding here, which are not faster.
    """
    forms = {}
    for name, part in (("dense", None), ("tokens", level.only_tokens())):
        kept = sl.kept_of(part, sizes, quantized=False, shrink=True)
        run = jax.jit(lambda p, x, k=kept: outputs(p, x, settings.heads, k)[0])
        forms[name] = functools.partial(run, params, images)
    each = timing.in_turns(forms, 5)
    return {name: 1e3 * one / len(images) for name, one in each.items()}


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per technique."""
    rows = []
    for name, row in figures["rows"].items():
        saved = (f"{np.mean(row[key]):.2f}x" for key in SAVED)
        asked = f"{np.mean(row['rows']):.1f}" if name == sl.ROWS[-1] else ""
        rows.append(
            (name, *map(plus_minus, (row["score"], row["lost"])), *saved, asked)
        )
    return Table(
        columns=(
            "network",
            "test acc. (%)",
            "lost (pts)",
            "DRAM",
            "of 16 bits",
            "Q.K and P.V",
            "all layers",
            "rows refetched (%)",
        ),
        rows=tuple(rows),
        caption=(
            f"{settings.dataset}, patches of {settings.patch}, {settings.depth} layers "
            f"of width {settings.width}, {settings.heads} heads; mean ± standard "
            f"deviation over {len(settings.seeds)} seeds. {2 * settings.steps} steps "
            f"of {settings.batch_size}, of the pruned network the second half with all "
            "techniques on; rows between switch some off without more training. DRAM: "
            "rows of Q, K and V that attention reads, against float32. Milliseconds "
            f"of processor time for an image, dense {figures['seconds']['dense']:.2f} "
            f"and with fewer tokens {figures['seconds']['tokens']:.2f}."
        ),
    )


SAVED = ("dram", "dram16", "attention", "layers")


def final(key: str) -> Any:
    """Returns a measure of the last row."""
    return lambda figures: mean_and_spread(figures["rows"][sl.ROWS[-1]][key])


def claims(name: str) -> tuple[Claim, ...]:
    """Returns the claims for a data set."""
    what = f"{name}, ViT on patches, all of SpAtten's techniques: "
    return (
        Claim(f"{what}points lost", sl.PAPER, ("<=", 0.5), final("lost")),
        Claim(
            f"{what}times less read by attention, from float32",
            sl.PAPER,
            (">=", 8),
            final("dram"),
        ),
        Claim(
            f"{what}times fewer multiply-adds of attention",
            sl.PAPER,
            (">=", 1.8),
            final("attention"),
        ),
    )


FASHION = Study(settings=Settings(), claims=claims("Fashion-MNIST"), run=run)
DIGITS = Study(
    settings=Settings(
        dataset="digits", seeds=(0,), steps=150, rate=3e-3, patch=2, width=32, depth=4
    ),
    claims=claims("digits"),
    run=run,
)
