"""Removes half of every group of each toy architecture and compares with float64.

Each architecture of the zoo is traced, its groups are found, and a random half of each
group is removed by `jprune.graph.shrink`, in float32. The oracle is the function at
full size in float64, where `jprune.graph.without_entries` leaves removed entries out of
every sum. Results, new state and gradients are compared. FLOPs are counted by XLA.
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
from experiments.studies.structural import _exports
from jprune import graph as jg

# JAX 0.7 has it among its experiments.
_X64: Any = getattr(
    jax if hasattr(jax, "enable_x64") else jax.experimental, "enable_x64", None
)
# A while loop has no reverse-mode gradient.
NO_GRADIENT = ("Greedy decoder in a while loop (plain)",)
# Most of the time is spent on compiling.
_QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
# Their arithmetic is in bfloat16 in part: where float32 and float64 differ in the last
# bit, a rounding to bfloat16 may differ by 0.4 %. Such a pair is rare: a number is so
# close to the middle of two with a probability of about 1e-4.
LOW_PRECISION = ("Gated attention, bfloat16 rotary tables (plain)",)


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
            build = functools.partial(zoo.ARCHITECTURES[name], jax.random.key(seed))
            each.append(compare(build, seed, settings, name not in NO_GRADIENT))
            progress.advance(task)
        worst = {key: max(one[key] for one in each) for key in ERRORS if key in each[0]}
        found[name] = {**each[0], **worst}
    figures = {"architectures": found}
    return Outcome(figures, {"main": table(figures, settings)})


ERRORS = ("error", "state_error", "gradient_error", "export_error")


def compare(
    build: Callable[[], Architecture], seed: int, settings: Settings, slope: bool
) -> dict[str, Any]:
    """Returns sizes, errors and exports of an architecture that loses entries."""
    a = build()
    begin = time.perf_counter()
    graph = traced(a)
    seconds = time.perf_counter() - begin
    keep = halves(graph, seed, settings.share)
    plan = jg.make_plan(graph, {n: np.flatnonzero(mask) for n, mask in keep.items()})
    small_fn, small_params = jg.shrink(graph, a.params, plan)
    small, small_flops = compiled(small_fn, small_params, *a.inputs)
    _, flops = compiled(a.fn, a.params, *a.inputs)
    ours = small(small_params, *a.inputs)
    exact, exact_slopes = oracle(build, keep, plan, slope)
    export = _exports.try_exports(a, small_fn, small_params)
    found = {
        "groups": len(graph.groups),
        "params": [size(a.params), size(small_params)],
        "prunable": rounded(prunable(graph)),
        "flops": [flops, small_flops],
        "error": error(ours[0], exact[0]) if a.stateful else error(ours, exact),
        "export": export.found,
        "export_messages": export.messages,
        "trace_seconds": rounded(seconds),
    }
    if a.stateful:
        found["state_error"] = error(ours[1], exact[1])
    if export.results is not None:
        found["export_error"] = error(export.results, jax.tree.leaves(ours))
    if slope:
        loss = jax.grad(objective(small_fn, a), has_aux=True, allow_int=True)
        slopes, _ = quick(loss, small_params, a.inputs)
        found["gradient_error"] = error(slopes, exact_slopes)
    return found


def traced(a: Architecture) -> jg.Graph:
    """Traces an architecture; its new state may shrink."""
    return jg.trace(
        a.fn, a.params, *a.inputs, shrinking=is_state if a.stateful else None
    )


def is_state(path: str, leaf: Any) -> bool:
    """Whether a result of a stateful function is new state."""
    del leaf
    return path.startswith("1/")


def oracle(
    build: Callable[[], Architecture],
    keep: dict[str, np.ndarray],
    plan: jg.Plan,
    slope: bool,
) -> tuple[Any, Any]:
    """Returns results and gradient in float64, at full size without some entries.

    Both are cut to the entries that are kept. The gradient is None without a slope.
    The network is built anew, since some modules remember the type of their params.
    """
    a = build()
    with _X64(True):
        wide = build()._replace(params=widened(a.params), inputs=widened(a.inputs))
        loss = objective(jg.without_entries(traced(wide), keep), wide)
        if slope:
            loss = jax.grad(loss, has_aux=True, allow_int=True)
        slopes, results = quick(loss, wide.params, wide.inputs)
        if a.stateful:
            results = results[0], jg.slice_tree(plan, results)[1]
        return results, jg.slice_tree(plan, slopes) if slope else None


def widened(arrays: Any) -> Any:
    """Returns the arrays, with numbers that are not integers in float64."""

    def one(x: jax.Array) -> jax.Array:
        return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, arrays)


def prunable(graph: jg.Graph) -> float:
    """Returns the share of parameters that belong to an entry of some group."""
    frozen = {p: np.ones([d.size for d in a], bool) for p, a in graph.axes.items()}
    for group in graph.groups.values():
        for member in group.members:
            mask = np.moveaxis(frozen[member.path], member.axis, -1)
            for indices in jg.entry_indices(group, member):
                mask &= indices < 0
    return 1 - sum(int(mask.sum()) for mask in frozen.values()) / size(graph.params)


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


def quick(fn: Callable[..., Any], *args: Any) -> Any:
    """Returns the results of a function that is compiled for a single call."""
    return jax.jit(fn).lower(*args).compile(compiler_options=_QUICK)(*args)


def objective(fn: Callable[..., Any], a: Architecture) -> Callable[..., Any]:
    """Returns a function of params and inputs: a scalar, and all results.

    The scalar depends on all results but new state, whose removed entries would
    have no counterpart.
    """

    def loss(params: Any, inputs: tuple[Any, ...]) -> tuple[jax.Array, Any]:
        results = fn(params, *inputs)
        outputs = jax.tree.leaves(results[0] if a.stateful else results)
        floating = [x for x in outputs if jnp.issubdtype(x.dtype, jnp.floating)]
        each = [jnp.sin(1.3 * x + 0.1).sum() for x in floating]
        return jnp.asarray(sum(each)), results

    return loss


def size(params: Any) -> int:
    """Returns the number of parameters, given as arrays or their shapes."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def error(ours: Any, expected: Any) -> float:
    """Returns the largest difference, relative to the largest value of its leaf.

    The scale of a leaf that is almost 0 compared with the others, such as the gradient
    of an attention key's bias, is a hundredth of the largest value of all leaves.
    Integers, such as tokens, have an error of 1 if they differ; the error of a NaN is
    infinite.
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
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf)) / scale)
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
                f"{100 * one['prunable']:.0f} %",
                arrow(flops),
                *(_power(one.get(key)) for key in ERRORS[:3]),
                one["export"][""],
                symbolic(one["export"]),
                f"{one['trace_seconds']:.2f}",
            )
        )
    return Table(
        columns=(
            *("architecture", "groups", "parameters", "prunable", "kFLOPs (XLA)"),
            *("error", "state's", "gradient's", "export", "symbolic", "trace (s)"),
        ),
        rows=tuple(rows),
        caption=(
            f"A random {100 * settings.share:g} % of each group stays: small arrays in "
            "float32 against full ones in float64, with removed entries left out of "
            "every sum; the largest difference over the largest number of an array, "
            f"worst of {len(settings.seeds)} choices; state is what the function "
            "returns beside its outputs. Prunable are parameters of some group. The "
            "small function is exported, restored from bytes, and run; symbolic are "
            "the dimensions that it then leaves open (b and c batches, t a length, e "
            "edges), and those that the dense function does not export with. "
            f"{LOW_PRECISION[0]} rounds heads to bfloat16, where float32 and float64 "
            "may take neighbouring numbers, and is not counted in the claims on "
            "errors; its float32 form is. Toy sizes; FLOPs are XLA's count of one "
            "call, without the bodies of some loops."
        ),
    )


def symbolic(found: dict[str, str]) -> str:
    """Formats the symbolic dimensions that can be exported, and those that cannot."""
    good = [names for names, how in found.items() if names and how == _exports.YES]
    bad = [f"{n}: {how}" for n, how in found.items() if n and how != _exports.YES]
    return "; ".join([*good[-1:], *bad])


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def arrow(pair: list[float | None]) -> str:
    """Formats a number before and after; empty if XLA has no count."""
    before, after = pair
    if before is None or after is None:
        return ""
    return f"{before:,.0f} → {after:,.0f}"


def _count(figures: dict[str, Any]) -> tuple[float, None]:
    return float(len(figures["architectures"])), None


def _worst(key: str, figures: dict[str, Any]) -> tuple[float, None]:
    each = figures["architectures"].items()
    worst = max(one.get(key, 0.0) for n, one in each if n not in LOW_PRECISION)
    return rounded(1e6 * worst), None


def _lost(static: bool, figures: dict[str, Any]) -> tuple[float, None]:
    """Counts architectures of which only the dense function exports."""
    found = [one["export"].items() for one in figures["architectures"].values()]
    lost = [
        any(how == _exports.NO for names, how in one if static == (names == ""))
        for one in found
    ]
    return float(sum(lost)), None


STUDY = Study(
    Settings(),
    (
        Claim(
            "architectures that lose half of every group", "jprune", (">=", 60), _count
        ),
        Claim(
            "worst error of results against float64 (millionths)",
            "jprune",
            ("<=", 10),
            functools.partial(_worst, "error"),
        ),
        Claim(
            "worst error of new state against float64 (millionths)",
            "jprune",
            ("<=", 10),
            functools.partial(_worst, "state_error"),
        ),
        Claim(
            "worst error of gradients against float64 (millionths)",
            "jprune",
            ("<=", 100),
            functools.partial(_worst, "gradient_error"),
        ),
        Claim(
            "architectures that export with static sizes, but not when shrunk",
            "jprune",
            ("<=", 0),
            functools.partial(_lost, True),
        ),
        Claim(
            "architectures that export with symbolic sizes, but not when shrunk",
            "jprune",
            ("<=", 0),
            functools.partial(_lost, False),
        ),
        Claim(
            "worst error of exported functions, restored from bytes (millionths)",
            "jprune",
            ("<=", 10),
            functools.partial(_worst, "export_error"),
        ),
    ),
    run,
)
