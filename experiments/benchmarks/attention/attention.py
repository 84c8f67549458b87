"""Speed-ups of pruned attention: an encoder, and decoding with a KV cache.

All forms of one length are timed in turns. The ideal speed-up is the reduction of the
multiply-adds, or for decoding of the bytes of keys and values.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.attention import _decode as decoding
from experiments.benchmarks.attention import _encoder as encoding
from experiments.benchmarks.attention import _timed as timed
from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from jprune import attention as ja


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of weights, inputs and caches; one ratio each.
      steps: number of turns; their median is reported.
      shape: shape of the encoder.
      lengths: lengths of its input, with a batch of one.
      multiple_of: numbers of tokens are rounded down to a multiple of this.
      contexts: batch and length of decoding, with the shape of GPT-2 small.
      tokens: tokens that a call decodes.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 5
    shape: encoding.Shape = encoding.Shape()
    lengths: tuple[int, ...] = (128, 384, 512)
    multiple_of: int = 16
    contexts: tuple[tuple[int, int], ...] = ((1, 1024), (1, 4096), (8, 1024))
    tokens: int = 16


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times the encoder at every length, and decoding in every context."""
    del data_dir
    parts = len(settings.lengths) + len(settings.contexts)
    task = progress.add_task("time", total=parts * len(settings.seeds))

    def advance() -> None:
        progress.advance(task)

    figures = {
        "encoder": {
            str(length): encoder(settings, length, advance)
            for length in settings.lengths
        },
        "decoding": {
            f"{batch} x {length}": timed.decoder(settings, batch, length, advance)
            for batch, length in settings.contexts
        },
    }
    tables = {
        "main": encoder_table(figures, settings),
        "decoding": timed.decoding_table(figures, settings),
    }
    return Outcome(figures, tables)


def encoder(settings: Settings, length: int, advance: Any) -> dict[str, Any]:
    """Returns the milliseconds of each form of the encoder, and their ratios."""
    shape = settings.shape
    plan = encoding.half(shape, length, settings.multiple_of)
    full = encoding.cost(shape, ja.dense(shape.depth, length, shape.heads))
    flops = full / encoding.cost(shape, plan)
    compiled: dict[str, Any] = {}
    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
        one, two = jax.random.split(jax.random.key(seed))
        layers = encoding.init(one, shape)
        x = jax.random.normal(two, (1, length, shape.width))
        forms = encoding.forms(layers, x, plan, compiled)
        times = timing.in_turns(forms, settings.steps)
        timed.note(found, times)
        timed.note_ratio(
            found, "of the ideal", times["dense"] / times["pruned"] / flops
        )
        choice = (times["pruned"] - times["cut"]) / times["dense"]
        timed.note_ratio(found, "choice over dense", choice)
        timed.note_ratio(
            found, "masked, times faster", times["dense"] / times["masked"]
        )
        advance()
    return {
        "tokens": list(plan.tokens),
        "million_multiply_adds": rounded(full / 1e6),
        "times_fewer": rounded(flops),
        **found,
    }


def encoder_table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of the encoder."""
    rows = []
    for length, one in figures["encoder"].items():
        faster = np.divide(one["ms, dense"], one["ms, pruned"])
        rows.append(
            (
                f"{length} tokens, {one['tokens'][-1]} in the end",
                plus_minus(one["ms, dense"]),
                plus_minus(one["ms, pruned"]),
                plus_minus(list(faster)),
                f"{one['times_fewer']:.2f}",
                plus_minus(one["of the ideal"]),
                plus_minus([100 * share for share in one["choice over dense"]]),
                plus_minus(one["masked, times faster"]),
            )
        )
    shape = settings.shape
    return Table(
        columns=(
            *("encoder", "dense (ms)", "pruned (ms)", "times faster"),
            *("times fewer FLOPs", "of the ideal", "choice (% of dense)"),
            "masked instead, times faster",
        ),
        rows=tuple(rows),
        caption=(
            f"{shape.depth} layers of BERT-base's shape ({shape.width} wide, "
            f"{shape.heads} heads, {shape.hidden} hidden), one sentence, float32, "
            "inference, CPU time. Tokens leave by SpAtten's ramp, in multiples of "
            f"{settings.multiple_of}, at half the multiply-adds. Choice: scores, "
            "selection and gather, the time over that of the same products on the "
            f"first tokens. Medians of {settings.steps} turns, mean ± std over "
            f"{len(settings.seeds)} seeds."
        ),
    )


def _figure(
    part: str, case: str, name: str, figures: dict[str, Any]
) -> tuple[float, float | None]:
    return mean_and_spread(figures[part][case][name])


def _worst_choice(figures: dict[str, Any]) -> tuple[float, float | None]:
    found = [
        mean_and_spread(one["choice over dense"]) for one in figures["encoder"].values()
    ]
    mean, spread = max(found)
    return 100 * mean, None if spread is None else 100 * spread


def _times_fewer(figures: dict[str, Any]) -> tuple[float, None]:
    return min(one["times_fewer"] for one in figures["encoder"].values()), None


def _health(case: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    """The bandwidth of the fastest dense cache over that of streaming."""
    one = figures["decoding"][case]
    fastest = np.max([one[f"GB/s, {name}"] for name in decoding.DENSE], axis=0)
    return mean_and_spread(np.divide(fastest, one["GB/s, streaming"]))


STUDY = Study(
    Settings(),
    (
        Claim(
            "the encoder's schedules: times fewer multiply-adds",
            "jprune",
            (">=", 2.0),
            _times_fewer,
        ),
        *(
            Claim(
                f"pruned encoder, {length} tokens: share of the ideal speed-up",
                "jprune",
                (">=", bound),
                functools.partial(_figure, "encoder", str(length), "of the ideal"),
            )
            for length, bound in ((128, 0.75), (384, 0.93), (512, 0.93))
        ),
        Claim(
            "scores, selection and gather over the dense forward, %",
            "jprune",
            ("<=", 5.0),
            _worst_choice,
        ),
        *(
            Claim(
                f"evicting cache, context {length}: share of the ideal speed-up",
                "jprune",
                (">=", 0.85),
                functools.partial(_figure, "decoding", f"1 x {length}", "of the ideal"),
            )
            for length in (1024, 4096)
        ),
        *(
            Claim(
                f"evicting cache, context {length}: share of the ideal speed-up over "
                "the fastest dense cache, rows or columns",
                "jprune",
                (">=", 0.85),
                functools.partial(
                    _figure,
                    "decoding",
                    f"1 x {length}",
                    "of the ideal over the fastest",
                ),
            )
            for length in (1024, 4096)
        ),
        *(
            Claim(
                f"the fastest dense cache, context {length}: its GB/s over a streaming "
                "product's",
                "jprune",
                # About 0.1 if XLA compiles a batch of one badly.
                (">=", 0.7),
                functools.partial(_health, f"1 x {length}"),
            )
            for length in (1024, 4096)
        ),
    ),
    run,
)
