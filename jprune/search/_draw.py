"""A picture: designs in the plane of two costs, and their Pareto front."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jprune._core import base, canvas
from jprune.search._designs import pareto

_LINE = 0.045  # height of a line of text, as a fraction of the axes of a file


def draw_pareto(
    costs: Any,
    titles: Sequence[str],
    path_or_axes: Any,
    *,
    labels: Sequence[str] | None = None,
) -> Any:
    """Draws designs in the plane of two costs, with their Pareto front.

    Less is better in both. Positive costs that spread over more than a factor of
    100 have a logarithmic axis.

    Args:
      costs: `(designs, 2)`, such as seconds and J; designs with NaN or infinite costs
        are left out.
      titles: what the two costs are, with their units, such as "energy (J)".
      path_or_axes: path of a PNG file to write, or matplotlib axes to draw on.
      labels: a name for each design, written beside those on the front that leave room
        for it; None for none.

    Returns:
      The axes: pale points for all designs, and for the front a line of steps with a
      marker at each of its designs, by ascending first cost. Below and left of the line
      there is no design.

    Raises:
      ImportError: if matplotlib is not installed.
      PruningError: if there are not two costs, two titles and as many labels as
        designs, or no design has finite costs.

    Example:
      >>> from matplotlib.figure import Figure
      >>> costs = [[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]
      >>> axes = draw_pareto(costs, ["time (s)", "energy (J)"], Figure().subplots())
      >>> axes.get_lines()[0].get_xydata().tolist()
      [[1.0, 3.0], [2.0, 2.0]]
    """
    points = np.asarray(costs, np.float64)
    names = [None] * len(points) if labels is None else list(labels)
    if points.ndim != 2 or points.shape[1] != 2 or len(titles) != 2:
        raise base.PruningError(
            "draw_pareto takes costs of shape (designs, 2) and two titles; got shape "
            f"{points.shape} and {list(titles)}."
        )
    if len(names) != len(points):
        raise base.PruningError(
            f"draw_pareto got {len(names)} labels for {len(points)} designs."
        )
    usable = np.isfinite(points).all(axis=1)
    if not usable.any():
        raise base.PruningError(f"None of {len(points)} designs has finite costs.")
    front = np.flatnonzero(np.asarray(pareto(points)))
    front = front[np.lexsort((points[front, 1], points[front, 0]))]
    with canvas.axes_of(path_or_axes, (7, 4.5), "draw_pareto") as axes:
        axes.scatter(
            *points[usable].T, s=14, color="0.75", label="designs", linewidths=0
        )
        axes.plot(
            *points[front].T,
            "o-",
            color=canvas.OKABE_ITO[0],
            drawstyle="steps-post",
            markersize=5,
            linewidth=1.2,
            label="Pareto front",
        )
        _scale(axes, points[usable])
        axes.set_xlabel(titles[0])
        axes.set_ylabel(titles[1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            ncols=2,
            loc="lower left",
            bbox_to_anchor=(0, 1),  # above the axes, where no point is
            frameon=False,
            fontsize=8,
        )
        _label(axes, points[front], [names[i] for i in front])
    return axes


def _scale(axes: Any, points: np.ndarray) -> None:
    setters = (axes.set_xscale, axes.set_yscale)
    for setter, values in zip(setters, points.T, strict=True):
        if values.min() > 0 and values.max() > 100 * values.min():
            setter("log")


def _label(axes: Any, points: np.ndarray, names: Sequence[str | None]) -> None:
    """Writes names from the top down, and none over the one before it."""
    heights = axes.transAxes.inverted().transform(axes.transData.transform(points))
    last = np.inf
    for point, name, (_, height) in zip(points, names, heights, strict=True):
        if name and height < last - _LINE:
            place = {"xytext": (5, 5), "textcoords": "offset points"}
            axes.annotate(name, point, fontsize=8, **place)
            last = height
