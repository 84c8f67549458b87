"""Speed-ups of pruned attention on a GPU, and the benefit of our own kernels.

Batches fill the device and the type is bfloat16, as usual on GPUs. Attention with token
importances is timed by XLA and by `fused`, and attention without importances by XLA
and by cuDNN, the fastest available. Encoders and caches are those of `bench attention`.
It runs on CPUs at a small size, where the figures are meaningless.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.attention import _encoder as encoding
from experiments.benchmarks.attention import _timed as timed
from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from jprune import attention as ja
from jprune.attention import _choose


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of weights, inputs and caches; one ratio each.
      steps: number of turns; their median is reported.
      shape: shape of the encoder.
      batch: number of sentences.
      lengths: lengths of the sentences of the encoder.
      multiple_of: numbers of tokens are rounded down to a multiple of this.
      kernel_lengths: lengths of the sentences for attention alone.
      rows: shapes of sort keys; half of each row is selected.
      contexts: batch and length of decoding, with the shape of GPT-2 small.
      tokens: tokens that a call decodes.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 3
    shape: encoding.Shape = encoding.Shape()
    batch: int = 64
    lengths: tuple[int, ...] = (128, 384, 512)
    multiple_of: int = 16
    kernel_lengths: tuple[int, ...] = (128, 384, 512, 1024)
    rows: tuple[tuple[int, ...], ...] = (
        *((1, 512), (64, 512), (64, 1024), (16, 2048)),
        *((192, 64, 64), (192, 128, 128), (768, 128, 128)),
    )
    contexts: tuple[tuple[int, int], ...] = ((64, 1024), (16, 4096))
    tokens: int = 16


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times attention, the encoder at every length, decoding in every context."""
    del data_dir
    lengths, own = settings.lengths, settings.kernel_lengths
    contexts, rows = settings.contexts, settings.rows
    parts = len(lengths) + len(own) + len(contexts) + len(rows)
    task = progress.add_task("time", total=parts * len(settings.seeds))

    def advance() -> None:
        progress.advance(task)

    figures = {
        "kernels": {str(n): kernels(settings, n, advance) for n in own},
        "choice": {
            " x ".join(map(str, shape)): choice(settings, shape, advance)
            for shape in rows
        },
        "encoder": {str(n): encoder(settings, n, advance) for n in lengths},
        "decoding": {
            f"{batch} x {n}": timed.decoder(settings, batch, n, advance)
            for batch, n in contexts
        },
    }
    tables = {
        "main": kernel_table(figures, settings),
        "choice": choice_table(figures, settings),
        "encoder": encoder_table(figures, settings),
        "decoding": timed.decoding_table(figures, settings),
    }
    return Outcome(figures, tables)


def kernels(
    settings: Settings, length: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Returns milliseconds of one layer's attention, with and without importances."""
    shape, batch = settings.shape, settings.batch
    sizes = batch, shape.heads, length, shape.width // shape.heads
    valid = jnp.ones((batch, length), bool)
    by_xla = functools.partial(
        ja.fused.reference, causal=False, scale=1 / float(np.sqrt(sizes[-1]))
    )
    programs = {
        "XLA": jax.jit(by_xla),
        "fused": jax.jit(ja.fused.attend_summed),
        "XLA, no scores": jax.jit(lambda q, k, v, _: encoding.attended(q, k, v)),
    }
    if jax.default_backend() == "gpu":
        # In the layout of cuDNN, (tokens, heads, dim), so no transposes are timed.
        dot = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        programs["cuDNN, no scores"] = jax.jit(lambda q, k, v, _: dot(q, k, v))
    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
        keys = jax.random.split(jax.random.key(seed), 3)
        qkv = tuple(jax.random.normal(key, sizes, jnp.bfloat16) for key in keys)
        turned = tuple(jnp.swapaxes(x, 1, 2) for x in qkv)
        forms = {
            name: functools.partial(
                program, *(turned if name.startswith("cuDNN") else qkv), valid
            )
            for name, program in programs.items()
        }
        times = timing.in_turns(forms, settings.steps)
        timed.note(found, times)
        timed.note_ratio(found, "times faster", times["XLA"] / times["fused"])
        advance()
    return found


def choice(
    settings: Settings, shape: tuple[int, ...], advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Returns the milliseconds of selecting half of each row, by both algorithms."""
    need = jnp.full(shape[:-1], shape[-1] // 2, jnp.int32)
    programs = {
        "bits": jax.jit(_choose.best_by_bits),
        "pairs": jax.jit(_choose.best_by_pairs),
    }
    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
        keys = jax.random.bits(jax.random.key(seed), shape, jnp.uint32)
        forms = {n: functools.partial(f, keys, need) for n, f in programs.items()}
        timed.note(found, timing.in_turns(forms, settings.steps))
        advance()
    return found


def encoder(
    settings: Settings, length: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Returns the milliseconds of each form of the encoder, and their ratios."""
    shape = settings.shape
    plan = encoding.half(shape, length, settings.multiple_of)
    full = encoding.cost(shape, ja.dense(shape.depth, length, shape.heads))
    flops = full / encoding.cost(shape, plan)
    gpu = jax.default_backend() == "gpu"
    best = encoding.flash if gpu else encoding.attended
    planned = {
        "pruned": encoding.pruned,
        "fused": functools.partial(encoding.pruned, mix=encoding.mix_fused),
        "cut": functools.partial(encoding.cut, attend=best),
        "masked": encoding.masked,
    }
    programs = {
        "dense": jax.jit(encoding.dense),
        "flash": jax.jit(functools.partial(encoding.dense, attend=best)),
        **{n: jax.jit(functools.partial(f, plan=plan)) for n, f in planned.items()},
    }
    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
        one, two = jax.random.split(jax.random.key(seed))
        half = lambda x: x.astype(jnp.bfloat16)  # noqa: E731
        layers = jax.tree.map(half, encoding.init(one, shape))
        x = half(jax.random.normal(two, (settings.batch, length, shape.width)))
        forms = {n: functools.partial(f, layers, x) for n, f in programs.items()}
        times = timing.in_turns(forms, settings.steps)
        timed.note(found, times)
        ratios = {
            "of the ideal": times["dense"] / times["fused"] / flops,
            "of the ideal over flash": times["flash"] / times["fused"] / flops,
            "choice over dense": (times["fused"] - times["cut"]) / times["dense"],
        }
        for name, value in ratios.items():
            timed.note_ratio(found, name, value)
        advance()
    return {"tokens": list(plan.tokens), "times_fewer": rounded(flops), **found}


def kernel_table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of attention, with importances and without."""
    names = ("XLA", "fused", "XLA, no scores", "cuDNN, no scores")
    rows = tuple(
        (
            f"{length} tokens",
            *(plus_minus(one[f"ms, {n}"]) if f"ms, {n}" in one else "" for n in names),
            plus_minus(one["times faster"]),
        )
        for length, one in figures["kernels"].items()
    )
    shape = settings.shape
    return Table(
        columns=(
            "attention and importance",
            *("XLA (ms)", "two kernels (ms)", "XLA, no scores (ms)"),
            *("cuDNN, no scores (ms)", "kernels, times faster than XLA"),
        ),
        rows=rows,
        caption=(
            f"One layer: {settings.batch} sentences, {shape.heads} heads of "
            f"{shape.width // shape.heads}, bfloat16, no projections. Medians of "
            f"{settings.steps} turns, mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def choice_table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of both selection algorithms."""
    rows = []
    for shape, one in figures["choice"].items():
        bits, pairs = one["ms, bits"], one["ms, pairs"]
        faster = list(np.divide(bits, pairs))
        rows.append((shape, *map(plus_minus, (bits, pairs, faster))))
    return Table(
        columns=("rows x keys", "by bits (ms)", "by pairs (ms)", "times faster"),
        rows=tuple(rows),
        caption=(
            "The better half of each row: by a threshold found bit by bit, or by "
            "counting for each key those that are before it. Medians of "
            f"{settings.steps} turns, mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def encoder_table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of the encoder."""
    names = ("dense", "flash", "masked", "pruned", "fused")
    rows = []
    for length, one in figures["encoder"].items():
        faster = np.divide(one["ms, dense"], one["ms, fused"])
        rows.append(
            (
                f"{length} tokens, {one['tokens'][-1]} in the end",
                *(plus_minus(one[f"ms, {name}"]) for name in names),
                plus_minus(list(faster)),
                f"{one['times_fewer']:.2f}",
                plus_minus(one["of the ideal"]),
                plus_minus(one["of the ideal over flash"]),
                plus_minus([100 * share for share in one["choice over dense"]]),
            )
        )
    return Table(
        columns=(
            *("encoder", "dense (ms)", "dense, cuDNN (ms)", "masked (ms)"),
            *("pruned (ms)", "pruned, fused (ms)", "times faster"),
            *("times fewer FLOPs", "of the ideal", "of the ideal over cuDNN"),
            "choice (% of dense)",
        ),
        rows=tuple(rows),
        caption=(
            f"{settings.shape.depth} layers of BERT-base's shape, "
            f"{settings.batch} sentences, bfloat16, inference; schedules as in the "
            "table for a CPU. Choice: the time of scores, selection and gather over "
            "the same products on the first tokens with cuDNN's attention. Medians of "
            f"{settings.steps} turns, mean ± std over {len(settings.seeds)} seeds."
        ),
    )


def _figure(
    part: str, case: str, name: str, figures: dict[str, Any]
) -> tuple[float, float | None]:
    return mean_and_spread(figures[part][case][name])


STUDY = Study(
    Settings(),
    (
        *(
            Claim(
                f"attention and importance of {length} tokens: XLA's time over that "
                "of the kernels",
                "jprune",
                (">", 1.3),
                functools.partial(_figure, "kernels", str(length), "times faster"),
            )
            for length in (384, 512, 1024)
        ),
        *(
            Claim(
                f"pruned encoder on a GPU, {length} tokens: share of the ideal "
                "speed-up",
                "jprune",
                (">=", bound),
                functools.partial(_figure, "encoder", str(length), "of the ideal"),
            )
            for length, bound in ((128, 0.75), (384, 0.93), (512, 0.93))
        ),
        *(
            Claim(
                f"evicting cache on a GPU, {case}: share of the ideal speed-up",
                "jprune",
                (">=", 0.85),
                functools.partial(_figure, "decoding", case, "of the ideal"),
            )
            for case in ("64 x 1024", "16 x 4096")
        ),
    ),
    run,
)
