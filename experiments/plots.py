"""Plots for people, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "D", "^")


class Curve(NamedTuple):
    """Accuracies of one method.

    Attributes:
      label: For the legend.
      sparsities: In [0, 1), one per level.
      accuracies: Percent, `[levels][seeds]`.
    """

    label: str
    sparsities: Sequence[float]
    accuracies: Sequence[Sequence[float]]


def sparsity_accuracy(
    path: Path, curves: Sequence[Curve], *, dense: Sequence[float], title: str
) -> None:
    """Writes a PNG of test accuracy by sparsity.

    The horizontal axis is logarithmic in the density, so that 90, 95 and 99 % are
    apart as far as the weights that they leave. Bars are one standard deviation
    over seeds; the dense reference is a line with a band.

    Args:
      path: Where to write.
      curves: The methods.
      dense: Accuracies of the dense network, percent, one per seed.
      title: Above the axes.
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


def _sparsity_axis(axes: Any, sparsities: Sequence[float]) -> None:
    """Makes the horizontal axis log in density, ascending in sparsity."""
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
