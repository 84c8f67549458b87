"""Training of the networks of SpAtten's studies of sentences.

Dense networks are trained for the first steps, after which schedules are chosen, and
then for the remaining ones. Pruned networks start after the first steps and have the
same remaining steps and batches; if they are distilled, they start from the final
weights of the dense network (`experiments.loops.distillation`).
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.loops import finetune as ft
from experiments.loops.distillation import Lesson
from experiments.studies.attention._tasks import Problem

# Random streams of a seed. A student has the same batches as its teacher.
FIRST, REST, TRIAL, WORDS = range(4)


class Course(NamedTuple):
    """Training settings of a network.

    Attributes:
      steps: numbers of steps before and after a schedule is chosen.
      batch_size: sentences per step.
      rate: peak learning rate.
      lesson: weights of the distillation.
    """

    steps: tuple[int, int]
    batch_size: int
    rate: float
    lesson: Lesson


def whole(state: ft.State) -> dict[str, Any]:
    """Returns all parameters, including frozen ones."""
    return {**state.params, **state.fixed}


def begun(problem: Problem, course: Course, seed: int, at: Path | None) -> ft.State:
    """Returns the dense network after the first steps.

    Args:
      problem: the task.
      course: training settings.
      seed: seed of the output layer and the batches.
      at: path of the checkpoint without its suffix, or None.
    """
    tx, step = _stepper(problem, course)
    start = ft.start(problem.init(jax.random.key(seed)), tx, fixed=problem.fixed)
    found = _batches(problem, course, seed, FIRST)
    return ft.train(step, start, found, course.steps[0], at=at)


def went_on(
    problem: Problem,
    course: Course,
    seed: int,
    state: ft.State,
    kept: ft.Kept,
    *,
    trial: int | None = None,
    at: Path | None = None,
) -> ft.State:
    """Trains the network of `begun` for the remaining steps, dense or pruned.

    Args:
      problem: the task.
      course: training settings.
      seed: seed of the batches.
      state: state of `begun`; it is not donated.
      kept: how attention is pruned.
      trial: number of steps of a trial, which has its own batches; None for the
        remaining steps.
      at: path of the checkpoint without its suffix, or None.
    """
    _, step = _stepper(problem, course)
    found = _batches(problem, course, seed, REST if trial is None else TRIAL)
    steps = course.steps[1] if trial is None else trial
    mine = jax.tree.map(jnp.copy, state)  # steps donate their state
    return ft.train(step, mine, found, steps, kept=kept, at=at)


def taught(
    problem: Problem,
    course: Course,
    seed: int,
    teacher: Any,
    kept: ft.Kept,
    steps: int,
    at: Path | None = None,
) -> ft.State:
    """Trains a pruned network, starting from the dense one and distilled from it.

    Args:
      problem: the task.
      course: training settings.
      seed: seed of the batches and of the exchanged words.
      teacher: all parameters of the dense network.
      kept: how attention is pruned.
      steps: number of steps, which have their own warm-up.
      at: path of the checkpoint without its suffix, or None.
    """
    lesson = course.lesson
    tx, step = stepper(course.rate, steps, problem.heads, lesson)
    student = ft.start(teacher, tx, fixed=problem.fixed)
    found = ft.lessons(
        _batches(problem, course, seed, REST),
        np.random.default_rng([seed, WORDS]),
        lesson.exchanged,
        problem.first_word,
    )
    return ft.train(step, student, found, steps, kept=kept, teacher=teacher, at=at)


def _batches(
    problem: Problem, course: Course, seed: int, stream: int
) -> Iterator[ft.Batch]:
    rng = np.random.default_rng([seed, stream])
    return ft.endless(problem.fit, problem.widths, course.batch_size, rng)


def _stepper(problem: Problem, course: Course) -> tuple[Any, ft.Step]:
    return stepper(course.rate, sum(course.steps), problem.heads, course.lesson)


class Dense(NamedTuple):
    """The dense network of a task and seed.

    Attributes:
      start: state after the first steps, where schedules are chosen.
      end: state after all steps.
    """

    start: ft.State
    end: ft.State


def dense(problem: Problem, course: Course, seed: int, at: Path | None) -> Dense:
    """Returns the dense network after the first steps, and after all.

    Args:
      problem: the task.
      course: training settings.
      seed: seed of the output layer and the batches.
      at: path prefix of the checkpoints, or None.
    """
    first, rest = (at and Path(f"{at}.{part}") for part in ("first", "dense"))
    start = begun(problem, course, seed, first)
    return Dense(start, went_on(problem, course, seed, start, ft.DENSE, at=rest))


@functools.lru_cache
def stepper(rate: float, steps: int, heads: int, lesson: Lesson) -> tuple[Any, ft.Step]:
    """Returns the optimizer and the step; all tasks and seeds share a compilation."""
    tx = ft.optimizer(rate, steps)
    return tx, ft.make_step(tx, heads, lesson)


judger = functools.lru_cache(ft.make_judge)
