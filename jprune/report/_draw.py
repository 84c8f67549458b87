"""A picture: sparsity per leaf over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jprune._core import base, canvas

_FEW = 7  # leaves in the legend, and lines that colours can distinguish


def draw_sparsity(
    history: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    path_or_axes: Any,
    *,
    steps: Any = None,
) -> Any:
    """Draws the sparsity of each leaf, and of all, over training.

    Args:
      history: results of `metrics`, a dict for each time; or one dict of arrays with
        the times along the first axis, as `lax.scan` stacks them. Other entries, such
        as a loss, are ignored.
      path_or_axes: path of a PNG file to write, or matplotlib axes to draw on.
      steps: training step of each time, ascending; 0, 1, ... if None.

    Returns:
      The axes, with a line for each leaf in the order of the params, and a wide dashed
      one for the total. With more than seven
      leaves, the colour tells the place in the params, and the legend has seven of them
      from the first to the last.

    Raises:
      ImportError: if matplotlib is not installed.
      PruningError: if there is no time, no sparsity, a time without one of the leaves,
        or another number of steps than of times.

    Example:
      >>> from matplotlib.figure import Figure
      >>> history = [{"sparsity": s, "sparsity/kernel": s} for s in (0.0, 0.5, 0.75)]
      >>> axes = draw_sparsity(history, Figure().subplots(), steps=[0, 100, 200])
      >>> axes.get_lines()[0].get_ydata().tolist()
      [0.0, 0.5, 0.75]
    """
    curves = _curves(history)
    total = curves.pop("sparsity")
    xs = np.arange(len(total)) if steps is None else np.asarray(steps)
    if xs.shape != total.shape:
        raise base.PruningError(
            f"draw_sparsity got {xs.size} steps for {total.size} times."
        )
    many = len(curves) > _FEW
    with canvas.axes_of(path_or_axes, (8, 4), "draw_sparsity") as axes:
        from matplotlib import colormaps

        colours = [c for c in canvas.OKABE_ITO if c != "#000000"]  # that of the total
        for i, (name, ys) in enumerate(curves.items()):
            shade = colormaps["cividis"](i / max(1, len(curves) - 1))
            axes.plot(
                xs,
                ys,
                drawstyle="steps-post",  # masks change at refreshes only
                color=shade if many else colours[i],
                linewidth=1 if many else 1.5,
                label=name.removeprefix("sparsity/"),
            )
        axes.plot(
            *(xs, total, "--"),
            drawstyle="steps-post",
            color="black",
            linewidth=2.5,
            label="all prunable weights",
        )
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(
            "training step" if steps is not None else "entry of the history"
        )
        axes.set_ylabel("sparsity (fraction of weights pruned)")
        axes.spines[["top", "right"]].set_visible(False)
        _legend(axes, 1 + len(curves))
    return axes


def _curves(history: Any) -> dict[str, np.ndarray]:
    """Returns name -> values over time, for the total and the leaves."""
    stacked = hasattr(history, "keys")
    first = history if stacked else (list(history) or [{}])[0]
    names = [n for n in first if n == "sparsity" or n.startswith("sparsity/")]
    if "sparsity" not in names:
        raise base.PruningError(
            "draw_sparsity needs results of jp.metrics, with an entry 'sparsity', for "
            f"at least one time; got {sorted(first)}."
        )
    if stacked:
        return {n: np.atleast_1d(np.asarray(history[n], np.float64)) for n in names}
    for time, each in enumerate(history):
        missing = [n for n in names if n not in each]
        if missing:
            raise base.PruningError(f"Time {time} of the history lacks {missing}.")
    rows = jax.device_get([[each[n] for n in names] for each in history])
    return dict(zip(names, np.asarray(rows, np.float64).T, strict=True))


def _legend(axes: Any, count: int) -> None:
    """Names the total and the leaves; of many, a few from the first to the last."""
    *leaves, total = axes.get_lines()[-count:]
    few = np.linspace(0, len(leaves) - 1, min(len(leaves), _FEW)).round().astype(int)
    axes.legend(
        handles=[total, *(leaves[i] for i in few)],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),  # beside the axes, where no line is
        frameon=False,
        fontsize=8,
    )
