"""Time of the first and of later refreshes for trees of thousands of small leaves.

Each case runs in its own process, since the first time includes compilation.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded

COUNTS = (1_000, 10_000)
IN_JIT = (250, 500, 1_000, 2_000)
SHAPES = (
    *((8, 60), (60, 8), (22, 22), (16, 30), (30, 16)),
    *((4, 120), (120, 4), (5, 97), (97, 5), (490, 1)),
)


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of the weights; one run each.
      steps: number of later refreshes; their median is reported.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 5


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times first and later refreshes, and the growth inside one jit."""
    del data_dir
    cases = [(scope, n) for n in COUNTS for scope in ("leaf", "global")]
    task = progress.add_task(
        "refresh", total=len(settings.seeds) * (len(cases) + len(IN_JIT))
    )
    refreshes: dict[str, dict[str, list[float]]] = {}
    in_jit: dict[str, list[float]] = {}
    for seed in settings.seeds:
        for scope, n in cases:
            found = in_a_process("refresh", scope, n, seed, settings.steps)
            row = refreshes.setdefault(f"{scope}, {n}", {"first": [], "later": []})
            row["first"].append(rounded(found["first"]))
            row["later"].append(rounded(found["later"]))
            progress.advance(task)
        for n in IN_JIT:
            found = in_a_process("jit", "global", n, seed, settings.steps)
            in_jit.setdefault(str(n), []).append(rounded(found["first"]))
            progress.advance(task)
    figures = {"refreshes": refreshes, "in_jit": in_jit}
    return Outcome(figures, {"main": table(figures, settings)})


def in_a_process(
    path: str, scope: str, n: int, seed: int, steps: int
) -> dict[str, Any]:
    """Returns the result of `measure` in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.selection.leaves", path, scope]
        + [str(number) for number in (n, seed, steps)],
        env=dict(os.environ),
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(path: str, scope: str, n: int, seed: int, steps: int) -> dict[str, float]:
    """Returns seconds of the first refresh, with compilation, and of later ones."""
    import statistics

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jprune as jp

    rng = np.random.default_rng(seed)
    params = {
        f"layer_{i:05d}": {
            "kernel": jnp.asarray(rng.standard_normal(SHAPES[i % 10], np.float32))
        }
        for i in range(n)
    }
    pruner = jp.recipes.magnitude(0.9, scope=scope)  # type: ignore[arg-type]
    tx = jp.sparsify(optax.sgd(0.1), pruner, every=None)
    state = tx.init(params)
    refresh = lambda state, params: jp.refresh(pruner, state, params)  # noqa: E731
    if path == "jit":
        refresh = jax.jit(refresh)
    taken = []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        params, state = jax.block_until_ready(refresh(state, params))
        taken.append(time.perf_counter() - begin)
    return {"first": taken[0], "later": statistics.median(taken[1:])}


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of the seconds of all cases."""
    rows = [
        (f"scope {scope}", n, plus_minus(row["first"]), plus_minus(row["later"]))
        for name, row in figures["refreshes"].items()
        for scope, n in [name.split(", ")]
    ]
    rows += [
        ("scope global, inside one jit", n, plus_minus(first), "")
        for n, first in figures["in_jit"].items()
    ]
    return Table(
        columns=("refresh", "leaves", "first (s)", "later (s)"),
        rows=tuple(rows),
        caption=(
            "Magnitude pruning by jprune.refresh of leaves of about 485 weights in "
            f"{len(SHAPES)} shapes, seconds of wall-clock; the first with compilation, "
            f"later ones the median of {settings.steps}."
        ),
    )


def _worst(count: int, which: str) -> Any:
    def measured(figures: dict[str, Any]) -> tuple[float, float | None]:
        rows = figures["refreshes"]
        each = [
            mean_and_spread(rows[f"{s}, {count}"][which]) for s in ("leaf", "global")
        ]
        return max(each, key=lambda pair: pair[0])

    return measured


def _growth(figures: dict[str, Any]) -> tuple[float, float | None]:
    pairs = zip(figures["in_jit"]["2000"], figures["in_jit"]["500"], strict=True)
    return mean_and_spread([a / b for a, b in pairs])


STUDY = Study(
    Settings(),
    (
        Claim(
            "first refresh of 1,000 leaves, the slower scope (s)",
            "jprune",
            ("<=", 5.0),
            _worst(1_000, "first"),
        ),
        Claim(
            "first refresh of 10,000 leaves, the slower scope (s)",
            "jprune",
            ("<=", 20.0),
            _worst(10_000, "first"),
        ),
        Claim(
            "later refreshes of 1,000 leaves (s)",
            "jprune",
            ("<=", 0.3),
            _worst(1_000, "later"),
        ),
        Claim(
            "later refreshes of 10,000 leaves (s)",
            "jprune",
            ("<=", 4.0),
            _worst(10_000, "later"),
        ),
        Claim(
            "first refresh inside one jit: 2,000 leaves over 500 (4 would be linear)",
            "jprune",
            ("<=", 4.0),
            _growth,
        ),
    ),
    run,
)


if __name__ == "__main__":
    which, what, *numbers = sys.argv[1:]
    print(json.dumps(measure(which, what, *map(int, numbers))))
