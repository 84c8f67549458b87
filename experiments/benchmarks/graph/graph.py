"""Time to find a network's groups, and to remove half of their entries.

Compared with Torch-Pruning, on the same machine and in turns, if it is installed: in
this interpreter, or in the one that JPRUNE_TORCH_PRUNING names (`pip install
torch-pruning torchvision timm` in a separate environment). Otherwise its rows and
claims are omitted.
"""

import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from experiments import ExperimentError
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded

PEER = "DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900 (its code)"
VARIABLE = "JPRUNE_TORCH_PRUNING"
OTHER_PEER = "ViT-B, fused attention"
PARTS = {
    "trace": "JAX's own tracing, and Flax's where there is a module",
    "analysis": "analysis: dims and groups",
    "scores": "scores of all groups",
    "selection": "global selection",
    "slices": "the smaller arrays",
    "whole": "whole",
}
COLLECTION = "of which full collections of garbage"
PEER_PARTS = {
    "build": "Torch-Pruning: graph",
    "groups": "Torch-Pruning: all groups",
    "init": "Torch-Pruning: pruner (graph and groups)",
    "step": "Torch-Pruning: step",
    "whole": "Torch-Pruning: whole, pruner and step",
}


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: turns, in each of which every case runs in its own process.
      steps: repetitions in a process, with different weights. The first, which includes
        compilation and initialization, is reported separately from the median of the
        others.
      networks: networks to shrink by half.
      side: side of the image that they are traced for.
      growing: network with growing depth.
      depths: its numbers of layers.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 5
    networks: tuple[str, ...] = (
        "ResNet-50",
        "ResNet-50, blocks under nn.jit",
        "ResNet-50, no module",
        "ViT-B",
    )
    side: int = 64
    growing: str = "ViT-B"
    depths: tuple[int, ...] = (12, 24, 48, 96)


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times networks, peers and depths in turns."""
    del data_dir
    peer = peer_python()
    turns, networks = len(settings.seeds), len(settings.networks)
    total = turns * (networks + len(settings.depths))
    total += turns * (networks + 1) if peer else 0
    task = progress.add_task("time", total=total)
    ours: dict[str, dict[str, list[float]]] = {}
    theirs: dict[str, dict[str, list[float]]] = {}
    growth: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, Any] = {}
    numbers = (settings.side, settings.depths[0], settings.steps)
    for _ in settings.seeds:
        for name in settings.networks:
            facts[name] = note(ours, name, measured(name, *numbers, "whole"))
            progress.advance(task)
            if peer:
                network = name.split(",")[0]  # one form of it
                found = measured_peer(peer, network, settings)
                facts[f"Torch-Pruning, {name}"] = note(theirs, name, found)
                progress.advance(task)
        if peer:
            found = measured_peer(peer, OTHER_PEER, settings)
            facts[f"Torch-Pruning, {OTHER_PEER}"] = note(theirs, OTHER_PEER, found)
            progress.advance(task)
        for depth in settings.depths:
            given = (settings.growing, settings.side, depth, settings.steps, "graph")
            facts[f"{depth} layers"] = note(growth, str(depth), measured(*given))
            progress.advance(task)
    figures = {
        "milliseconds": ours,
        "peer_milliseconds": theirs,
        "growth_milliseconds": growth,
        "facts": facts,
    }
    tables = {"main": table(figures, settings), "growth": growth_table(figures)}
    return Outcome(figures, tables)


def note(
    rows: dict[str, dict[str, list[float]]], name: str, found: dict[str, Any]
) -> dict[str, Any]:
    """Appends the times of a process to those of a case, and returns the rest."""
    times = {k: v for k, v in found.items() if isinstance(v, list) and k != "params"}
    if "step" in times:
        times["whole"] = [
            a + b for a, b in zip(times["init"], times["step"], strict=True)
        ]
    row = rows.setdefault(name, {})
    for part, seconds in times.items():
        later = statistics.median(seconds[1:] or seconds)
        row.setdefault(part, []).append(rounded(1e3 * later))
        row.setdefault(f"first {part}", []).append(rounded(1e3 * seconds[0]))
    return {k: v for k, v in found.items() if k not in times}


def measured(name: str, side: int, depth: int, steps: int, what: str) -> dict[str, Any]:
    """Returns the output of `_timed` in a new process."""
    module = "experiments.benchmarks.graph._timed"
    numbers = map(str, (side, depth, steps))
    return printed([sys.executable, "-m", module, name, *numbers, what])


def measured_peer(python: str, name: str, settings: Settings) -> dict[str, Any]:
    """Returns the output of `_torch_pruning` in a new process.

    Raises:
      ExperimentError: the interpreter cannot run it.
    """
    script = Path(__file__).with_name("_torch_pruning.py")
    numbers = map(str, (settings.side, settings.steps))
    try:
        return printed([python, str(script), name, *numbers])
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise ExperimentError(
            f"{python} cannot run Torch-Pruning ({VARIABLE}): "
            f"{said.strip().splitlines()[-1]}"
        ) from error


def printed(command: list[str]) -> dict[str, Any]:
    """Returns the JSON in the last line that a command prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peer_python() -> str | None:
    """Returns the interpreter with Torch-Pruning, or None."""
    given = os.environ.get(VARIABLE)
    here = importlib.util.find_spec("torch_pruning") is not None
    return given or (sys.executable if here else None)


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of the milliseconds of every part."""
    ours, theirs = figures["milliseconds"], figures["peer_milliseconds"]
    facts = figures["facts"]

    def row(label: str, times: dict[str, Any], part: str) -> tuple[str, ...]:
        cells = [
            plus_minus(times[n][part]) if n in times else "" for n in settings.networks
        ]
        return label, *cells

    rows = [row(label, ours, part) for part, label in PARTS.items()]
    rows.append(row("whole, first in a process", ours, "first whole"))
    rows.append(row(COLLECTION, ours, "first collection"))
    caption = "Torch-Pruning was not installed."
    if theirs:
        rows += [row(label, theirs, part) for part, label in PEER_PARTS.items()]
        rows.append(
            row("Torch-Pruning: whole, first in a process", theirs, "first whole")
        )
        rows.append(row(f"Torch-Pruning: {COLLECTION}", theirs, "first collection"))
        fused = plus_minus(theirs[OTHER_PEER]["whole"])
        versions = facts[f"Torch-Pruning, {OTHER_PEER}"]["versions"]
        counts = [facts[f"Torch-Pruning, {n}"]["count"] for n in settings.networks]
        caption = (
            f"Torch-Pruning {versions['torch_pruning']} (torch {versions['torch']}, "
            f"one thread) sees {', '.join(map(str, counts))} groups, and in "
            f"torchvision's ViT-B, whose fused attention it prunes with the stream, "
            f"{facts[f'Torch-Pruning, {OTHER_PEER}']['count']}, which take it {fused} "
            "ms whole."
        )
    counts = [facts[n]["groups"] for n in settings.networks]
    return Table(
        columns=("CPU time (ms)", *settings.networks),
        rows=tuple(rows),
        caption=(
            f"From a function and random weights to arrays without half of all "
            f"entries, by L2 norm and one ranking, for an image of {settings.side}^2; "
            f"{', '.join(map(str, counts))} groups. Each repetition has other "
            f"weights; medians of {max(settings.steps - 1, 1)} after the first, mean ± "
            f"std over {len(settings.seeds)} processes, in turns. {caption}"
        ),
    )


def growth_table(figures: dict[str, Any]) -> Table:
    """Returns the table of the milliseconds for growing depths."""
    rows = [
        (
            depth,
            str(figures["facts"][f"{depth} layers"]["equations"]),
            str(figures["facts"][f"{depth} layers"]["groups"]),
            plus_minus(row["trace"]),
            plus_minus(row["analysis"]),
        )
        for depth, row in figures["growth_milliseconds"].items()
    ]
    return Table(
        columns=("layers", "equations", "groups", "tracing (ms)", "analysis (ms)"),
        rows=tuple(rows),
        caption="A ViT of growing depth, shapes only; CPU time, garbage not collected.",
    )


def _analysis(name: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    return mean_and_spread(figures["milliseconds"][name]["analysis"])


def _growth(figures: dict[str, Any]) -> tuple[float, float | None]:
    rows = list(figures["growth_milliseconds"].values())
    pairs = zip(rows[-1]["analysis"], rows[0]["analysis"], strict=True)
    return mean_and_spread([a / b for a, b in pairs])


def _over_peer(
    name: str, figures: dict[str, Any], part: str
) -> tuple[float, float | None]:
    ours = figures["milliseconds"][name][part]
    theirs = figures["peer_milliseconds"][name][part]
    return mean_and_spread([a / b for a, b in zip(ours, theirs, strict=True)])


def claims(settings: Settings, peer: bool) -> tuple[Claim, ...]:
    """Returns the claims; those on Torch-Pruning only if it is installed."""
    found = [
        Claim(
            f"{name}: analysis of the traced function (ms of CPU time)",
            "jprune",
            ("<=", 50),
            functools.partial(_analysis, name),
        )
        for name in settings.networks
    ]
    first, last = settings.depths[0], settings.depths[-1]
    found.append(
        Claim(
            f"analysis of {last} layers over that of {first} ({last / first:g} would "
            "be linear)",
            "jprune",
            ("<=", last / first),
            _growth,
        )
    )
    bounds = dict.fromkeys(settings.networks, 0.5) | {"ViT-B": 0.25}
    forms = {"whole": "", "first whole": ", first in a process"}
    for part, words in forms.items() if peer else ():
        found += [
            Claim(
                f"{name}: from function to half the entries, tracing included, over "
                f"Torch-Pruning's pruner and step{words} (CPU time)",
                PEER,
                ("<=", bounds[name]),
                functools.partial(_over_peer, name, part=part),
            )
            for name in settings.networks
        ]
    return tuple(found)


STUDY = Study(Settings(), claims(Settings(), peer_python() is not None), run)
