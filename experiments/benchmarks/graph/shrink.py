"""Speed-up of inference with half of the multiply-adds removed.

Nine networks at the sizes of their papers are compressed by `jprune.graph.compress`
with its defaults. The full and the small function are jitted and timed in turns. Their
share of the ideal is

    (time before / time after) / (multiply-adds before / multiply-adds after)

A second table has other multiples than the default, and the last rows of the first one
are networks that are narrow or a single block, see `_narrow`.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.graph import _narrow
from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.models import usual
from experiments.models.zoo.base import Architecture, Builder
from jprune import graph as jg


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of weights and inputs; one ratio each.
      steps: number of turns; their median is reported.
      multiples: values of `multiple_of` of the second table, for the first seed only.
      networks: names of the networks, of `FORMS`; empty for all.
      tiny: whether the networks have the sizes of the tests.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 5
    multiples: tuple[int, ...] = (1, 16)
    networks: tuple[str, ...] = ()
    tiny: bool = False


def compressed(
    fn: Callable[..., Any], params: Any, *inputs: Any, **changes: Any
) -> _narrow.Small:
    """Returns the function and params of `compress`, and the cost before and after."""
    small = jg.compress(fn, params, *inputs, remove=0.5, **changes)
    return small.fn, small.params, small.cost_before, small.cost_after


class Form(NamedTuple):
    """A network, and what is done to it.

    Attributes:
      build: `key -> Architecture`, at its usual size.
      tiny: the same at the size of the tests.
      shrink: `(fn, params, *inputs) -> Small`.
      share: the least share of the ideal that is claimed; None for a claim about
        the ratio of times.
    """

    build: Builder
    tiny: Builder
    shrink: Callable[..., _narrow.Small] = compressed
    share: float | None = None


SHARES = {
    "ResNet-50": 0.85,
    "DenseNet-121": 0.85,
    "ViT-S/16": 0.85,
    "Mamba-2 130M, 6 blocks": 0.85,
    "ConvNeXt-T": 0.75,
    "MobileNet-V2": 0.75,
    "EfficientNet-B0": 0.75,
    "Swin-T": 0.75,
    "T5-base encoder": 0.75,
}
TIMES_FASTER = 1.7  # claimed of the other networks
FORMS = {
    name: Form(usual.USUAL[name], usual.TINY[name], share=share)
    for name, share in SHARES.items()
} | {
    name: Form(_narrow.USUAL[name], _narrow.TINY[name], shrink)
    for name, shrink in _narrow.SMALLER.items()
}


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Shrinks and times every network."""
    del data_dir
    names = settings.networks or tuple(FORMS)
    task = progress.add_task("time", total=len(names) * len(settings.seeds))
    found = {}
    for name in names:
        rows = []
        for row in measured(FORMS[name], settings):
            rows.append(row)
            progress.advance(task)
        found[name] = {key: [row[key] for row in rows] for key in rows[0]}
        found[name]["multiples"] = rows[0]["multiples"]
        jax.clear_caches()
    figures = {"networks": found}
    tables = {"main": table(figures, settings), "multiples": rounding(figures)}
    return Outcome(figures, tables)


def measured(form: Form, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields for each seed the times and costs of the full and the small network."""
    full: Any = None
    for seed in settings.seeds:
        build = form.tiny if settings.tiny else form.build
        a = build(jax.random.key(seed))
        full = full or jax.jit(a.fn).lower(a.params, *a.inputs).compile()
        smaller = {"default": form.shrink(a.fn, a.params, *a.inputs)}
        if seed == settings.seeds[0] and form.share is not None:
            smaller |= {
                str(n): form.shrink(a.fn, a.params, *a.inputs, multiple_of=n)
                for n in settings.multiples
            }
        yield timed(full, a, smaller, settings.steps)


def timed(
    full: Any, network: Architecture, smaller: dict[str, _narrow.Small], turns: int
) -> dict[str, Any]:
    """Returns the times in ms of a network and its smaller forms, and their costs."""
    params, inputs = network.params, network.inputs
    forms: dict[str, Callable[[], Any]] = {"full": lambda: full(params, *inputs)}
    shares, programs = {}, {}
    for name, (fn, small, _, _) in smaller.items():
        arrays = jax.block_until_ready(jax.tree.map(jnp.asarray, small))
        programs[name] = jax.jit(fn).lower(arrays, *inputs).compile()
        forms[name] = functools.partial(programs[name], arrays, *inputs)
    times = timing.in_turns(forms, turns)
    for name, (_, _, before, after) in smaller.items():
        faster, ideal = times["full"] / times[name], before / after
        shares[name] = [rounded(x) for x in (ideal, faster, faster / ideal)]
    _, small, before, after = smaller["default"]
    return {
        "full": rounded(1e3 * times["full"]),
        "small": rounded(1e3 * times["default"]),
        "ratio": shares["default"][1],
        "share": shares["default"][2],
        "million_multiply_adds": [rounded(before / 1e6), rounded(after / 1e6)],
        "flops_left": flops_left(full, programs["default"]),
        "params": [sum(x.size for x in jax.tree.leaves(p)) for p in (params, small)],
        "multiples": shares,
    }


def flops_left(full: Any, small: Any) -> float | None:
    """Returns the remaining share of FLOPs as counted by XLA, or None."""
    counts = []
    for program in (full, small):
        costs = program.cost_analysis()
        costs = costs[0] if isinstance(costs, list) and costs else costs
        counts.append(costs.get("flops") if isinstance(costs, dict) else None)
    if not counts[0] or not counts[1]:
        return None
    return rounded(counts[1] / counts[0])


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of times, ratios and shares of the ideal."""
    rows = []
    for name, one in figures["networks"].items():
        whole, left = np.mean(one["million_multiply_adds"], axis=0)
        counted = [share for share in one["flops_left"] if share is not None]
        rows.append(
            (
                name,
                f"{whole:,.0f} → {left:,.0f}",
                f"{100 * mean_and_spread(counted)[0]:.0f} %" if counted else "",
                f"{plus_minus(one['full'])} → {plus_minus(one['small'])}",
                plus_minus(one["ratio"]),
                plus_minus(one["share"]),
            )
        )
    return Table(
        columns=(
            *("network", "multiply-adds (M)", "FLOPs left (XLA)"),
            *("CPU time (ms)", "times faster", "share of the ideal"),
        ),
        rows=tuple(rows),
        caption=(
            "Inference, jitted, float32, random weights: one image of 224x224, or one "
            "sequence of 128 tokens (T5) or 256 (Mamba-2). Compressed by `jg.compress` "
            "with its defaults. The share of the ideal is times faster over the ratio "
            "of multiply-adds. The last four rows: ResNet-20 for 64 images of 32x32, "
            "and a block of width 768 for 256 tokens, the same share of every group "
            "removed, in multiples of 8; where it says so, after the residual blocks "
            "of least mean square, and from the widest layer only. "
            f"Medians of {settings.steps} turns, mean ± std over "
            f"{len(settings.seeds)} seeds."
        ),
    )


def rounding(figures: dict[str, Any]) -> Table:
    """Returns the table of times faster by the multiple that widths are rounded to."""
    networks = figures["networks"]
    chosen = {n: networks[n]["multiples"] for n in SHARES if n in networks}
    names = list(next(iter(chosen.values())))
    columns = sorted(names, key=lambda name: 8 if name == "default" else int(name))
    return Table(
        columns=(
            "share of the ideal (times faster)",
            *("8, the default" if name == "default" else name for name in columns),
        ),
        rows=tuple(
            (name, *(f"{one[n][2]:.2f} ({one[n][1]:.2f})" for n in columns))
            for name, one in chosen.items()
        ),
        caption=(
            "The same networks by `jg.compress` with other values of `multiple_of`: "
            "the share of the ideal, and in brackets times faster; the first seed."
        ),
    )


def _mean_of(figure: str, name: str, figures: Any) -> tuple[float, float | None]:
    return mean_and_spread(figures["networks"][name][figure])


def _claim(name: str, share: float | None) -> Claim:
    figure, least = ("ratio", TIMES_FASTER) if share is None else ("share", share)
    said = "times faster" if share is None else "share of the ideal"
    return Claim(
        f"half the multiply-adds by smaller arrays, {said}: {name}",
        "jprune",
        (">=", least),
        functools.partial(_mean_of, figure, name),
    )


STUDY = Study(
    Settings(), tuple(_claim(name, form.share) for name, form in FORMS.items()), run
)
