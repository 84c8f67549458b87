"""A picture: the operations of a workload under the roofline of a machine."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core import base, canvas
from jprune.hardware import accelerators
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._cost import RESOURCES, cost_per_operation
from jprune.hardware._summary import operation_names
from jprune.hardware._workload import Workload
from jprune.hardware.workload import multiply_adds_per_operation

# For each of RESOURCES; multipliers and DRAM, the most frequent, differ most.
_COLOURS = tuple(canvas.OKABE_ITO[i] for i in (1, 3, 2, 4, 5, 0, 6))
_LABELS = 20  # as many fit beside the axes of a file


class _Points(NamedTuple):
    """Operations in the plane of a roofline, one entry for each."""

    names: list[str]
    intensity: np.ndarray  # operations per byte
    rate: np.ndarray  # 10^12 operations per second
    seconds: np.ndarray
    bound: np.ndarray


def draw_roofline(workload: Workload, machine: Accelerator, path_or_axes: Any) -> Any:
    """Draws the rate of each operation against its arithmetic intensity.

    With N multiply-adds, B bytes of DRAM traffic and t seconds, an operation is a point
    at 2 N / B operations per byte and 2 N / t operations per second. The roof is

        min(peak of the operands' width, bandwidth * intensity),

    one line for each width in the workload. A point lies below it where something else
    limits the operation, or where its tiles do not fill the array; above it where the
    machine skips zeros, which count. The area of a point grows with its share of the
    time and its colour says what limits it. Up to 20 points, those with the largest
    shares, have their names; of more than 20 operations, those at one point share a
    name. Operations that a pipelined machine joins are one point. Those without
    multiply-adds or DRAM traffic have no place in the plane and are left out.

    Args:
      workload: the operations.
      machine: the accelerator.
      path_or_axes: path of a PNG file to write, or matplotlib axes to draw on.

    Returns:
      The axes, both logarithmic.

    Raises:
      ImportError: if matplotlib is not installed.
      PruningError: if the arguments are not a workload and an accelerator, the names do
        not fit the operations, or no operation can be drawn.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jprune.hardware import machines, networks
      >>> net = networks.attention(128, 128, 12)
      >>> axes = draw_roofline(net, machines.h100(), Figure().subplots())
      >>> axes.get_xscale(), len(axes.collections[0].get_offsets())  # two points
      ('log', 2)

    References:
      Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model
      for Multicore Architectures, 2009.
    """
    points = _points(workload, machine)
    if not points.names:
        raise base.PruningError(
            "No operation of the workload has both multiply-adds and DRAM traffic, "
            "which a roofline needs."
        )
    with canvas.axes_of(path_or_axes, (8, 4.5), "draw_roofline") as axes:
        _draw_roofs(axes, workload, machine, points.intensity)
        _draw_points(axes, points)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("arithmetic intensity (operations per byte of DRAM traffic)")
        axes.set_ylabel("rate ($10^{12}$ operations per second)")
        axes.spines[["top", "right"]].set_visible(False)
        canvas.legend_above(axes, columns=3)
        _label(axes, points)
    return axes


def _points(workload: Workload, machine: Accelerator) -> _Points:
    found = jax.device_get(cost_per_operation(workload, machine))
    names = operation_names(workload)
    macs = np.asarray(multiply_adds_per_operation(workload), np.float64)
    # A joined operation has only the time that it adds to the one before it: the two
    # are one point, limited by what limits the larger.
    joined = np.asarray(workload.joined) * float(np.asarray(machine.pipelined)) > 0
    group = np.cumsum(~joined) - 1 if len(names) and not joined[0] else None
    group = np.arange(len(names)) if group is None else group
    count = int(group.max()) + 1

    def summed(x: Any) -> np.ndarray:
        return np.bincount(group, np.asarray(x, np.float64), count)

    members = [np.flatnonzero(group == g) for g in range(count)]
    titles = [" + ".join(names[i] for i in each) for each in members]
    largest = [each[np.argmax(found.seconds[each])] for each in members]
    work, moved, seconds = summed(macs), summed(found.dram_bytes), summed(found.seconds)
    drawn = np.flatnonzero((work > 0) & (moved > 0) & (seconds > 0))
    return _Points(
        names=[titles[i] for i in drawn],
        intensity=2 * work[drawn] / moved[drawn],
        rate=2e-12 * work[drawn] / seconds[drawn],
        seconds=seconds[drawn],
        bound=np.asarray(found.bound)[[largest[i] for i in drawn]],
    )


def _draw_roofs(axes: Any, workload: Workload, machine: Any, xs: np.ndarray) -> None:
    """Draws the roof of each operand width, from left of the points to the right."""
    wide = np.maximum(workload.input_bits, workload.weight_bits + workload.lsb_bits)
    bandwidth = 1e-3 * float(np.asarray(machine.dram_bandwidth))  # TOPS per op/byte
    widths = np.unique(wide[np.asarray(workload.m) > 0]).tolist()
    peaks = [float(accelerators.peak_tops(machine, b)) for b in widths]
    left = min(*xs, *(p / bandwidth for p in peaks)) / 3
    right = max(*xs, *(p / bandwidth for p in peaks)) * 3
    for style, bits, peak in zip(
        ("-", "--", "-.", ":") * 8, widths, peaks, strict=False
    ):
        x = np.array([left, peak / bandwidth, right])
        label = f"{peak:.3g} TOPS of {bits:g} bits, {1e3 * bandwidth:.4g} GB/s"
        y = np.minimum(peak, bandwidth * x)
        axes.plot(x, y, style, color="0.35", linewidth=1.2, label=label)


def _draw_points(axes: Any, points: _Points) -> None:
    shares = points.seconds / points.seconds.sum()
    for i, resource in enumerate(RESOURCES):
        mine = points.bound == i
        if mine.any():
            axes.scatter(
                points.intensity[mine],
                points.rate[mine],
                s=20 + 200 * shares[mine],
                color=_COLOURS[i],
                alpha=0.8,
                label=f"limited by {resource}",
                zorder=3,
            )


def _label(axes: Any, points: _Points) -> None:
    """Writes names in a column beside the axes, in the order of the points."""
    place: dict[Any, list[int]] = {}
    for i in np.argsort(-points.seconds, kind="stable").tolist():
        # Of many operations, those at one point share a label.
        many = len(points.names) > _LABELS
        at = np.log10([points.intensity[i], points.rate[i]]).round(2)
        place.setdefault(tuple(at) if many else i, []).append(i)
    rows = sorted(
        list(place.values())[:_LABELS], key=lambda each: -points.rate[each[0]]
    )
    for row, each in enumerate(rows):
        i, more = each[0], len(each) - 1
        axes.annotate(
            points.names[i] + (f" and {more} more" if more else ""),
            (points.intensity[i], points.rate[i]),
            xytext=(1.03, 1 - (row + 0.5) / max(len(rows), 8)),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "0.7",
                "linewidth": 0.5,
                "relpos": (0, 0.5),
            },
        )
