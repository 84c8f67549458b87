"""Plots, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

# The palette of Okabe and Ito, which is safe for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "D", "^")


class Curve(NamedTuple):
    """Accuracies of one method.

    Attributes:
      label: label in the legend.
      sparsities: sparsity of each level, in [0, 1).
      accuracies: accuracies in percent, `[levels][seeds]`.
    """

    label: str
    sparsities: Sequence[float]
    accuracies: Sequence[Sequence[float]]


def sparsity_accuracy(
    path: Path, curves: Sequence[Curve], *, dense: Sequence[float], title: str
) -> None:
    """Writes a PNG of test accuracy by sparsity.

    The horizontal axis is logarithmic in the density, which separates 90, 95 and
    99 %. Error bars are one standard deviation over seeds; the dense reference is a
    line with a band.

    Args:
      path: path of the PNG.
      curves: one curve per method.
      dense: accuracies of the dense network in percent, one per seed.
      title: title of the plot.
    """
    figure = Figure(figsize=(7.2, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    middle, spread = float(np.mean(dense)), _spread(dense)
    axes.axhspan(middle - spread, middle + spread, color="0.5", alpha=0.2, lw=0)
    axes.axhline(middle, color="0.25", ls="--", lw=1.2, label=f"dense ({middle:.1f} %)")
    for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
        axes.errorbar(
            [1 - sparsity for sparsity in curve.sparsities],
            [np.mean(seeds) for seeds in curve.accuracies],
            [_spread(seeds) for seeds in curve.accuracies],
            label=curve.label,
            color=colour,
            marker=marker,
            ms=6,
            lw=1.8,
            capsize=3.5,
        )
    _sparsity_axis(axes, sorted({s for curve in curves for s in curve.sparsities}))
    axes.set_ylabel("test accuracy (%), mean ± std over seeds")
    axes.set_title(title)
    axes.grid(color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, format="png")


class Series(NamedTuple):
    """One quantity over several trainings.

    Attributes:
      label: label in the legend.
      values: values, `[points][seeds]`.
    """

    label: str
    values: Sequence[Sequence[float]]


def by_step(
    path: Path,
    steps: Sequence[int],
    panels: dict[str, Sequence[Series]],
    *,
    label: str,
    title: str,
) -> None:
    """Writes a PNG of quantities by step, in panels side by side.

    Steps are spaced evenly, since they grow geometrically. Error bars are one
    standard deviation over seeds.

    Args:
      path: path of the PNG.
      steps: points on the horizontal axis.
      panels: label of the vertical axis -> series of the panel.
      label: label of the horizontal axes.
      title: title of the plot.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    found = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, curves) in zip(found, panels.items(), strict=True):
        for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
            axes.errorbar(
                range(len(steps)),
                [np.mean(seeds) for seeds in curve.values],
                [_spread(seeds) for seeds in curve.values],
                label=curve.label,
                color=colour,
                marker=marker,
                ms=6,
                lw=1.8,
                capsize=3.5,
            )
        axes.set_xticks(range(len(steps)), [str(k) for k in steps])
        axes.set_xlabel(label)
        axes.set_ylabel(name)
        axes.grid(color="0.9", zorder=0)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, format="png")


def accuracy_by_cost(
    path: Path,
    panels: Sequence[str],
    points: Mapping[str, Sequence[dict[str, Any]]],
    *,
    dense: dict[str, Any],
) -> None:
    """Writes a PNG of test accuracy against two costs.

    The upper row shows gradient evaluations, the lower row seconds, both
    logarithmic, with a column per sparsity and a marker per method. Error bars are
    one standard deviation over seeds.

    Args:
      path: path of the PNG.
      panels: titles of the columns.
      points: method -> `test`, `evaluations`, `seconds` for each column.
      dense: the same for the dense network, drawn as a line.
    """
    costs = {"evaluations": "gradient evaluations", "seconds": "seconds for a network"}
    size = (3.4 * len(panels) + 2.2, 6.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(panels), sharey="col", squeeze=False)
    for row, (key, label) in zip(grid, costs.items(), strict=True):
        for i, (axes, title) in enumerate(zip(row, panels, strict=True)):
            axes.axhline(np.mean(dense["test"]), color="0.25", ls="--", lw=1.2)
            for n, (name, each) in enumerate(points.items()):
                axes.errorbar(
                    each[i][key],
                    np.mean(each[i]["test"]),
                    _spread(each[i]["test"]),
                    label=name,
                    color=COLOURS[n % len(COLOURS)],
                    marker=MARKERS[n // len(COLOURS) % len(MARKERS)],
                    ms=7,
                    ls="",
                    capsize=3.5,
                )
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())  # labels would overlap
            axes.set_xlabel(label)
            axes.set_title(title)
            axes.grid(color="0.9", zorder=0)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("test accuracy (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    place: Any = "outside right"  # missing in the type stubs
    figure.legend(handles, labels, loc=place, frameon=False)
    figure.savefig(path, format="png")


def _sparsity_axis(axes: Any, sparsities: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic in density, ascending in sparsity."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(
        [1 - sparsity for sparsity in sparsities],
        [f"{100 * sparsity:.3g} %" for sparsity in sparsities],
    )
    axes.set_xticks([], minor=True)
    axes.set_xlabel("sparsity of the pruned layers (log scale in what is left)")


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
