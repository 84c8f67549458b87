"""Accuracy and savings of SpAtten's techniques on sentences.

For each task and seed, the pretrained encoder is fine-tuned for a fifth of the steps.
Then a schedule is chosen on sentences held out of the train split: among the schedules
that save enough, the first few, which prune the fewest tokens, are each trained for a
short trial, and the one with the least loss is chosen. The encoder is then fine-tuned
for the remaining steps, once dense and once with everything pruned and quantized, with
the same batches and learning rates. Dev is read once, at the end. The rows in between
disable techniques of the pruned network, without further training.

STS-B loses more than allowed that way. So it has a second pruned network, which starts
from the trained dense one, has as many steps again, and is distilled from it
(`experiments.loops.distillation`), with its own schedule (`spatten_students`).

Before training, few bits cost more than pruned tokens; after training, they cost less.
Schedules are therefore not compared without training. The epochs are at least two and a
half for every task, and ten for the small ones, which need them (Mosbach et al., 2021,
arXiv:2006.04884). All tasks take a night on two cores, and minutes on a GPU.

With JPRUNE_RESUME_DIR set, an interrupted run can be resumed.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.harness import resume, timing
from experiments.harness.catalogue import Outcome, Study
from experiments.loops import finetune as ft
from experiments.loops.distillation import Lesson
from experiments.models import encoder
from experiments.studies.attention import _levels as sl
from experiments.studies.attention import _protocol as protocol
from experiments.studies.attention import _report as report
from experiments.studies.attention import _training as st
from experiments.studies.attention._tasks import TOY, Problem, problem

# Bits and shares were selected on the held-out sentences of STS-B and MRPC, with other
# seeds; the threshold is that of the authors' configurations.
CANDIDATES = protocol.levels(
    (0.7, 0.95, 1.0, 0.4),
    (0.65, 0.9, 1.0, 0.45),
    (0.6, 0.85, 1.0, 0.5),
    (0.65, 0.9, 0.9, 0.5),
    (0.65, 0.9, 0.8, 0.5),
)


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      tasks: tasks of GLUE, or the toy.
      seeds: seeds of the new output layer and of the batches.
      steps: numbers of fine-tuning steps before and after a schedule is chosen.
      trial: steps of a trial of a schedule.
      shortlist: number of schedules to try.
      batch_size: sentences per step.
      rate: peak learning rate.
      limit: maximum number of training sentences.
      candidates: candidate schedules, those that prune the fewest tokens first.
      dram: required reduction of attention's traffic, relative to float32.
      attention: required reduction of attention's multiply-adds.
      spare: factor by which both must be exceeded on the held-out sentences, so that
        dev exceeds them too.
      lost: points that may be lost.
      distilled: tasks with a second pruned network, distilled from the dense one.
      taught: schedules for that; the first one that saves enough is used.
      lesson: weights of the distillation.
    """

    tasks: tuple[str, ...] = ("SST-2", "STS-B", "CoLA", "MRPC", "RTE")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, int] = protocol.COURSE.steps
    trial: int = 32
    shortlist: int = 2
    batch_size: int = protocol.COURSE.batch_size
    rate: float = protocol.COURSE.rate
    limit: int = protocol.LIMIT
    candidates: tuple[sl.Level, ...] = CANDIDATES
    dram: float = protocol.TARGETS.dram
    attention: float = protocol.TARGETS.attention
    spare: float = protocol.TARGETS.spare
    lost: float = 0.5
    distilled: tuple[str, ...] = ("STS-B",)
    taught: tuple[sl.Level, ...] = protocol.TAUGHT
    lesson: Lesson = protocol.LESSON


def course_of(settings: Settings) -> st.Course:
    """Returns the training settings."""
    return st.Course(
        settings.steps, settings.batch_size, settings.rate, settings.lesson
    )


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, chooses schedules, prunes, trains on, and evaluates on dev."""
    jobs = [(name, False) for name in settings.tasks]
    jobs += [(name, True) for name in settings.distilled if name in settings.tasks]
    task = progress.add_task("fine-tune", total=len(jobs) * len(settings.seeds))
    each: dict[tuple[str, bool], list[dict[str, Any]]] = {job: [] for job in jobs}
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    for name in settings.tasks:
        forms = [distilled for job, distilled in jobs if job == name]
        load = functools.cache(
            lambda name=name: problem(name, data_dir, settings.limit)
        )
        for seed in settings.seeds:
            for distilled, one in both(load, name, settings, seed, forms):
                each[name, distilled].append(one)
                progress.advance(task)
        for distilled in forms:
            found = each[name, distilled]
            level = sl.level_of(found[0]["level"])
            rows[name, distilled] = report.gathered(found, settings) | {
                "task": name,
                "seconds": seconds(load(), level),
            }
    figures = {"tasks": {report.named(*job): rows[job] for job in jobs}}
    tables = {"main": report.table(figures, settings)}
    return Outcome(figures, tables, lambda path: report.draw(path, figures))


def both(
    load: Callable[[], Problem],
    name: str,
    settings: Settings,
    seed: int,
    forms: Sequence[bool],
) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yields the figures of a task and seed, plain and distilled.

    All networks share one dense network.

    Args:
      load: loads the task.
      name: name of the task.
      settings: settings of the study.
      seed: seed of the output layer and the batches.
      forms: for each pruned network, whether it is distilled.
    """
    place = resume.place(f"{name}-dense-{seed}", shared(settings))
    trained = functools.cache(lambda: dense_of(load(), settings, seed, place))
    for distilled in forms:
        # GPUs round the operands of float32 products to 10 bits otherwise.
        with jax.default_matmul_precision("float32"):
            figures = finished(load, name, settings, seed, distilled, trained)
        yield distilled, figures
    resume.forget(place)


def dense_of(
    problem: Problem, settings: Settings, seed: int, place: Path | None
) -> st.Dense:
    """Returns the dense network of a task and seed."""
    return st.dense(problem, course_of(settings), seed, place)


def shared(settings: Settings) -> Settings:
    """Returns the settings that the figures of one task and seed depend on."""
    return settings._replace(tasks=(), seeds=(), distilled=())


def finished(
    load: Callable[[], Problem],
    name: str,
    settings: Settings,
    seed: int,
    distilled: bool = False,
    trained: Callable[[], st.Dense] | None = None,
) -> dict[str, Any]:
    """Returns the figures of a task and seed, from an earlier run if there are any.

    Args:
      load: loads the task.
      name: name of the task.
      settings: settings of the study.
      seed: seed of the output layer and the batches.
      distilled: whether the pruned network is distilled from the dense one.
      trained: returns the dense network; None to train one.
    """
    what = f"{name}-distilled" if distilled else name
    place = resume.place(f"{what}-{seed}", shared(settings))

    def make() -> dict[str, Any]:
        networks = trained or (lambda: dense_of(load(), settings, seed, place))
        return one(load(), settings, seed, networks(), place, distilled)

    figures = resume.once(place, make)
    resume.forget(place)
    return figures


def one(
    problem: Problem,
    settings: Settings,
    seed: int,
    trained: st.Dense,
    place: Path | None = None,
    distilled: bool = False,
) -> dict[str, Any]:
    """Returns the figures of a task with one seed.

    Args:
      problem: the task.
      settings: settings of the study.
      seed: seed of the output layer and the batches.
      trained: the dense network.
      place: path prefix of the checkpoints, or None.
      distilled: whether the pruned network is distilled from the dense one.
    """
    if distilled:
        settings = settings._replace(candidates=settings.taught, shortlist=1)
    judge = st.judger(problem.heads, problem.widths, settings.batch_size)
    course = course_of(settings)
    sizes = sl.sizes_of(st.whole(trained.start), problem.heads)
    go_on = functools.partial(st.went_on, problem, course, seed, trained.start)

    def at(part: str) -> Path | None:
        return place and Path(f"{place}.{part}")

    def adapt(kept: ft.Kept) -> Any:
        return st.whole(go_on(kept, trial=settings.trial))

    def chosen() -> tuple[int, list[dict[str, float]]]:
        return choose(problem, settings, judge, st.whole(trained.start), adapt, sizes)

    best, tried = resume.once(at("choice"), chosen)
    level = settings.candidates[best]
    kept = sl.kept_of(level, sizes, quantized=True)
    if distilled:
        teacher, steps = st.whole(trained.end), settings.steps[1]
        tuned = st.taught(problem, course, seed, teacher, kept, steps, at("tuned"))
    else:
        tuned = go_on(kept, at=at("tuned"))
    networks = st.whole(trained.end), st.whole(tuned)
    shown = seed == settings.seeds[0]
    return {
        "level": level._asdict() | {"bits": level.bits._asdict()},
        "tried": tried,
        "held": held(problem, judge, networks, kept),
        "unit": problem.unit,
        "rows": judged(problem, judge, networks, level, sizes),
        **(report.drawings(problem, judge, networks, kept, sizes) if shown else {}),
        "device": jax.devices()[0].device_kind,
    }


def held(
    problem: Problem, judge: Any, networks: tuple[Any, Any], kept: ft.Kept
) -> dict[str, float]:
    """Returns the scores of both networks on the held-out sentences."""
    part, forms = problem.choose, {"dense": ft.DENSE, "pruned": kept}
    return {
        name: problem.score(judge(params, part, what).logits, part.labels)
        for params, (name, what) in zip(networks, forms.items(), strict=True)
    }


def choose(
    problem: Problem,
    settings: Settings,
    judge: Any,
    params: Any,
    adapt: Callable[[ft.Kept], Any],
    sizes: sl.Sizes,
) -> tuple[int, list[dict[str, float]]]:
    """Returns the index of the chosen level, and the results of all candidates.

    Args:
      problem: the task; its held-out sentences are used.
      settings: settings of the study.
      judge: evaluation, from `finetune.make_judge`.
      params: parameters of the dense network.
      adapt: `kept -> params`, trains the dense network with this pruning for a trial.
      sizes: sizes of the network.
    """
    part = problem.choose

    def of(params: Any, kept: ft.Kept) -> tuple[float, float, encoder.Counts]:
        found = judge(params, part, kept)
        return problem.score(found.logits, part.labels), found.loss, found.counts

    levels = settings.candidates
    tried = sl.try_out(levels, sizes, functools.partial(of, params))
    wanted = (settings.spare * x for x in (settings.dram, settings.attention))
    short = sl.enough(tried, *wanted)[: settings.shortlist]
    if len(short) == 1:  # nothing to choose between
        return short[0], tried
    for i in short:
        kept = sl.kept_of(levels[i], sizes, quantized=True)
        score, loss, _ = of(adapt(kept), kept)
        tried[i] |= {"adapted score": score, "adapted loss": loss}
    return min(short, key=lambda i: tried[i]["adapted loss"]), tried


def judged(
    problem: Problem,
    judge: Any,
    networks: tuple[Any, Any],
    level: sl.Level,
    sizes: sl.Sizes,
) -> dict[str, dict[str, float]]:
    """Returns score and savings on dev, with one more technique in each row."""

    def of(pruned: bool, kept: ft.Kept) -> tuple[float, encoder.Counts]:
        found = judge(networks[pruned], problem.dev, kept)
        return problem.score(found.logits, problem.dev.labels), found.counts

    return sl.breakdown(level, sizes, of)


def seconds(problem: Problem, level: sl.Level, size: int = 64) -> dict[str, float]:
    """Returns milliseconds per sentence, dense and with fewer tokens.

    Measured on full batches of the most common width; the weights do not matter. Heads,
    values and bits are masks and rounding here, which are no faster on CPUs and GPUs.
    """
    params = problem.init(jax.random.key(0))
    sizes = sl.sizes_of(params, problem.heads)
    found = list(ft.batches(problem.dev, problem.widths, size))
    widths = [batch.ids.shape[1] for batch in found if batch.weights.all()]
    width = max(set(widths), key=widths.count) if widths else found[0].ids.shape[1]
    batch = next(b for b in found if b.ids.shape[1] == width)
    forms = {}
    for name, part in (("dense", None), ("tokens", level.only_tokens())):
        kept = sl.kept_of(part, sizes, quantized=False, shrink=True)
        forward = jax.jit(lambda p, b, k=kept: ft.outputs(p, b, sizes.heads, k)[0])
        forms[name] = functools.partial(forward, params, batch)
    return {n: 1e3 * t / size for n, t in timing.in_turns(forms, 5).items()}


STUDY = Study(settings=Settings(), claims=report.CLAIMS, run=run)
TOY_STUDY = Study(
    settings=Settings(
        tasks=(TOY,),
        steps=protocol.TOY_COURSE.steps,
        batch_size=protocol.TOY_COURSE.batch_size,
        rate=protocol.TOY_COURSE.rate,
        attention=protocol.TOY_TARGETS.attention,
    ),
    claims=report.claims("toy sentences"),
    run=run,
)
