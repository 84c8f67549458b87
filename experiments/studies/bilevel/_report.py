"""Tables, plot and claims of `bip_vs_imp`."""

import functools
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import plots
from experiments.harness.catalogue import Claim, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded

PAPER = "Advancing Model Pruning via Bi-level Optimization, 2022, arXiv:2210.04092"
HIGH = (0.95, 0.98, 0.99)
FORMS = ("BiP", "BiP, implicit term", "BiP as in its code", "BiP, climbing")


def table(figures: dict[str, Any], settings: Any) -> Table:
    """Returns the test accuracies by method and sparsity, with their cost."""
    shown = str(HIGH[1])
    rows = []
    for name, found in figures["methods"].items():
        cells = [
            plus_minus(found[str(s)]["test"]) if str(s) in found else ""
            for s in settings.sparsities
        ]
        at = found.get(shown) or found["0.0"]
        if name == "dense":
            cells = [plus_minus(at["test"])] + [""] * (len(cells) - 1)
        cost = f"{at['evaluations'] / settings.steps:.1f}"
        rows.append((name, *cells, cost, f"{at['seconds']:.1f}"))
    return Table(
        columns=(
            "test accuracy (%) at",
            *(f"{100 * s:g} %" for s in settings.sparsities),
            f"cost at {100 * HIGH[1]:g} %",
            "s",
        ),
        rows=tuple(rows),
        caption=(
            f"{settings.dataset}, MLP {'-'.join(map(str, settings.hidden))}: "
            f"{figures['test_images']:,} test images, mean ± standard deviation over "
            f"{len(settings.seeds)} seeds; dense stands in the first column. Cost: "
            f"gradient evaluations, in dense trainings of {settings.steps} steps at "
            f"batch {settings.batch_size}. Seconds for one network, without "
            "compilation. Each method had "
            f"{len(settings.rates) * len(settings.decays)} trials at "
            f"{100 * settings.trial_sparsity:g} % on the validation split. BiP goes to "
            "the target at once, or climbs to it in the first half of its steps."
        ),
    )


def budgets(figures: dict[str, Any]) -> Table:
    """Returns BiP minus IMP at the three budgets, paired by seed."""
    form = best_form(figures)
    pairs = (
        ("best short BiP - IMP at that budget", form, "IMP, short"),
        ("best short BiP - full IMP", form, "IMP"),
        ("plain short BiP - full IMP", "BiP", "IMP"),
        (
            "full climbing BiP - full IMP",
            "BiP, climbing, full",
            "IMP",
        ),
        ("BiP with implicit term - without", "BiP, implicit term", "BiP"),
        ("BiP - BiP as in its code", "BiP", "BiP as in its code"),
        ("BiP - climbing BiP", "BiP", "BiP, climbing"),
    )
    rows = [
        (label, *(plus_minus(gaps(figures, ours, theirs, s)) for s in HIGH))
        for label, ours, theirs in pairs
    ]
    times = [seconds_ratio(figures, s) for s in HIGH]
    rows.append(("best short BiP's time over full IMP's", *(f"{t:.2f}" for t in times)))
    return Table(
        columns=("points of test accuracy at", *(f"{100 * s:g} %" for s in HIGH)),
        rows=tuple(rows),
        caption=(
            "Paired by seed, mean ± standard deviation. The best short form on the "
            f'validation split is "{form}". Times of one network of that form, the '
            "dense training of BiP included, taken in turns."
        ),
    )


def best_form(figures: dict[str, Any]) -> str:
    """Returns the short form of BiP that is best on the validation split."""

    def validation(name: str) -> float:
        return max(t["validation"] for t in figures["search"][name]["trials"])

    return max(FORMS, key=validation)


def gaps(figures: dict[str, Any], ours: str, theirs: str, s: float) -> list[float]:
    """Returns the differences of test accuracy, paired by seed."""
    a, b = (figures["methods"][name][str(s)]["test"] for name in (ours, theirs))
    return [rounded(x - y) for x, y in zip(a, b, strict=True)]


def seconds_ratio(figures: dict[str, Any], s: float) -> float:
    """Returns the time of short BiP over that of full IMP, measured in turns."""
    clock = figures["clock"]
    ours, theirs = (clock[name][str(s)] for name in (best_form(figures), "IMP"))
    return statistics.median(ours) / statistics.median(theirs)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Plots accuracy against both costs, by sparsity."""
    found = figures["methods"]
    panels = [f"{100 * s:g} % sparse" for s in HIGH]
    points: dict[str, list[dict[str, Any]]] = {
        name: [rows[str(s)] for s in HIGH]
        for name, rows in found.items()
        if all(str(s) in rows for s in HIGH)
    }
    plots.accuracy_by_cost(path, panels, points, dense=found["dense"]["0.0"])


def claims(title: str) -> tuple[Claim, ...]:
    """Returns the claims for a data set."""
    made = []
    for s in HIGH:
        at = f"{title}, {100 * s:g} %"
        made.append(
            Claim(
                f"{at}: best form of BiP minus IMP at its budget (points)",
                PAPER,
                (">", 0.0),
                functools.partial(gap, "IMP, short", s),
            )
        )
        if s < HIGH[-1]:
            made.append(
                Claim(
                    f"{at}: best form of BiP minus full IMP (points)",
                    PAPER,
                    (">=", -1.0),
                    functools.partial(gap, "IMP", s),
                )
            )
            made.append(
                Claim(
                    f"{at}: wall-clock of the best form of BiP over full IMP's",
                    PAPER,
                    ("<=", 0.2),
                    functools.partial(clock_share, s),
                )
            )
        made.append(
            Claim(
                f"{at}: full climbing BiP minus full IMP, in standard errors",
                PAPER,
                (">=", -1.0),
                functools.partial(in_standard_errors, s),
            )
        )
    return tuple(made)


def gap(theirs: str, s: float, figures: dict[str, Any]):
    """Measures the best short BiP minus another method in points, paired by seed."""
    return mean_and_spread(gaps(figures, best_form(figures), theirs, s))


def clock_share(s: float, figures: dict[str, Any]) -> tuple[float, None]:
    """Measures the wall-clock time of short BiP over that of full IMP."""
    return rounded(seconds_ratio(figures, s)), None


def in_standard_errors(s: float, figures: dict[str, Any]) -> tuple[float, None]:
    """Measures BiP at IMP's budget minus IMP, over the standard error of the mean."""
    from scipy import stats

    each = np.asarray(gaps(figures, "BiP, climbing, full", "IMP", s))
    error = float(stats.sem(each)) if each.size > 1 else 1.0
    return rounded(each.mean() / max(error, 1e-9)), None
