"""A picture: how many tokens each layer keeps."""

from typing import Any

from jprune._core import canvas
from jprune.attention._schedules import Schedule


def draw_tokens(plan: Schedule, path_or_axes: Any) -> Any:
    """Draws the tokens that each layer of a schedule keeps.

    Args:
      plan: the schedule.
      path_or_axes: path of a PNG file to write, or matplotlib axes to draw on.

    Returns:
      The axes, with a bar for each layer: solid for the tokens that leave its
      attention, pale for those of the input that it or an earlier layer has pruned. A
      dot is the number of rows of V that each query multiplies by, where it is less
      than that of the keys.

    Raises:
      ImportError: if matplotlib is not installed.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jprune.attention import schedule
      >>> plan = schedule(128, tokens=(128, 96, 64), heads=(12, 12, 10))
      >>> pale, kept = draw_tokens(plan, Figure().subplots()).containers
      >>> [int(bar.get_height()) for bar in kept]
      [128, 96, 64]
    """
    layers, colour = range(len(plan.tokens)), canvas.OKABE_ITO[0]
    size = (max(4.0, 1.5 + 0.35 * len(layers)), 3.5)
    with canvas.axes_of(path_or_axes, size, "draw_tokens") as axes:
        full = [plan.length] * len(layers)
        axes.bar(layers, full, color=colour, alpha=0.25, width=0.75, label="pruned")
        axes.bar(layers, plan.tokens, color=colour, width=0.75, label="kept")
        for layer, count in zip(layers, plan.tokens, strict=True):
            axes.text(layer, count, f"{count}", ha="center", va="bottom", fontsize=8)
        keys = zip(layers, plan.values, plan.entering, strict=True)
        fewer = [(layer, v) for layer, v, n in keys if v < n]
        if fewer:
            label = "rows of V for each query"
            axes.plot(*zip(*fewer, strict=True), "o", color="black", ms=4, label=label)
        axes.set_xticks(layers, [str(i) for i in layers])
        axes.margins(x=0.02)
        axes.set_xlabel("layer")
        axes.set_ylabel("tokens")
        axes.spines[["top", "right"]].set_visible(False)
        canvas.legend_above(axes, columns=3)
    return axes
