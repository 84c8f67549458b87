"""Plots of pruned attention: remaining words, remaining patches, and scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.harness.plots import COLOURS, MARKERS

TASKS = (*COLOURS, "#E69F00", "#56B4E9")  # colours of tasks

KEPT, GONE = "#0072B2", "0.92"


def sentences(
    path: Path,
    points: Mapping[str, Sequence[tuple[float, float]]],
    rows: Sequence[str],
    curves: Mapping[str, dict[str, Any]],
    shown: Mapping[str, dict[str, Any]],
) -> None:
    """Writes a PNG: points lost by traffic, score by keep ratio, words by layer.

    Args:
      path: path of the PNG.
      points: task -> traffic reduction and points lost, for each technique.
      rows: names of the techniques.
      curves: task -> `shares` and `scores`, before and after fine-tuning.
      shown: task -> `words` and `alive`, `[layers][words]`; three are drawn.
    """
    some = dict(list(shown.items())[:3])
    figure = Figure(figsize=(11, 4.4 + 2.6 * len(some)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(4.4, 2.6 * len(some)))
    first, second = parts[0].subplots(1, 2)
    _breakdown(first, points, rows)
    _keep_ratios(second, curves)
    panels = parts[1].subplots(len(some), 1, squeeze=False)[:, 0]
    for axes, (name, one) in zip(panels, some.items(), strict=True):
        _words(axes, one["words"], np.asarray(one["alive"], bool), name)
    figure.savefig(path, format="png")


def _breakdown(
    axes: Any, points: Mapping[str, Sequence[tuple[float, float]]], rows: Sequence[str]
) -> None:
    for i, (name, found) in enumerate(points.items()):
        x, y = zip(*found, strict=True)
        colour = TASKS[i % len(TASKS)]
        axes.plot(x, y, color=colour, label=name, lw=1.4)
        for j, place in enumerate(zip(x, y, strict=True)):
            marker = (*MARKERS, "*")[j % 5]
            axes.plot(*place, color=colour, marker=marker, ms=7, ls="")
    for j, row in enumerate(rows):
        axes.plot([], [], color="0.3", marker=(*MARKERS, "*")[j % 5], ls="", label=row)
    axes.set_xscale("log")
    axes.set_xticks((1, 2, 4, 8), ("1x", "2x", "4x", "8x"))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("less DRAM traffic of attention")
    axes.set_ylabel("points lost")
    axes.axhline(0, color="0.7", lw=0.8)
    _plain(axes)


def _keep_ratios(axes: Any, curves: Mapping[str, dict[str, Any]]) -> None:
    for i, (name, curve) in enumerate(curves.items()):
        before, after = zip(*curve["scores"], strict=True)
        colour, shares = TASKS[i % len(TASKS)], [100 * s for s in curve["shares"]]
        axes.plot(shares, after, color=colour, marker="o", ms=5, label=name)
        axes.plot(shares, before, color=colour, marker="o", ms=5, mfc="w", ls=":")
    axes.plot([], [], color="0.3", marker="o", mfc="w", ls=":", label="dense training")
    axes.invert_xaxis()
    axes.set_xlabel("mean share of tokens in the layers that prune (%)")
    axes.set_ylabel("score on held-out train (%)")
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _words(axes: Any, words: Sequence[str], alive: np.ndarray, title: str) -> None:
    layers, count = alive.shape
    for layer in range(layers):
        for place, word in enumerate(words):
            stays = alive[layer, place]
            axes.add_patch(_square(place, layer, KEPT if stays else GONE))
            axes.text(
                place + 0.5,
                layer + 0.5,
                word[:9],
                ha="center",
                va="center",
                fontsize=6,
                color="w" if stays else "0.7",
            )
    axes.set_xlim(0, count)
    axes.set_ylim(layers, 0)
    axes.set_xticks([])
    axes.set_yticks(np.arange(layers) + 0.5, [f"after {i + 1}" for i in range(layers)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{title}: tokens that leave the attention of each layer", fontsize=9
    )


def _square(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, color=colour, lw=0)


def images(
    path: Path,
    shown: Sequence[dict[str, Any]],
    curve: dict[str, Any],
    *,
    title: str,
) -> None:
    """Writes a PNG: images with the remaining patches, and score by keep ratio.

    Args:
      path: path of the PNG.
      shown: for each image `pixels` `[height][width]` and `alive`
        `[layers][rows][columns]`.
      curve: `shares` and `scores`, before and after training with pruning.
      title: title of the plot.
    """
    layers = len(shown[0]["alive"])
    size = (1.5 * (layers + 1) + 4.4, max(1.6 * len(shown), 3.6))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = (1.5 * (layers + 1), 4.4)
    halves: Any = figure.subfigures(1, 2, width_ratios=ratios)
    left, right = halves
    grid = left.subplots(len(shown), layers + 1, squeeze=False)
    for line, one in zip(grid, shown, strict=True):
        pixels = np.asarray(one["pixels"])
        _image(line[0], pixels, None)
        for axes, alive in zip(line[1:], one["alive"], strict=True):
            _image(axes, pixels, np.asarray(alive, bool))
    grid[0, 0].set_title("image", fontsize=8)
    for i, axes in enumerate(grid[0, 1:]):
        axes.set_title(f"after layer {i + 1}", fontsize=8)
    _keep_ratios(right.subplots(), {"pruned training": curve})
    figure.suptitle(title)
    figure.savefig(path, format="png")


def _image(axes: Any, pixels: np.ndarray, alive: np.ndarray | None) -> None:
    axes.imshow(pixels, cmap="gray_r")
    if alive is not None:
        rows, columns = alive.shape
        across, down = pixels.shape[1] / columns, pixels.shape[0] / rows
        shade = np.zeros((*pixels.shape, 4))
        gone = np.repeat(np.repeat(~alive, int(down), 0), int(across), 1)
        shade[gone] = (0.84, 0.37, 0.0, 0.55)
        axes.imshow(shade)
    axes.set_xticks([])
    axes.set_yticks([])


def decoding(
    path: Path, panels: Mapping[str, Mapping[str, dict[str, list[float]]]]
) -> None:
    """Writes a PNG of perplexity by bytes that a token reads from the cache.

    Args:
      path: path of the PNG.
      panels: model -> technique -> `bytes` and `perplexity`, for each budget.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    found = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, curves) in zip(found, panels.items(), strict=True):
        for i, (technique, one) in enumerate(curves.items()):
            axes.plot(
                one["bytes"],
                one["perplexity"],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i // len(COLOURS) % len(MARKERS)],
                ms=5,
                label=technique,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("kilobytes read from the cache for a token")
        axes.set_ylabel("perplexity")
        axes.set_title(name)
        _plain(axes)
    figure.savefig(path, format="png")
