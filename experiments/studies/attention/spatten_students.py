"""Schedules for a pruned network that is distilled from the dense one.

The cost of a schedule without training does not predict its cost after training. So
each schedule has a student, which starts from the same dense network and has a quarter
of the steps of the accuracy study. Both networks are then evaluated on held-out
sentences of the task and of other tasks, and the distance of their outputs is measured.
Scores on a few hundred sentences are only accurate to half a point, but distances
separate schedules. Sentences of other tasks, whose labels do not matter here, show how
the student generalizes beyond its training sentences.

Dev is not read, and the seed differs from those of the accuracy study.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness import resume
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.loops import finetune as ft
from experiments.studies.attention import _levels as sl
from experiments.studies.attention import _protocol as protocol
from experiments.studies.attention import _training as st
from experiments.studies.attention._tasks import TOY, Problem, problem
from experiments.tasks.wordpiece import Examples
from jprune import attention as ja

TAKEN, EARLIER = "taken", "more tokens leave"  # two schedules
_FOUR, _FIVE = ja.Bits(4, 4, 4, 5), ja.Bits(5, 4, 4, 5)
_level = functools.partial(sl.Level, threshold=0.05, bits=_FOUR, last=1.0)
SCHEDULES = (
    (TAKEN, protocol.TAUGHT[0]),
    ("from the middle on", _level(0.6, 0.8, values=0.25, front=0.5)),
    ("from the second layer on", _level(0.78, 0.94, values=0.29)),
    (
        "values of the last layer, too",
        _level(0.71, 0.95, values=0.28, front=0.3, last=0.6),
    ),
    (EARLIER, _level(0.66, 1.0, values=0.45, bits=_FIVE)),
    ("the same, queries of 4 bits", _level(0.66, 1.0, values=0.45)),
    ("yet more tokens leave", _level(0.56, 1.0, values=0.6, bits=_FIVE)),
)


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      tasks: the first task is used for training; all are used for evaluation.
      seeds: seeds of the dense networks and the batches.
      steps: steps of each student, after those of the dense network.
      schedules: names and levels.
      course: training settings of the dense network.
      limit: maximum number of training sentences.
      dram: required reduction of attention's traffic, relative to float32.
      attention: required reduction of attention's multiply-adds.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    schedules: tuple[tuple[str, sl.Level], ...]
    course: st.Course
    limit: int
    dram: float
    attention: float


def settings_of(
    tasks: tuple[str, ...],
    steps: int,
    course: st.Course = protocol.COURSE,
    targets: protocol.Targets = protocol.TARGETS,
) -> Settings:
    """Returns settings with the dense networks and targets of the accuracy study."""
    return Settings(
        tasks=tasks,
        seeds=(100,),
        steps=steps,
        schedules=SCHEDULES,
        course=course,
        limit=protocol.LIMIT,
        dram=targets.spare * targets.dram,
        attention=targets.spare * targets.attention,
    )


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains the dense networks and a student per schedule, and evaluates them."""
    name, *others = settings.tasks
    task = problem(name, data_dir, settings.limit)
    asked = {name: task.choose}
    for other in others:
        held = problem(other, data_dir, settings.limit).choose
        # Their labels are of another type, and are not used.
        none = np.zeros(len(held.labels), task.fit.labels.dtype)
        asked[other] = held._replace(labels=none)
    total = len(settings.seeds) * len(settings.schedules)
    advance = functools.partial(
        progress.advance, progress.add_task("teach", total=total)
    )
    found = []
    for seed in settings.seeds:
        # GPUs round the operands of float32 products to 10 bits otherwise.
        with jax.default_matmul_precision("float32"):
            found.append(students(task, asked, settings, seed, advance))
    depth = len(task.init(jax.random.key(0))["layers"])
    figures = {"depth": depth, "schedules": gathered(found, settings)}
    return Outcome(figures, {"main": table(figures, settings)})


def students(
    task: Problem,
    asked: dict[str, Examples],
    settings: Settings,
    seed: int,
    advance: Callable[[], Any],
) -> list[dict[str, Any]]:
    """Returns the distance of each schedule's student from the dense network.

    Args:
      task: training task.
      asked: evaluation sentences by task; those of the first are held out of its train
        split.
      settings: settings of the study.
      seed: seed of the dense network and the batches.
      advance: called after each student.
    """
    course = settings.course
    judge = st.judger(task.heads, task.widths, course.batch_size)
    name, mark = f"{task.name}-students-{seed}", (course, settings.limit)
    dense = resume.place(name, mark)

    @functools.cache  # not needed if all figures are resumed
    def teacher() -> Any:
        return st.whole(st.dense(task, course, seed, dense).end)

    @functools.cache
    def said() -> dict[str, ft.Judged]:
        return {of: judge(teacher(), some) for of, some in asked.items()}

    def figures(level: sl.Level) -> dict[str, Any]:
        sizes = sl.sizes_of(teacher(), task.heads)
        kept = sl.kept_of(level, sizes, quantized=True)

        def ask(params: Any) -> tuple[dict[str, float], ft.Judged]:
            found = {of: judge(params, some, kept) for of, some in asked.items()}
            far = {of: apart(found[of].logits, said()[of].logits) for of in asked}
            return far, found[task.name]

        before, _ = ask(teacher())
        student = st.taught(task, course, seed, teacher(), kept, settings.steps)
        after, ours = ask(st.whole(student))
        theirs, labels = said()[task.name], task.choose.labels
        lost = task.score(theirs.logits, labels) - task.score(ours.logits, labels)
        full = sl.cost(theirs.counts, sizes)
        spent = sl.cost(ours.counts, sizes, level.bits)
        return {
            "before": before,
            "after": after,
            "lost": lost,
            **sl.savings(full, spent),
        }

    each = []
    for _, level in settings.schedules:
        at = resume.place(name, (mark, settings.tasks, settings.steps, level))
        each.append(resume.once(at, functools.partial(figures, level)))
        advance()
    resume.forget(dense)
    return each


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the mean squared difference of outputs, in units of 1e-4."""
    return 1e4 * float(np.mean(np.square(ours - theirs)))


def gathered(
    found: list[list[dict[str, Any]]], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Returns the figures of each schedule, as lists over seeds."""
    rows = {}
    for (name, level), each in zip(
        settings.schedules, zip(*found, strict=True), strict=True
    ):
        row: dict[str, Any] = {
            key: [rounded(one[key]) for one in each]
            for key in ("lost", "dram", "attention")
        }
        for when in ("before", "after"):
            row[when] = {
                of: [rounded(one[when][of]) for one in each] for of in settings.tasks
            }
        row["enough"] = bool(
            np.mean(row["dram"]) >= settings.dram
            and np.mean(row["attention"]) >= settings.attention
        )
        row["level"] = level._asdict() | {"bits": level.bits._asdict()}
        rows[name] = row
    return rows


def distances(row: dict[str, Any], when: str) -> np.ndarray:
    """Returns the distances of outputs, averaged over tasks, `(seeds,)`.

    Args:
      row: figures of a schedule.
      when: "before" or "after" the student was trained.
    """
    return np.mean(list(row[when].values()), axis=0)


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per schedule."""
    rows = []
    for name, row in figures["schedules"].items():
        level = sl.level_of(row["level"])
        shares = sl.pruning(level, figures["depth"], 1)
        query, *planes, value = level.bits
        rows.append(
            (
                name,
                ", ".join(f"{100 * share:.0f}" for share in shares.tokens[:-1]),
                ", ".join(f"{100 * shares.values[i]:.0f}" for i in (0, -1)),
                f"{query}, {'+'.join(map(str, planes))}, {value}",
                *(
                    plus_minus(list(distances(row, when)))
                    for when in ("before", "after")
                ),
                *(plus_minus(row["after"][of]) for of in settings.tasks),
                *(f"{np.mean(row[key]):.2f}x" for key in ("dram", "attention")),
                "yes" if row["enough"] else "no",
            )
        )
    task, *others = settings.tasks
    foreign = f" and, foreign to both, of {' and of '.join(others)}" if others else ""
    columns = (
        "schedule",
        "tokens (%)",
        "values (%)",
        "bits",
        "untaught",
        "taught",
        *(f"on {of}" for of in settings.tasks),
        "DRAM",
        "Q.K and P.V",
        "enough",
    )
    caption = (
        f"Students go on for {settings.steps} steps from the dense network of {task}, "
        f"which has had {sum(settings.course.steps)}; seeds {list(settings.seeds)}. "
        "Tokens: the share that leaves each layer but the last. Values: of all layers "
        "but the last, and of that. Bits: of queries, keys and values. Untaught, "
        "taught: the mean squared difference, 1e-4, to the outputs of the dense "
        "network where that network itself is pruned, and where the student is; means "
        f"over held-out sentences of train, of {task}{foreign}, of which those of the "
        "student stand beside. Enough: it reads "
        f"{settings.dram:.2f} times less and multiplies {settings.attention:.2f} times "
        "less, at least."
    )
    return Table(columns=columns, rows=tuple(rows), caption=caption)


def times_nearer(figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the distance of an earlier schedule over that of the chosen one.

    The result is 0 if one of the two does not save enough.
    """
    near, far = (figures["schedules"][name] for name in (TAKEN, EARLIER))
    if not (near["enough"] and far["enough"]):
        return 0.0, None
    return mean_and_spread(distances(far, "after") / distances(near, "after"))


STUDY = Study(
    settings=settings_of(("STS-B", "MRPC", "RTE"), 320),
    claims=(
        Claim(
            "MiniLM, a student of a schedule that saves enough by few values, over one "
            "that does by few tokens: times nearer to the dense network",
            "jprune",
            (">", 1),
            times_nearer,
        ),
    ),
    run=run,
)
TOY_STUDY = Study(
    settings=settings_of((TOY,), 50, protocol.TOY_COURSE, protocol.TOY_TARGETS),
    claims=(),
    run=run,
)
