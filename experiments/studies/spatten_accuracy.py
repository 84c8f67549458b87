"""What SpAtten's techniques cost in accuracy and save, on sentences.

For each task and seed: the pretrained encoder is fine-tuned for half of the steps; on
sentences that were held out of the train split a schedule is chosen, among those that
save enough the one with the least loss, without more training; then the encoder is
fine-tuned for the other half, once dense and once with everything pruned and
quantized, on the same batches at the same rates. Dev is read once, at the end. The
rows between switch off techniques of the pruned network and are not trained anew.

With JPRUNE_RESUME_DIR set, what is finished of a task and seed is kept there and not
done again.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import finetune as ft
from experiments.benchmarks import timing
from experiments.catalogue import Outcome, Study
from experiments.models import encoder
from experiments.studies import spatten_levels as sl
from experiments.studies import spatten_report as report
from experiments.studies.spatten_tasks import TOY, Problem, problem
from jprune import attention as ja

RAMPS = ((0.65, 0.9), (0.6, 0.85), (0.5, 0.8), (0.45, 0.7), (0.4, 0.6))
CANDIDATES = tuple(  # the threshold is that of the authors' configurations
    sl.Level(tokens, start, heads, 0.5, ja.Bits(6, 4, 4, 6), 0.05)
    for tokens, start in RAMPS
    for heads in (1.0, 0.8)
)


class Settings(NamedTuple):
    """What is trained, and what has to be saved.

    Attributes:
      tasks: Of GLUE, or the toy.
      seeds: Of the new output layer and of the batches.
      steps: Of each half of the fine-tuning.
      batch_size: Sentences in a step.
      rate: The largest learning rate.
      limit: The largest number of sentences to fit.
      candidates: Schedules to choose from.
      dram: How many times less attention has to read, from float32.
      attention: How many times less it has to multiply.
      spare: Both have to be exceeded by this factor where the schedule is chosen,
        for dev to exceed them too.
      lost: Points that may be lost.
    """

    tasks: tuple[str, ...] = ("SST-2", "STS-B", "MRPC", "CoLA", "RTE")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 240
    batch_size: int = 32
    rate: float = 1e-4
    limit: int = 10_000
    candidates: tuple[sl.Level, ...] = CANDIDATES
    dram: float = 8.0
    attention: float = 1.8
    spare: float = 1.05
    lost: float = 0.5


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Trains, chooses, prunes, trains on, and reads dev."""
    tasks = settings.tasks
    task = progress.add_task("fine-tune", total=len(tasks) * len(settings.seeds))
    found: dict[str, dict[str, Any]] = {}
    for name in tasks:
        each = []
        load = functools.cache(
            lambda name=name: problem(name, data_dir, settings.limit)
        )
        for seed in settings.seeds:
            make = lambda seed=seed, load=load: one(load(), settings, seed)  # noqa: E731
            each.append(finished(settings, name, seed, make))
            progress.advance(task)
        found[name] = report.gathered(each, settings)
    figures = {"tasks": found}
    tables = {"main": report.table(figures, settings)}
    return Outcome(figures, tables, lambda path: report.draw(path, figures))


def finished(
    settings: Settings, name: str, seed: int, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the figures of a task and seed, from an earlier run if there are any."""
    folder = os.environ.get("JPRUNE_RESUME_DIR")
    if not folder:
        return make()
    said = repr(settings._replace(tasks=(), seeds=()))
    mark = hashlib.sha256(said.encode()).hexdigest()[:12]
    path = Path(folder) / f"{name}-{seed}-{mark}.json"
    if path.is_file():
        return json.loads(path.read_text())
    figures = json.loads(json.dumps(make()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures))
    return figures


def one(problem: Problem, settings: Settings, seed: int) -> dict[str, Any]:
    """Returns the figures of a task with one seed."""
    begin = time.perf_counter()
    steps, size = settings.steps, settings.batch_size
    tx, step = stepper(settings.rate, 2 * steps, problem.heads)
    judge = judger(problem.heads, problem.widths, size)
    params = problem.init(jax.random.key(seed))
    sizes = sl.sizes_of(params, problem.heads)

    def train(state: ft.State, kept: ft.Kept, half: int) -> ft.State:
        rng, done = np.random.default_rng([seed, half]), 0
        while done < steps:
            for batch in ft.batches(problem.fit, problem.widths, size, rng):
                state, _ = step(state, batch, kept)
                done += 1
                if done == steps:
                    break
        return state

    state = train(ft.start(params, tx, fixed=problem.fixed), ft.DENSE, 0)
    whole = {**state.params, **state.fixed}
    level, tried = choose(problem, settings, judge, whole, sizes)
    copy = jax.tree.map(jnp.copy, state)
    kept = sl.kept_of(level, sizes, quantized=True)
    tuned = train(copy, kept, 1)
    curves = {}
    if seed == settings.seeds[0]:
        pruned = {**tuned.params, **tuned.fixed}
        curves = {
            "curve": report.curve(problem, judge, (whole, pruned), sizes),
            "picture": report.picture(problem, judge, pruned, kept),
            "seconds": seconds(problem, whole, level, sizes, size),
        }
    dense = train(state, ft.DENSE, 1)
    rows = judged(problem, judge, dense, tuned, level, sizes)
    return {
        "level": level._asdict() | {"bits": level.bits._asdict()},
        "tried": tried,
        "unit": problem.unit,
        "rows": rows,
        **curves,
        "minutes": (time.perf_counter() - begin) / 60,
    }


@functools.lru_cache
def stepper(rate: float, steps: int, heads: int) -> tuple[Any, Any]:
    """Returns the optimizer and the step, one compilation for tasks and seeds."""
    tx = ft.optimizer(rate, steps)
    return tx, ft.make_step(tx, heads)


judger = functools.lru_cache(ft.make_judge)


def choose(
    problem: Problem, settings: Settings, judge: Any, params: Any, sizes: sl.Sizes
) -> tuple[sl.Level, list[dict[str, float]]]:
    """Returns the level of least held-out loss that saves enough; what was tried."""
    held = problem.choose

    def of(kept: ft.Kept) -> tuple[float, float, encoder.Counts]:
        found = judge(params, held, kept)
        return problem.score(found.logits, held.labels), found.loss, found.counts

    tried = sl.try_out(settings.candidates, sizes, of)
    wanted = (settings.spare * x for x in (settings.dram, settings.attention))
    return settings.candidates[sl.pick(tried, *wanted)], tried


def judged(
    problem: Problem, judge: Any, dense: Any, tuned: Any, level: Any, sizes: sl.Sizes
) -> dict[str, dict[str, float]]:
    """Returns score and savings on dev, a technique more in each row."""

    def of(pruned: bool, kept: ft.Kept) -> tuple[float, encoder.Counts]:
        state = tuned if pruned else dense
        found = judge({**state.params, **state.fixed}, problem.dev, kept)
        return problem.score(found.logits, problem.dev.labels), found.counts

    return sl.breakdown(level, sizes, of)


def seconds(
    problem: Problem, params: Any, level: sl.Level, sizes: sl.Sizes, size: int
) -> dict[str, float]:
    """Returns milliseconds for a sentence, dense and with fewer tokens.

    Of full batches of the width that most sentences have. Heads, values and bits are
    masks and rounding here, which a CPU or GPU does not run faster.
    """
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
        tasks=(TOY,), steps=150, rate=2e-3, candidates=CANDIDATES[::3], spare=1.0
    ),
    claims=report.TOY_CLAIMS,
    run=run,
)
