"""Tasks of the studies of sentences: GLUE with MiniLM, or synthetic sentences."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.loops.finetune import widths_of
from experiments.models import bert
from experiments.tasks import glue, toys, wordpiece
from experiments.tasks.wordpiece import Examples

TOY = "toy"
HELD = 384  # maximum number of held-out sentences


class Problem(NamedTuple):
    """A task, with data, encoder and metric.

    Attributes:
      name: name of the task.
      fit: training examples.
      choose: examples held out of the train split, to choose schedules.
      dev: examples to report.
      init: `key -> params` with a new head.
      heads: number of heads of the encoder.
      fixed: whether its embeddings are frozen.
      score: `(logits, labels) -> score`, in percent.
      unit: name of the score.
      show: `ids -> words`.
      first_word: smallest token that is a word, not padding or a mark.
    """

    name: str
    fit: Examples
    choose: Examples
    dev: Examples
    init: Callable[[jax.Array], Any]
    heads: int
    fixed: bool
    score: Callable[[np.ndarray, np.ndarray], float]
    unit: str
    show: Callable[[np.ndarray], list[str]]
    first_word: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths that sentences are padded to."""
        return widths_of(self.fit.tokens.lengths)


def problem(name: str, data_dir: Path | None, limit: int) -> Problem:
    """Returns a task of GLUE, or the toy.

    Args:
      name: name of the task, one of `glue.TASKS` or `TOY`.
      data_dir: data directory; not needed for the toy.
      limit: maximum number of training examples.
    """
    return toy(limit) if name == TOY else glue_task(name, data_dir, limit)


def toy(limit: int) -> Problem:
    """Returns the toy: `toys.sentiment` with a small encoder, not pretrained."""
    init = functools.partial(
        bert.init, vocabulary=toys.VOCABULARY, length=32, width=48, depth=4
    )
    return Problem(
        name=TOY,
        fit=toys.sentiment(min(limit, 4_000), 0),
        choose=toys.sentiment(HELD, 1),
        dev=toys.sentiment(500, 2),
        init=lambda key: bert.with_head(init(key), jax.random.fold_in(key, 1), 2),
        heads=4,
        fixed=False,
        score=classes(glue.accuracy),
        unit="accuracy",
        show=lambda ids: [str(i) for i in ids],
        first_word=toys.FIRST,
    )


def glue_task(name: str, data_dir: Path | None, limit: int) -> Problem:
    """Returns a task of GLUE with the pretrained MiniLM.

    A tenth of the train split is held out; at most `HELD` of these are used.
    """
    task = glue.TASKS[name]
    train, dev = glue.load(name, data_dir)
    folder = wordpiece.folder(data_dir)
    words = wordpiece.tokenizer(folder / "tokenizer.json")
    fit, held = glue.held_out(train, 0.1, 0, limit)
    some = np.random.default_rng(0).permutation(len(held.labels))[:HELD]
    params = bert.load(folder / "model.safetensors")

    def examples(found: glue.Sentences) -> Examples:
        tokens = wordpiece.encode(words, found.first, found.second)
        labels = found.labels
        return Examples(tokens, labels if task.classes else labels / np.float32(5))

    return Problem(
        name=name,
        fit=examples(fit),
        choose=examples(glue.take(held, some)),
        dev=examples(dev),
        init=lambda key: bert.with_head(params, key, task.outputs),
        heads=12,
        fixed=True,
        score=classes(task.metric) if task.classes else numbers(task.metric),
        unit=task.unit,
        show=lambda ids: [words.id_to_token(int(i)) for i in ids],
        first_word=words.token_to_id("[MASK]") + 1,
    )


def classes(metric: Callable[..., float]) -> Callable[..., float]:
    """Returns a metric of logits, from a metric of predicted classes."""
    return lambda logits, labels: metric(logits.argmax(-1), labels)


def numbers(metric: Callable[..., float]) -> Callable[..., float]:
    """Returns a metric of logits, from a metric of the output of a regression."""
    return lambda logits, labels: metric(logits[:, 0], labels)
