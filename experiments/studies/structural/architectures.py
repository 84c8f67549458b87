"""Removes half of every group of each toy architecture and compares the results.

Each architecture of the zoo is traced, its groups are found, and a random half of each
group is removed in two ways: by `jprune.graph.shrink`, which makes the arrays smaller,
and by `jprune.graph.without_entries`, which leaves removed entries out of every sum at
full size. Results and gradients are compared. FLOPs are counted by XLA.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import rounded
from experiments.models.zoo.base import Architecture
from jprune import graph as jg
from jprune import tree

AGREE = 1e-5
# A while loop has no reverse-mode gradient.
NO_GRADIENT = ("Greedy decoder in a while loop (plain)",)


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      seeds: seeds of weights, inputs and choices; the worst one counts.
      steps: maximum number of architectures, in the order of the zoo.
      architectures: names of the architectures, or () for all.
      share: share of each group that is kept.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 1_000
    architectures: tuple[str, ...] = ()
    share: float = 0.5


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Shrinks every architecture and compares."""
    del data_dir
    from experiments.models import zoo

    names = (settings.architectures or tuple(zoo.ARCHITECTURES))[: settings.steps]
    task = progress.add_task("shrink", total=len(names) * len(settings.seeds))
    found = {}
    for name in names:
        each = []
        for seed in settings.seeds:
            build, slope = zoo.ARCHITECTURES[name], name not in NO_GRADIENT
            each.append(compare(build, seed, settings.share, slope))
            progress.advance(task)
        worst = {key: max(one[key] for one in each) for key in ERRORS if key in each[0]}
        found[name] = {**each[0], **worst}
    figures = {"architectures": found}
    return Outcome(figures, {"main": table(figures, settings)})


ERRORS = ("unchanged_error", "error", "gradient_error")


def compare(
    build: Callable[[jax.Array], Architecture], seed: int, share: float, slope: bool
) -> dict[str, Any]:
    """Returns sizes and FLOPs of an architecture before and after, and the errors."""
    fn, params, inputs = build(jax.random.key(seed))
    begin = time.perf_counter()
    graph = jg.trace(fn, params, *inputs, shrinking=is_statistic)
    seconds = time.perf_counter() - begin
    keep = halves(graph, seed, share)
    plan = jg.make_plan(graph, {n: np.flatnonzero(mask) for n, mask in keep.items()})
    small_fn, small_params = jg.shrink(graph, params, plan)
    full_fn = jg.without_entries(graph, keep)

    original, flops = compiled(fn, params, *inputs)
    small, small_flops = compiled(small_fn, small_params, *inputs)
    full, _ = compiled(full_fn, params, *inputs)
    same, _ = compiled(jg.without_entries(graph, {}), params, *inputs)
    before = original(params, *inputs)
    expected = sliced_statistics(plan, full(params, *inputs))
    found = {
        "groups": len(graph.groups),
        "params": [size(params), size(small_params)],
        "flops": [flops, small_flops],
        "unchanged_error": error(same(params, *inputs), before),
        "error": error(small(small_params, *inputs), expected),
        "trace_seconds": rounded(seconds),
    }
    if slope:
        ours, theirs = (
            jax.jit(jax.grad(objective(f, inputs), allow_int=True))
            for f in (small_fn, full_fn)
        )
        wanted = jg.slice_tree(plan, theirs(params))
        found["gradient_error"] = error(ours(small_params), wanted)
    return found


def is_statistic(path: str, leaf: Any) -> bool:
    """Whether a result may shrink: updated statistics of batch normalization."""
    del leaf
    return "batch_stats" in path


def halves(graph: jg.Graph, seed: int, share: float) -> dict[str, np.ndarray]:
    """Returns random masks that keep a share of every group, at least one entry."""
    rng = np.random.default_rng(seed)
    keep = {}
    for name, group in graph.groups.items():
        mask = np.zeros(group.size, bool)
        kept = max(1, int(group.size * share))
        mask[rng.choice(group.size, kept, replace=False)] = True
        keep[name] = mask
    return keep


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Any, float | None]:
    """Returns the compiled function and XLA's count of its FLOPs (or None)."""
    program = jax.jit(fn).lower(*args).compile()
    costs = program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) and costs else costs
    flops = costs.get("flops") if isinstance(costs, dict) else None
    return program, None if flops is None or flops < 0 else float(flops)


def objective(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> Callable[..., Any]:
    """Returns a scalar function of params that depends on all results.

    Results that shrink are excluded, since removed entries have no counterpart.
    """

    def loss(params: Any) -> jax.Array:
        total = jnp.zeros(())

        def add(path: str, x: jax.Array) -> None:
            nonlocal total
            if jnp.issubdtype(x.dtype, jnp.floating) and not is_statistic(path, x):
                total = total + jnp.sin(1.3 * x + 0.1).sum()

        tree.map_with_path(add, fn(params, *inputs))
        return total

    return loss


def sliced_statistics(plan: jg.Plan, results: Any) -> Any:
    """Slices those of the full-size results that shrink, by the plan."""

    def cut(path: str, x: Any) -> Any:
        return jg.slice_tree(plan, {path: x})[path] if is_statistic(path, x) else x

    return tree.map_with_path(cut, results)


def size(params: Any) -> int:
    """Returns the number of parameters."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def error(ours: Any, expected: Any) -> float:
    """Returns the largest difference, relative to the largest value of its leaf.

    The scale of a leaf that is almost 0 compared with the others, such as the gradient
    of an attention key's bias, is a hundredth of the largest value of all leaves.
    Integers, such as tokens, have an error of 1 if they differ.
    """
    pairs = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
        if b.dtype != jax.dtypes.float0
    ]
    floating = [np.abs(b) for _, b in pairs if np.issubdtype(b.dtype, np.floating)]
    top = max([float(b.max(initial=0)) for b in floating], default=0.0)
    worst = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"results have different shapes {a.shape} and {b.shape}")
        if not np.issubdtype(b.dtype, np.floating):
            worst = max(worst, float(np.any(a != b)))
            continue
        scale = max(float(np.abs(b).max(initial=0)), 0.01 * top, 1e-30)
        difference = np.abs(a.astype(np.float64) - b).max(initial=0)
        worst = max(worst, float(difference) / scale)
    return worst


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per architecture."""
    rows = []
    for name, one in figures["architectures"].items():
        flops = [None if n is None else n / 1e3 for n in one["flops"]]
        rows.append(
            (
                name,
                str(one["groups"]),
                arrow(one["params"]),
                arrow(flops),
                f"{one['error']:.0e}",
                f"{one['gradient_error']:.0e}" if "gradient_error" in one else "",
                f"{one['trace_seconds']:.2f}",
            )
        )
    return Table(
        columns=(
            *("architecture", "groups", "parameters", "kFLOPs (XLA)"),
            *("error", "gradient's", "trace (s)"),
        ),
        rows=tuple(rows),
        caption=(
            f"A random {100 * settings.share:g} % of each group stays: small arrays "
            "against full ones with removed entries left out of every sum, float32; "
            "the largest difference over the largest number of an array, worst of "
            f"{len(settings.seeds)} choices. Toy sizes; FLOPs are XLA's count of one "
            "call, without the bodies of some loops."
        ),
    )


def arrow(pair: list[float | None]) -> str:
    """Formats a number before and after; empty if XLA has no count."""
    before, after = pair
    if before is None or after is None:
        return ""
    return f"{before:,.0f} → {after:,.0f}"


def _agreeing(keys: tuple[str, ...], figures: dict[str, Any]) -> tuple[float, None]:
    found = figures["architectures"].values()
    return float(sum(all(one.get(k, 1) <= AGREE for k in keys) for one in found)), None


def _worst(key: str, figures: dict[str, Any]) -> tuple[float, None]:
    worst = max(one.get(key, 0.0) for one in figures["architectures"].values())
    return rounded(1e6 * worst), None


STUDY = Study(
    Settings(),
    (
        Claim(
            "half of every group removed: architectures whose results agree to 1e-5",
            "jprune",
            (">=", 30),
            functools.partial(_agreeing, ("error",)),
        ),
        Claim(
            "those whose gradients agree to 1e-5 as well",
            "jprune",
            (">=", 30),
            functools.partial(_agreeing, ("error", "gradient_error")),
        ),
        Claim(
            "worst error of results over all architectures (millionths)",
            "jprune",
            ("<=", 10),
            functools.partial(_worst, "error"),
        ),
        Claim(
            "worst error of gradients over all architectures (millionths)",
            "jprune",
            ("<=", 100),
            functools.partial(_worst, "gradient_error"),
        ),
    ),
    run,
)
