"""BiP against iterative magnitude pruning (IMP): accuracy by cost.

IMP trains a network repeatedly and prunes a fifth of the remaining weights per round;
BiP alternates between mask and weights of one network. Both run at two budgets:

    short    the dense training plus BiP, with 0.16 of the gradients that full IMP
             needs for that sparsity; and IMP with the same number. The claim is about
             a fifth of the time, and a BiP step also has to select
    full     IMP with a whole training per round; and BiP with the same number of
             gradients

"BiP" omits the implicit term, as its released code does in effect; the true formula and
that of the code are compared with it. At the short budget it starts at the target
sparsity, as published. At the full budget the sparsity increases during the first half
of the steps ("climbing"), which was decisive in pilots on the validation split.

Every method has the same number of trials: learning rate times weight decay, or times
the learning rate of the scores for methods with scores. Trials are evaluated on the
validation split with separate seeds; the test split is read once, for the figures.
"""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.catalogue import Outcome, Study
from experiments.harness.stats import rounded
from experiments.studies.bilevel import _methods as methods
from experiments.studies.bilevel import _report as report
from experiments.tasks import data

CLIMBING = "BiP, climbing, full"


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      dataset: name of the data set, one of `data.SETS`.
      seeds: seeds of initialisation and batches; the splits have a fixed seed.
      trial_seeds: seeds of the search for rates.
      steps: steps of the dense training, and of a full round of IMP.
      batch_size: examples per gradient evaluation.
      rewind: step that IMP rewinds to.
      short: cost of short methods, as a share of that of full IMP.
      hidden: widths of the hidden layers.
      min_kept: minimum number of weights that BiP keeps in each layer.
      sparsities: sparsities of the table, ascending; must include 95, 98 and 99 %.
      trial_sparsity: sparsity at which rates are chosen.
      rates: learning rates of the weights to try.
      decays: weight decays to try, for methods without scores.
      scores: learning rates of the scores to try.
      turns: number of timings of short BiP and IMP, in turns.
    """

    dataset: str = "fashion-mnist"
    seeds: tuple[int, ...] = (20, 21, 22, 23, 24)
    trial_seeds: tuple[int, ...] = (120, 121)
    steps: int = 600
    batch_size: int = 512
    rewind: int = 40
    short: float = 0.16
    hidden: tuple[int, ...] = (300, 100)
    min_kept: int = 1
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98, 0.99)
    trial_sparsity: float = 0.98
    rates: tuple[float, ...] = (0.05, 0.1, 0.2)
    decays: tuple[float, ...] = (1e-4, 5e-4)
    scores: tuple[float, ...] = (0.3, 1.0)
    turns: int = 3


class Job(NamedTuple):
    """One method at one budget and sparsity.

    Attributes:
      run: `(task, rates, drawn, dense, sparsity) -> params`, for one seed. Jobs with
        the same function share a compilation.
      evaluations: gradient evaluations, including the dense training.
      scored: whether learning rates of scores are searched instead of weight decays.
      ticket: index of the network among the stacked ones that `run` returns, or None
        if it returns a single one. One run of IMP finds the tickets of all sparsities.
      from_dense: whether it starts from the dense network.
    """

    run: Callable[..., Any]
    evaluations: int
    scored: bool = False
    ticket: int | None = None
    from_dense: bool = True


class Ran(NamedTuple):
    """Networks with a leading axis `(seeds,)`, and the seconds of each of them."""

    params: Any
    seconds: float


def jobs(settings: Settings) -> dict[str, dict[float, Job]]:
    """Returns all jobs: name -> sparsity -> job."""
    steps, levels = settings.steps, settings.sparsities
    variants = methods.bip_variants()
    same = lambda job: dict.fromkeys(levels, job)  # noqa: E731
    found: dict[str, dict[float, Job]] = {
        "random": same(Job(methods.random, 2 * steps, from_dense=False)),
        "one-shot": same(Job(methods.one_shot, 2 * steps)),
        "Hydra": same(Job(methods.hydra, 3 * steps, scored=True)),
    }
    found |= {name: {} for name in (*variants, "IMP", "IMP, short", CLIMBING)}
    schedule = methods.rounds(levels)
    whole = functools.partial(methods.imp, schedule=schedule, steps=steps)
    for s in levels:
        last = schedule.index(s)
        trainings = last + 2  # one of the dense network, and one after each pruning
        found["IMP"][s] = Job(whole, trainings * steps, ticket=last, from_dense=False)
        short = max(round((settings.short * trainings - 1) * steps / 2), 2)
        for name, variant in variants.items():
            run = functools.partial(variant, steps=short)
            found[name][s] = Job(run, steps + 2 * short, scored=True)
        if s not in report.HIGH:
            continue
        each = (steps + 2 * short) // trainings
        run = functools.partial(methods.imp, schedule=schedule[: last + 1], steps=each)
        found["IMP, short"][s] = Job(
            run, trainings * each, ticket=last, from_dense=False
        )
        turns = (trainings - 1) * steps // 2
        run = functools.partial(variants["BiP, climbing"], steps=turns)
        found[CLIMBING][s] = Job(run, steps + 2 * turns, scored=True)
    return found


@functools.partial(jax.jit, static_argnames=("run", "setup"))
def over_seeds(
    run: Callable[..., Any],
    setup: tuple[Any, ...],
    examples: data.Examples,
    seeds: jax.Array,
    rates: methods.Rates,
    dense: Any,
    sparsity: jax.Array,
) -> Any:
    """Returns the networks of all seeds."""
    task = methods.Task(examples, *setup)

    def one(seed: jax.Array, dense: Any) -> Any:
        drawn = methods.draws(task, jax.random.key(seed))
        return run(task, rates, drawn, dense, sparsity)

    if len(seeds) == 1:  # as a user trains one network: vmapped loops are slower
        alone = one(seeds[0], jax.tree.map(lambda x: x[0], dense))
        return jax.tree.map(lambda x: x[None], alone)
    return jax.vmap(one)(seeds, dense)


def solve(
    task: methods.Task,
    jobs: dict[float, Job],
    seeds: tuple[int, ...],
    trials: list[methods.Rates],
    dense: Any,
) -> dict[float, list[Ran]]:
    """Runs one method at several sparsities, once for each candidate of the rates.

    Args:
      task: the task.
      jobs: jobs by sparsity; those with the same `run` share a compilation, and those
        with tickets also share a run.
      seeds: seeds, one network each.
      trials: candidates of the rates.
      dense: the dense networks of these seeds.

    Returns:
      By sparsity, the networks of each trial.
    """
    examples, *setup = task
    found: dict[float, list[Ran]] = {s: [] for s in jobs}
    for run in {job.run: None for job in jobs.values()}:
        levels = [s for s, job in jobs.items() if job.run is run]
        most = max(jobs[s].evaluations for s in levels)
        start = (examples, jnp.asarray(seeds), trials[0], dense, jnp.float32(0))
        go = over_seeds.lower(run, tuple(setup), *start).compile()
        for rates in trials:
            together, seconds = None, 0.0
            for s in levels:
                job = jobs[s]
                if together is None or job.ticket is None:
                    begin = time.perf_counter()
                    args = (examples, start[1], rates, dense, jnp.float32(s))
                    together = jax.block_until_ready(go(*args))
                    seconds = (time.perf_counter() - begin) / len(seeds)
                share = 1.0 if job.ticket is None else job.evaluations / most
                found[s].append(Ran(ticket(together, job.ticket), share * seconds))
    return found


def ticket(params: Any, which: int | None) -> Any:
    """Returns one of the stacked networks `(seeds, tickets, ...)`, or the only one."""
    return params if which is None else jax.tree.map(lambda x: x[:, which], params)


def candidates(settings: Settings, scored: bool) -> list[methods.Rates]:
    """Returns the candidates of the rates; every method has the same number."""
    second = settings.scores if scored else settings.decays
    each = itertools.product(settings.rates, second)
    decay, scores = settings.decays[0], settings.scores[0]
    return [
        methods.Rates(*map(jnp.float32, (a, decay, b) if scored else (a, b, scores)))
        for a, b in each
    ]


def searched(
    settings: Settings, task: methods.Task, job: Job, dense: Any, judge: Any
) -> tuple[methods.Rates, dict[str, Any]]:
    """Returns the best rates on the validation split, and the result of each trial."""
    rates = candidates(settings, job.scored)
    jobs = {settings.trial_sparsity: job}
    (each,) = solve(task, jobs, settings.trial_seeds, rates, dense).values()
    accuracies = [float(np.mean(percent(one.params, judge))) for one in each]
    best = rates[int(np.argmax(accuracies))]
    named = [{k: rounded(v) for k, v in r._asdict().items()} for r in rates]
    return best, {
        "trials": [
            {**r, "validation": rounded(a)}
            for r, a in zip(named, accuracies, strict=True)
        ],
        "chosen": {k: rounded(v) for k, v in best._asdict().items()},
    }


@jax.jit
def percent(params: Any, examples: Any) -> jax.Array:
    """Returns the accuracies `(seeds,)` in percent."""
    return 100 * jax.vmap(methods.accuracy, in_axes=(0, None, None))(params, *examples)


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Searches the rates, trains all networks, and reads the test split once."""
    splits = jax.tree.map(jnp.asarray, data.load(settings.dataset, data_dir))
    task = methods.Task(
        splits.train,
        settings.batch_size,
        settings.steps,
        settings.rewind,
        settings.hidden,
        settings.min_kept,
    )
    work = jobs(settings)
    start = Job(methods.dense, settings.steps, from_dense=False)
    bar = progress.add_task("search of rates", total=2 * len(work) + 3)
    judge = splits.validation
    rates, trials = {}, {}
    nothing = {seeds: jnp.zeros(len(seeds)) for seeds in seed_sets(settings)}
    first = nothing[settings.trial_seeds]
    rates["dense"], trials["dense"] = searched(settings, task, start, first, judge)
    dense = {}
    for seeds in seed_sets(settings):
        found = solve(task, {0.0: start}, seeds, [rates["dense"]], nothing[seeds])
        dense[seeds] = found[0.0][0]
    progress.advance(bar, 2)
    for name, by_level in work.items():
        job = by_level[settings.trial_sparsity]
        begin = dense[settings.trial_seeds].params
        rates[name], trials[name] = searched(settings, task, job, begin, judge)
        progress.advance(bar)
    begin = dense[settings.seeds]
    figures: dict[str, Any] = {
        "test_images": len(splits.test.labels),
        "search": trials,
        "methods": {"dense": {"0.0": described(begin, settings.steps, splits)}},
    }
    progress.update(bar, description="training")
    for name, by_level in work.items():
        found = solve(task, by_level, settings.seeds, [rates[name]], begin.params)
        rows = figures["methods"][name] = {}
        for s, (one,) in found.items():
            before = begin.seconds if by_level[s].from_dense else 0.0
            one = one._replace(seconds=one.seconds + before)
            rows[str(s)] = described(one, by_level[s].evaluations, splits)
        progress.advance(bar)
    progress.update(bar, description="times in turns")
    form = report.best_form(figures)
    figures["clock"] = clocked(settings, task, work, rates, begin.params, form)
    progress.advance(bar)
    tables = {
        "main": report.table(figures, settings),
        "budgets": report.budgets(figures),
    }
    return Outcome(figures, tables, functools.partial(report.draw, figures))


def clocked(
    settings: Settings,
    task: methods.Task,
    work: dict[str, dict[float, Job]],
    rates: dict[str, methods.Rates],
    dense: Any,
    form: str,
) -> dict[str, dict[str, list[float]]]:
    """Times one network of short BiP and of IMP in turns, so that load affects both.

    Args:
      settings: settings of the study.
      task: the task.
      work: all jobs.
      rates: chosen rates by method.
      dense: the dense networks.
      form: name of the form of BiP.

    Returns:
      Seconds by method and sparsity, one for each turn; those of BiP include the dense
      training.
    """
    start = {0.0: Job(methods.dense, settings.steps, from_dense=False)}
    seed, first = settings.seeds[:1], jax.tree.map(lambda x: x[:1], dense)
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(settings.turns):
        before = solve(task, start, seed, [rates["dense"]], jnp.zeros(1))[0.0][0]
        for name in (form, "IMP"):
            for s, (one,) in solve(
                task, work[name], seed, [rates[name]], first
            ).items():
                begun = before.seconds if work[name][s].from_dense else 0.0
                each = found.setdefault(name, {}).setdefault(str(s), [])
                each.append(rounded(begun + one.seconds))
    return found


def seed_sets(settings: Settings) -> tuple[tuple[int, ...], ...]:
    """Returns the seeds of the search, and those of the figures."""
    return settings.trial_seeds, settings.seeds


def described(one: Ran, evaluations: int, splits: data.Splits) -> dict[str, Any]:
    """Returns the results of networks as plain numbers, accuracies in percent."""
    kernels = [w for w in jax.tree.leaves(one.params) if w.ndim > 2]
    return {
        "test": [rounded(a) for a in percent(one.params, splits.test)],
        "validation": [rounded(a) for a in percent(one.params, splits.validation)],
        "kept": sum(int((w[0] != 0).sum()) for w in kernels),
        "evaluations": evaluations,
        "seconds": rounded(one.seconds),
    }


FASHION_MNIST = Study(Settings(), report.claims("Fashion-MNIST"), run)
DIGITS = Study(
    Settings(dataset="digits", steps=300, batch_size=64, rewind=20, hidden=(256, 128)),
    report.claims("digits"),
    run,
)
CIFAR_10 = Study(Settings(dataset="cifar-10"), report.claims("CIFAR-10"), run)
