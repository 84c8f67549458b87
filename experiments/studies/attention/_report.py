"""Table, claims and pictures of the accuracy study."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import ExperimentError
from experiments.harness.catalogue import Claim, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import finetune as ft
from experiments.studies.attention import _levels as sl
from experiments.studies.attention import _plots as plots
from experiments.studies.attention._tasks import Problem

FINAL = sl.ROWS[-1]
READABLE = 28  # maximum number of words of a sentence in the picture
SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)  # keep ratios of the curve


def gathered(each: list[dict[str, Any]], settings: Any) -> dict[str, Any]:
    """Returns the figures of a task: lists over seeds, and the pictures of one seed."""
    rows = {
        name: {
            key: [rounded(found["rows"][name][key]) for found in each]
            for key in each[0]["rows"][name]
        }
        for name in sl.ROWS
    }
    dense = rows["dense"]["score"]
    for row in rows.values():
        pairs = zip(dense, row["score"], strict=True)
        row["lost"] = [rounded(before - after) for before, after in pairs]
    met = (
        np.mean(rows[FINAL]["lost"]) <= settings.lost
        and np.mean(rows[FINAL]["dram"]) >= settings.dram
        and np.mean(rows[FINAL]["attention"]) >= settings.attention
    )
    drawn = [found for found in each if "curve" in found]
    if not drawn:
        raise ExperimentError(
            "JPRUNE_RESUME_DIR has no picture for these seeds, since only the first "
            "seed of a run draws one: include that seed, or use another folder"
        )
    shown = {k: drawn[0][k] for k in ("curve", "picture", "unit")}
    return {
        "rows": rows,
        "met": bool(met),
        "levels": [found["level"] for found in each],
        "tried": [found["tried"] for found in each],
        "held": [found["held"] for found in each],
        "devices": sorted({found["device"] for found in each}),
        **shown,
    }


def table(figures: dict[str, Any], settings: Any) -> Table:
    """Returns the table with a row per task and technique."""
    rows = []
    for name, task in figures["tasks"].items():
        for i, (technique, row) in enumerate(task["rows"].items()):
            first = f"{name}, {task['unit']}" if i == 0 else ""
            asked = technique == FINAL
            rows.append(
                (
                    first,
                    technique,
                    plus_minus(row["score"]),
                    "" if i == 0 else plus_minus(row["lost"]),
                    *(f"{np.mean(row[key]):.2f}x" for key in _SAVED),
                    f"{np.mean(row['rows']):.1f}" if asked else "",
                    f"{np.mean(row['keys']):.1f}" if asked else "",
                )
            )
    return Table(columns=COLUMNS, rows=tuple(rows), caption=caption(figures, settings))


_SAVED = ("dram", "dram16", "attention", "layers")
COLUMNS = (
    "task",
    "network",
    "dev (%)",
    "lost (pts)",
    "DRAM",
    "of 16 bits",
    "Q.K and P.V",
    "all layers",
    "rows refetched (%)",
    "keys refetched (%)",
)
DISTILLED = ", distilled"  # suffix of a name
TAUGHT = (
    " Distilled: the pruned network goes on from the dense one for as many steps again "
    "and learns its outputs and tokens, on sentences with exchanged words, too "
    "(TinyBERT, 2019, arXiv:1909.10351)."
)


def named(task: str, distilled: bool) -> str:
    """Returns the name of the rows of a task."""
    return f"{task}{DISTILLED}" if distilled else task


def caption(figures: dict[str, Any], settings: Any) -> str:
    """Returns the caption of the table."""
    times = ", ".join(
        f"{name} {task['seconds']['dense']:.1f} and {task['seconds']['tokens']:.1f}"
        for name, task in figures["tasks"].items()
    )
    taught = any(name.endswith(DISTILLED) for name in figures["tasks"])
    devices = sorted({x for t in figures["tasks"].values() for x in t["devices"]})
    return (
        f"Trained on: {', '.join(devices)}. Dev, mean ± standard deviation over "
        f"{len(settings.seeds)} seeds. Networks have {sum(settings.steps)} steps of "
        f"{settings.batch_size}, the pruned one the last {settings.steps[1]} of them "
        "with all techniques on; rows between switch some off without more training."
        f"{TAUGHT if taught else ''} Schedules are chosen on a part of train. DRAM: "
        "rows of Q, K and V that attention reads, against float32. A row of "
        "probabilities that is not sure of itself asks for the keys' lower bits, which "
        "are then read for all queries of that head. Milliseconds for a sentence, "
        f"dense and with fewer tokens, where this table was made: {times}."
    )


def final(key: str) -> Any:
    """Returns a measure: the mean of a figure over tasks, with all techniques."""

    def measure(figures: dict[str, Any]) -> tuple[float, float | None]:
        tasks = figures["tasks"].values()
        return mean_and_spread([np.mean(t["rows"][FINAL][key]) for t in tasks])

    return measure


def met(figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the number of tasks that meet all three targets, distilled or not."""
    return float(len({t["task"] for t in figures["tasks"].values() if t["met"]})), None


CLAIMS = (
    Claim(
        "GLUE tasks on which MiniLM loses at most 0.5 points while attention reads 8 "
        "and multiplies 1.8 times less",
        sl.PAPER,
        (">=", 3),
        met,
    ),
    Claim(
        "GLUE, MiniLM, mean over tasks: times less read by attention, from float32",
        sl.PAPER,
        (">=", 8),
        final("dram"),
        10.0,
    ),
    Claim(
        "GLUE, MiniLM, mean over tasks: times fewer multiply-adds of attention",
        sl.PAPER,
        (">=", 1.8),
        final("attention"),
        2.1,
    ),
)


def claims(what: str) -> tuple[Claim, ...]:
    """Returns the claims for one task."""
    return (
        Claim(
            f"{what}, all of SpAtten's techniques: points lost",
            sl.PAPER,
            ("<=", 0.5),
            final("lost"),
        ),
        Claim(
            f"{what}: times less read by attention, from float32",
            sl.PAPER,
            (">=", 8),
            final("dram"),
            10.0,
        ),
    )


def drawings(
    problem: Problem,
    judge: Any,
    networks: tuple[Any, Any],
    kept: ft.Kept,
    sizes: sl.Sizes,
) -> dict[str, Any]:
    """Returns the data of a task's plots: the curve, and a sentence."""
    return {
        "curve": curve(problem, judge, networks, sizes),
        "picture": picture(problem, judge, networks[1], kept),
    }


def curve(
    problem: Problem, judge: Any, networks: tuple[Any, Any], sizes: sl.Sizes
) -> dict[str, Any]:
    """Returns the held-out score by the mean share of tokens, with token pruning only.

    Args:
      problem: the task.
      judge: evaluation, from `finetune.make_judge`.
      networks: parameters of the dense network, and of the pruned one.
      sizes: sizes of both.
    """
    held, scores = problem.choose, []
    for share in SHARES:
        level = sl.Level(share, min(1.0, 1.5 * share))
        kept = sl.kept_of(level, sizes, quantized=False)
        found = (judge(params, held, kept).logits for params in networks)
        scores.append([rounded(problem.score(x, held.labels)) for x in found])
    return {"shares": list(SHARES), "scores": scores}


def picture(problem: Problem, judge: Any, params: Any, kept: ft.Kept) -> dict[str, Any]:
    """Returns the words of a dev sentence, and the mask after each layer.

    It is the first sentence of 12 to 24 tokens, if there is one.
    """
    tokens = problem.dev.tokens
    row = int(np.argmax((tokens.lengths >= 12) & (tokens.lengths <= 24)))
    one = jax.tree.map(lambda x: x[row : row + 1], problem.dev)
    length = int(tokens.lengths[row])
    alive = judge(params, one, kept).alive[0, :, :length]
    words = problem.show(tokens.ids[row, :length])
    return {"words": words, "alive": alive.astype(int).tolist()}


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Plots savings, keep ratios, and the remaining words of sentences."""
    points, curves, sentences = {}, {}, {}
    for name, task in figures["tasks"].items():
        rows = task["rows"]
        points[name] = [(np.mean(r["dram"]), np.mean(r["lost"])) for r in rows.values()]
        curves[name] = task["curve"]
        sentences[name] = task["picture"]
    short = {n: x for n, x in sentences.items() if len(x["words"]) <= READABLE}
    plots.sentences(path, points, sl.ROWS, curves, short or sentences)
