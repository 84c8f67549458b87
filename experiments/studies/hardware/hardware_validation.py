"""Predictions of the hardware model against published and peer-computed figures."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import rounded
from experiments.studies.hardware import _rows as hardware_rows
from experiments.studies.hardware._row import Row, median_error

# Rows by mark and by prefixes of their quantity.
GROUPS = {
    "scale_sim": ("exact", "cycles of"),
    "traces": ("", "GPT-2 small: |GPT-2 medium: fewer|GPT-2 medium: DRAM"),
    "selections": ("", "cycles to select"),
    "weights": ("", "GPT-2 medium: 8-bit weights|GPT-2 medium: 12-bit weights"),
    "peaks": ("exact", "peak|ridge"),
}


class Settings(NamedTuple):
    """Settings; nothing is random and nothing is trained.

    Attributes:
      seeds: unused.
      steps: unused.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int = 0


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Computes all rows."""
    del settings, data_dir
    task = progress.add_task("predict", total=1)
    found = hardware_rows.rows()
    progress.advance(task)
    counted = [r for r in found if r.mark in ("", "exact")]
    worst = {
        name: 100 * max(abs(r.error) for r in counted if _in(r, *group))
        for name, group in GROUPS.items()
    }
    figures = {
        "rows": [
            {**r._asdict(), "error_percent": rounded(100 * r.error)} for r in found
        ],
        "counted": len(counted),
        "machines": len({r.machine.split(":")[0] for r in counted}),
        "median": rounded(median_error(found, ("", "exact"))),
        "median_not_exact": rounded(median_error(found, ("",))),
        "worst": {name: rounded(value) for name, value in worst.items()},
    }
    return Outcome(figures, {"main": table(found, figures)}, draw)


def _in(row: Row, mark: str, beginnings: str) -> bool:
    return row.mark == mark and row.quantity.startswith(tuple(beginnings.split("|")))


def table(found: list[Row], figures: dict[str, Any]) -> Table:
    """Returns the table with a row per figure."""
    return Table(
        columns=("machine", "quantity", "model", "reference", "error (%)", "source"),
        rows=tuple(
            (
                r.machine,
                r.quantity + (f" ({r.mark})" if r.mark == "fitted" else ""),
                f"{r.predicted:,.6g}",
                f"{r.reference:,.6g}",
                f"{100 * r.error:+.1f}",
                r.source,
            )
            for r in found
        ),
        caption=(
            f"{figures['counted']} figures count, of which the median error is "
            f"{figures['median']:.2f} %; without closed forms, peaks and ridges it is "
            f"{figures['median_not_exact']:.1f} %. Fitted rows do not count. Sources: "
            "[V] read in a stored document, [D] derived from one, [M] measured, [R] "
            "recalled. Eyeriss: power is that of assumed energies. TPU v1: layers of "
            "equal size, as their shapes are not published; that CNN1 waits for its "
            "narrow layers is not in the model. Llama 2: products only, of an "
            "ideal server; those of NeMo serve through a framework."
        ),
    )


def draw(path: Path) -> None:
    """Plots the rooflines of all machines, with the networks of the repository."""
    import matplotlib.pyplot as plt

    from jprune import hardware as hw
    from jprune.hardware import machines, networks, workload

    nets = {
        "BERT-base, 128 tokens": networks.bert_base(128),
        "GPT-2 medium, a token": networks.gpt2_medium(1, 1024),
        "ResNet-50": networks.resnet50(),
        "ViT-B": networks.vit_base(),
    }
    names = ("spatten", "eyeriss", "tpu_v1", "tpu_v5e", "a100", "h100", "xeon")
    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
    intensity = np.logspace(-1, 4.5, 200)
    for i, name in enumerate(names):
        machine = getattr(machines, name)()
        peak = float(hw.accelerators.peak_tops(machine, 8))
        roof = np.minimum(peak, intensity * float(machine.dram_bandwidth) * 1e-3)
        axes.loglog(intensity, roof, color=f"C{i}", label=name.replace("_", " "))
        for net, marker in zip(nets.values(), "osv^", strict=True):
            cost = hw.cost(net, machine)
            done = 2 * float(workload.multiply_adds(net))
            point = done / float(cost.dram_bytes), 1e-12 * done / float(cost.seconds)
            axes.loglog(*point, marker, color=f"C{i}", markersize=5)
    for net, marker in zip(nets, "osv^", strict=True):
        axes.plot([], [], marker, color="grey", label=net)
    axes.set(xlabel="operations for a byte of DRAM", ylabel="TOPS, 8 bits")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _measured(name: str, figures: dict[str, Any]) -> tuple[float, None]:
    return float(figures[name]), None


def _worst(name: str, figures: dict[str, Any]) -> tuple[float, None]:
    return float(figures["worst"][name]), None


def _claim(text: str, sign: str, bound: float, measure: Any) -> Claim:
    return Claim(f"hardware model: {text}", "jprune", (sign, bound), measure)


STUDY = Study(
    Settings(),
    (
        _claim("figures", ">=", 25, functools.partial(_measured, "counted")),
        _claim("machines", ">=", 6, functools.partial(_measured, "machines")),
        _claim("median error (%)", "<=", 10, functools.partial(_measured, "median")),
        *(
            _claim(f"{text}, largest error (%)", "<=", most, measure)
            for text, most, measure in (
                ("SCALE-Sim's cycles", 0, functools.partial(_worst, "scale_sim")),
                ("GPT-2 traces", 1, functools.partial(_worst, "traces")),
                ("selections", 5, functools.partial(_worst, "selections")),
                ("streamed weights", 2, functools.partial(_worst, "weights")),
                ("peaks and ridges", 0.5, functools.partial(_worst, "peaks")),
            )
        ),
    ),
    run,
)
