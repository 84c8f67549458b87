"""Plot of the selection benchmark."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.harness.plots import COLOURS, MARKERS


def draw(path: Path, *, figures: dict[str, Any], shapes: dict[str, Any]) -> None:
    """Writes a PNG: time against size, and against the number of devices.

    Args:
      path: path of the PNG.
      figures: figures of the benchmark.
      shapes: `(leaves, side)` by name of the size.
    """
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    sizes = {name: count * side**2 for name, (count, side) in shapes.items()}
    passes = figures["pass_seconds"]["f32"]
    one = {name: float(np.mean(passes[name])) for name in passes}
    left.plot(
        [sizes[s] for s in one], list(one.values()), "--", c="0.4", label="one pass"
    )
    forms = figures["passes"]["f32"]
    styles = [(c, m) for m in MARKERS for c in COLOURS]
    for (name, by_size), (colour, marker) in zip(forms.items(), styles, strict=False):
        x = [sizes[s] for s in by_size]
        y = [one[s] * float(np.mean(ratios)) for s, ratios in by_size.items()]
        left.plot(x, y, color=colour, marker=marker, label=name)
    left.set(xscale="log", yscale="log", xlabel="weights", ylabel="seconds")
    left.set_title("An exact mask, float32")
    left.legend(fontsize=7)
    seconds = figures["on_devices"]["cpu_seconds"]
    right.plot([int(n) for n in seconds], list(seconds.values()), "o-", c=COLOURS[0])
    right.set(xlabel="CPU devices that share the cores", ylabel="CPU-seconds", ylim=0)
    right.set_xticks([int(n) for n in seconds])
    right.set_title("17 M weights, sharded")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
