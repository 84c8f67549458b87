"""Cost of an exact global mask, in reduction passes over the same weights.

A reduction pass reads each weight once and sums the magnitudes, which is a lower bound
for methods that read all weights. Peers sort. Their algorithms are reimplemented here
from their descriptions; PyTorch's own is timed if it is installed.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jprune as jp
from experiments.benchmarks.selection import _plot as selection_plot
from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, rounded
from jprune import selection

SHAPES = {"1 M": (1, 1024), "17 M": (4, 2048), "50 M": (12, 2048), "101 M": (24, 2048)}
ON_ACCELERATORS = {"268 M": (16, 4096), "1 G": (64, 4096)}
PASS, SORT = "a reduction pass", "sort of the whole tree (JaxPruner)"
N_OF_M, DOUBLE_SORT = "2:4", "2:4 by two argsorts"


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of the weights; one ratio each.
      steps: number of turns; their median is reported.
      density: share of weights that is kept.
      peers_up_to: maximum number of weights for peers, which take minutes beyond it.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 5
    density: float = 0.1
    peers_up_to: int = 51_000_000


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times all forms at all sizes."""
    del data_dir
    shapes = dict(SHAPES)
    if jax.default_backend() != "cpu":
        shapes |= ON_ACCELERATORS
    types = {"f32": jnp.float32, "bf16": jnp.bfloat16}
    task = progress.add_task(
        "select", total=len(settings.seeds) * len(shapes) * len(types) + 2
    )
    passes: dict[str, dict[str, dict[str, list[float]]]] = {}
    pass_seconds: dict[str, dict[str, list[float]]] = {}
    for seed in settings.seeds:
        for dtype, kind in types.items():
            for size, (count, side) in shapes.items():
                leaves = weights(seed, count, side, kind)
                found = at_one_size(leaves, settings)
                one = found.pop(PASS)
                pass_seconds.setdefault(dtype, {}).setdefault(size, []).append(one)
                for name, time in found.items():
                    row = passes.setdefault(dtype, {}).setdefault(name, {})
                    row.setdefault(size, []).append(rounded(time / one))
                progress.advance(task)
    patterns = [patterned(settings, seed) for seed in settings.seeds]
    progress.advance(task)
    figures = {
        "passes": passes,
        "pass_seconds": pass_seconds,
        "n_of_m": {
            "passes": [rounded(p[N_OF_M] / p[PASS]) for p in patterns],
            "times_faster": [rounded(p[DOUBLE_SORT] / p[N_OF_M]) for p in patterns],
        },
        "on_devices": on_devices(),
    }
    progress.advance(task)
    draw = functools.partial(selection_plot.draw, figures=figures, shapes=shapes)
    return Outcome(figures, {"main": table(figures, settings)}, draw)


def weights(seed: int, count: int, side: int, dtype: Any) -> list[jax.Array]:
    """Returns square leaves of normally distributed weights."""
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.standard_normal((side, side), np.float32), dtype)
        for _ in range(count)
    ]


def at_one_size(leaves: list[jax.Array], settings: Settings) -> dict[str, float]:
    """Returns the seconds of every form for the weights of one size."""
    n = sum(w.size for w in leaves)
    k = round(n * settings.density)
    each = [round(w.size * settings.density) for w in leaves]
    in_jit = jax.jit(lambda leaves: selection.top_k(magnitudes(leaves), k))
    total = jax.jit(lambda ws: [jnp.sum(jnp.abs(w), dtype=jnp.float32) for w in ws])
    forms: dict[str, Callable[[], Any]] = {
        PASS: lambda: total(leaves),
        "jprune": lambda: selection.top_k(magnitudes(leaves), k),
        "jprune, inside jit": lambda: in_jit(leaves),
        "jprune, each leaf": lambda: selection.top_k_per_leaf(magnitudes(leaves), each),
    }
    found = timing.in_turns(forms, settings.steps)
    if n <= settings.peers_up_to and leaves[0].dtype == jnp.float32:
        found |= peers(leaves, k)
    return found


def magnitudes(leaves: list[jax.Array]) -> list[jax.Array]:
    """Returns the scores of magnitude pruning."""
    return [jnp.abs(w) for w in leaves]


def peers(leaves: list[jax.Array], k: int) -> dict[str, float]:
    """Returns the seconds of methods that sort, timed once after compilation."""

    def compiled(f: Callable[..., Any]) -> Callable[[], Any]:
        program = jax.jit(f).lower(leaves).compile()
        return lambda: program(leaves)

    def flat(leaves: list[jax.Array]) -> jax.Array:
        return jnp.concatenate([jnp.abs(w).ravel() for w in leaves])

    found = {
        "jnp.sort": compiled(lambda leaves: jnp.sort(flat(leaves))[-k]),
        "lax.top_k": compiled(lambda leaves: lax.top_k(flat(leaves), k)[0][-1]),
        SORT: compiled(functools.partial(sorted_globally, k=k)),
    }
    if importlib.util.find_spec("torch"):
        found["torch.nn.utils.prune"] = torch_globally(leaves, k)
    return {name: timing.seconds(f, repeat=False) for name, f in found.items()}


def sorted_globally(leaves: list[jax.Array], k: int) -> list[jax.Array]:
    """Returns the masks of JaxPruner's global magnitude pruning.

    Scores are divided by their leaf's norm, concatenated, and sorted by index;
    Lee et al., JaxPruner, 2023, arXiv:2304.14082.
    """
    scores = [jnp.abs(w) / jnp.linalg.norm(w) for w in leaves]
    order = jnp.argsort(-jnp.concatenate([s.ravel() for s in scores]))
    mask = jnp.zeros(order.shape, bool).at[order[:k]].set(True)
    sizes = np.cumsum([w.size for w in leaves])[:-1]
    parts = jnp.split(mask, sizes)
    return [m.reshape(w.shape) for m, w in zip(parts, leaves, strict=True)]


def torch_globally(leaves: list[jax.Array], k: int) -> Callable[[], Any]:
    """Returns PyTorch's own global pruning of the same weights."""
    torch = importlib.import_module("torch")
    prune = importlib.import_module("torch.nn.utils.prune")
    values = [torch.from_numpy(np.array(w)) for w in leaves]
    amount = sum(w.size for w in leaves) - k

    def call() -> None:
        modules = []
        for value in values:
            module = torch.nn.Module()
            module.weight = torch.nn.Parameter(value)
            modules.append((module, "weight"))
        prune.global_unstructured(modules, prune.L1Unstructured, amount=amount)

    return call


def patterned(settings: Settings, seed: int) -> dict[str, float]:
    """Returns the seconds of 2:4 masks along the input axis."""
    w = weights(seed, 1, 2048, jnp.float32)[0]
    params = {"kernel": w}
    link = jp.keep_n_of_m(2, 4)
    state = link.init(params)
    ours = jax.jit(lambda scores: link.update(scores, state, scores)[0])
    total = jax.jit(lambda w: jnp.sum(jnp.abs(w)))

    @jax.jit
    def twice(w: jax.Array) -> jax.Array:
        groups = jnp.abs(w).reshape(-1, 4, w.shape[1])
        ranks = jnp.argsort(jnp.argsort(-groups, axis=1), axis=1)
        return (ranks < 2).reshape(w.shape)

    scores = {"kernel": jnp.abs(w)}
    np.testing.assert_array_equal(ours(scores)["kernel"], twice(w))
    forms = {
        PASS: lambda: total(w),
        N_OF_M: lambda: ours({"kernel": w})["kernel"],
        DOUBLE_SORT: lambda: twice(w),
    }
    return timing.in_turns(forms, settings.steps)


def on_devices() -> dict[str, Any]:
    """Returns the output of `_devices`, in a process with eight devices."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.selection._devices"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of the passes of every form at every size."""
    sizes = list(figures["pass_seconds"]["f32"])
    rows = []
    for dtype, forms in figures["passes"].items():
        for name, by_size in forms.items():
            cells = [
                f"{mean_and_spread(by_size[size])[0]:.3g}" if size in by_size else ""
                for size in sizes
            ]
            rows.append((f"{name}, {dtype}", *cells))
    return Table(
        columns=("an exact mask, in reduction passes", *sizes),
        rows=tuple(rows),
        caption=(
            f"{settings.density:.0%} of normally distributed weights kept, over all "
            "leaves unless it says otherwise. A reduction pass is the sum of the "
            "magnitudes of the same leaves, in the same run; on a CPU all times are "
            f"CPU-seconds; median of {settings.steps}, peers timed once, up to "
            f"{settings.peers_up_to / 1e6:.0f} M weights. jnp.sort, lax.top_k: the "
            "threshold alone."
        ),
    )


def _passes(dtype: str, name: str, size: str) -> Callable[[Any], Any]:
    return lambda figures: mean_and_spread(figures["passes"][dtype][name][size])


def _times_faster(figures: dict[str, Any]) -> tuple[float, float | None]:
    forms = figures["passes"]["f32"]
    pairs = zip(forms[SORT]["50 M"], forms["jprune"]["50 M"], strict=True)
    return mean_and_spread([theirs / ours for theirs, ours in pairs])


STUDY = Study(
    Settings(),
    (
        Claim(
            "exact global mask of 50 M f32 weights: reduction passes",
            "jprune",
            ("<=", 25.0),
            _passes("f32", "jprune", "50 M"),
        ),
        Claim(
            "the same inside one jit: reduction passes",
            "jprune",
            ("<=", 25.0),
            _passes("f32", "jprune, inside jit", "50 M"),
        ),
        Claim(
            "exact global mask of 50 M bf16 weights: reduction passes",
            "jprune",
            ("<=", 20.0),
            _passes("bf16", "jprune", "50 M"),
        ),
        Claim(
            "exact global mask of 50 M f32 weights: time of sorting the whole tree "
            "over ours",
            "JaxPruner, 2023, arXiv:2304.14082 (the algorithm)",
            (">=", 40.0),
            _times_faster,
        ),
        Claim(
            "2:4 masks: time of two argsorts over ours",
            "jprune",
            (">=", 60.0),
            lambda figures: mean_and_spread(figures["n_of_m"]["times_faster"]),
        ),
    ),
    run,
)
