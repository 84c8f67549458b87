"""How the networks of SpAtten's studies of sentences are trained.

Dense: for some steps, after which schedules are chosen, and then for the others.
Pruned: for these others too, on the same batches; or, where the dense network teaches,
from its last weights on (`experiments.loops.distillation`).
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

# Streams of random numbers, of a seed. A student has the batches that its teacher had.
FIRST, REST, TRIAL, WORDS = range(4)


class Course(NamedTuple):
    """How a network is trained.

    Attributes:
      steps: Before a schedule is chosen, and after it.
      batch_size: Sentences in a step.
      rate: The largest learning rate.
      lesson: How much the dense network counts where it teaches.
    """

    steps: tuple[int, int]
    batch_size: int
    rate: float
    lesson: Lesson


def whole(state: ft.State) -> dict[str, Any]:
    """Returns all parameters, those that are not trained included."""
    return {**state.params, **state.fixed}


def begun(problem: Problem, course: Course, seed: int, at: Path | None) -> ft.State:
    """Returns the dense network after the first steps.

    Args:
      problem: The task.
      course: How to train.
      seed: Of the output layer and the batches.
      at: The file without its suffix that holds how far training is, or None.
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
    """Returns the network of `begun` after the other steps, dense or pruned.

    Args:
      problem: The task.
      course: How to train.
      seed: Of the batches.
      state: Of `begun`; it is left as it is.
      kept: What attention keeps.
      trial: A number of steps, of batches of their own, in place of the other steps.
      at: The file without its suffix that holds how far training is, or None.
    """
    _, step = _stepper(problem, course)
    found = _batches(problem, course, seed, REST if trial is None else TRIAL)
    steps = course.steps[1] if trial is None else trial
    mine = jax.tree.map(jnp.copy, state)  # a step donates its state
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
    """Returns a pruned network that goes on from the dense one and learns from it.

    Args:
      problem: The task.
      course: How to train.
      seed: Of the batches and of the words that are exchanged.
      teacher: The dense network's whole parameters.
      kept: What attention keeps.
      steps: How many, with a warm-up of their own.
      at: The file without its suffix that holds how far training is, or None.
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
      course: how to train.
      seed: seed of the output layer and the batches.
      at: prefix of the files that hold the training's progress, or None.
    """
    first, rest = (at and Path(f"{at}.{part}") for part in ("first", "dense"))
    start = begun(problem, course, seed, first)
    return Dense(start, went_on(problem, course, seed, start, ft.DENSE, at=rest))


@functools.lru_cache
def stepper(rate: float, steps: int, heads: int, lesson: Lesson) -> tuple[Any, ft.Step]:
    """Returns the optimizer and the step, one compilation for tasks and seeds."""
    tx = ft.optimizer(rate, steps)
    return tx, ft.make_step(tx, heads, lesson)


judger = functools.lru_cache(ft.make_judge)
