"""BiP against iterative magnitude pruning: accuracy by what it costs.

IMP trains a network again and again, one round for each fifth of the survivors; BiP
trains mask and weights of one network in turns. Both are run at two budgets:

    short    a dense training, and BiP for the rest of 0.16 of the gradients that
             full IMP takes to that sparsity; and IMP with as many. What is asked is
             a fifth of the time, and a step of BiP selects as well
    full     IMP with a whole training a round; and BiP with as many gradients

"BiP" leaves the implicit term out, as its released code does in effect; beside it
stand the true formula and the code's own. It goes to the target at once, as published,
when it has little time; with much of it the sparsity climbs in the first half of steps
("climbing"), which pilots on the validation split showed to be what decides there.

Every method has the same number of trials: learning rate times weight decay, or times
the scores' learning rate where there are scores. They are judged on the validation
split with seeds of their own; the test split is read once, for the figures.
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
    """What is trained, and how.

    Attributes:
      dataset: One of `data.SETS`.
      seeds: Seeds of initialisation and batches; the splits have a fixed seed.
      trial_seeds: Seeds of the search for rates.
      steps: Steps of the dense training, and of a full round of IMP.
      batch_size: Examples in a gradient evaluation.
      rewind: The step that IMP rewinds to.
      short: The cost of short methods, as a share of full IMP's.
      hidden: Widths of the hidden layers.
      min_kept: Weights that BiP keeps in each layer at least.
      sparsities: Of the table, ascending; 95, 98 and 99 % among them.
      trial_sparsity: At which rates are chosen.
      rates: Learning rates of the weights to try.
      decays: Weight decays to try, where there are no scores.
      scores: Learning rates of the scores to try.
      turns: How often short BiP and IMP are timed, in turns and alone.
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
      run: `(task, rates, drawn, dense, sparsity) -> params`, for one seed. Jobs that
        share it share a compilation.
      evaluations: Gradient evaluations, the dense training included.
      scored: Whether rates of scores are searched rather than weight decays.
      ticket: Which of the stacked networks that `run` returns, or None for its only
        one. IMP finds the tickets of all sparsities on its way to the last.
      from_dense: Whether it starts from the dense network.
    """

    run: Callable[..., Any]
    evaluations: int
    scored: bool = False
    ticket: int | None = None
    from_dense: bool = True


class Ran(NamedTuple):
    """Networks, leaves lead with the axis `(seeds,)`; and seconds for each of them."""

    params: Any
    seconds: float


def jobs(settings: Settings) -> dict[str, dict[float, Job]]:
    """Returns what is run: name -> sparsity -> job."""
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
        trainings = last + 2  # of the dense network, and after each pruning
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

    if len(seeds) == 1:  # as a user trains one: what is mapped runs slower loops
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
    """Runs one method at some sparsities, once for each of the rates to try.

    Args:
      task: What is trained.
      jobs: By sparsity; those that share a `run` are compiled together, and those with
        tickets are run together.
      seeds: One network for each.
      trials: The rates.
      dense: The dense networks of these seeds.

    Returns:
      By sparsity, for each of the trials.
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
    """Returns one of stacked networks `(seeds, tickets, ...)`, or the only one."""
    return params if which is None else jax.tree.map(lambda x: x[:, which], params)


def candidates(settings: Settings, scored: bool) -> list[methods.Rates]:
    """Returns the rates to try, as many for each method."""
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
    """Returns the best rates on the validation split, and what each trial came to."""
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
    """Times one network of short BiP and of IMP in turns, so that load hits both.

    Args:
      settings: What is trained, and how often.
      task: The same for `solve`.
      work: All jobs.
      rates: The chosen rates by method.
      dense: The dense networks.
      form: Of BiP.

    Returns:
      Seconds by method and sparsity, one for each turn; those of the dense training
      are among those of BiP.
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
    """Returns the seeds of the search and those of the figures."""
    return settings.trial_seeds, settings.seeds


def described(one: Ran, evaluations: int, splits: data.Splits) -> dict[str, Any]:
    """Returns what networks came to as plain numbers, accuracies in percent."""
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
