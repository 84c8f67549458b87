"""Where pictures are drawn: axes that were given, or a figure that becomes a file.

Figures are built without pyplot, which would open windows and keep every figure alive.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

OKABE_ITO = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#000000", "#F0E442"),
)
"""Okabe and Ito's colours, which people with colour blindness can distinguish."""


@contextlib.contextmanager
def axes_of(path_or_axes: Any, size: tuple[float, float], what: str) -> Iterator[Any]:
    """Yields axes to draw on, and writes the file where a path was given.

    Args:
      path_or_axes: path of a PNG file to write, or matplotlib axes to draw on.
      size: width and height of the figure of a file, inches.
      what: name of the function that draws, for the error.

    Yields:
      The axes.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{what} needs matplotlib: pip install 'jprune[plot]'."
        ) from error
    if hasattr(path_or_axes, "plot"):
        yield path_or_axes
        return
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    yield figure.subplots()
    figure.savefig(path_or_axes, format="png")


def legend_above(axes: Any, columns: int, handles: Any = None) -> None:
    """Puts the legend above the axes, where nothing is drawn.

    Args:
      axes: matplotlib axes.
      columns: entries side by side.
      handles: what the legend names; all that has a label if None.
    """
    axes.legend(
        handles=handles,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        fontsize=8,
    )
