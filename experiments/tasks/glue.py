"""GLUE tasks in their published layout, read from the data directory.

    DIR/glue/SST-2/train.tsv, dev.tsv      (and CoLA, MRPC, RTE, STS-B)

The folder may also be called `glue_data`, as in the usual download script. The
published test sets have no labels, so studies report dev, which they evaluate once;
choices are made on a part of train that `held_out` sets aside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.tasks.data import DataError, stratified

SOURCE = (
    "Expected in DIR/glue: SST-2, CoLA, MRPC, RTE and STS-B with train.tsv and dev.tsv "
    "each; download SST-2.zip, CoLA.zip, RTE.zip and STS-B.zip from "
    "https://dl.fbaipublicfiles.com/glue/data/; for MRPC see "
    "https://gluebenchmark.com/tasks"
)


class Sentences(NamedTuple):
    """Sentences or pairs of sentences, with labels.

    Attributes:
      first: first sentence of each example.
      second: second sentence of each pair; None for tasks of single sentences.
      labels: `(n,)`: int32 classes, or float32 scores for a regression.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: np.ndarray


class Task(NamedTuple):
    """File format and metric of a task.

    Attributes:
      columns: columns of the sentences and the label: names in the header, or
        numbers if the file has no header.
      classes: labels as written in the file; empty for a regression.
      metric: `(predicted, labels) -> score`, in percent.
      unit: name of the metric.
    """

    columns: tuple[str, ...] | tuple[int, ...]
    classes: tuple[str, ...]
    metric: Callable[[np.ndarray, np.ndarray], float]
    unit: str

    @property
    def outputs(self) -> int:
        """Number of outputs of a network for this task."""
        return max(len(self.classes), 1)


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy in percent."""
    return 100 * float(np.mean(np.asarray(predicted) == labels))


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the Matthews correlation of two classes, in percent.

    It is 0 if all predictions are of one class, as in GLUE's own scorer.
    """
    from sklearn.metrics import matthews_corrcoef

    if _constant(predicted) or _constant(labels):
        return 0.0
    return 100 * float(matthews_corrcoef(labels, predicted))


def spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the Spearman correlation in percent; ties share their mean rank.

    It is 0 where it is not defined: if all numbers are equal, or one is NaN.
    """
    from scipy import stats

    if _constant(predicted) or _constant(labels):
        return 0.0
    found: Any = stats.spearmanr(predicted, labels)
    return 100 * float(np.nan_to_num(found.statistic))


def _constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0)  # of which SciPy and scikit-learn warn


BINARY = ("0", "1")
TASKS: dict[str, Task] = {
    "SST-2": Task(("sentence", "label"), BINARY, accuracy, "accuracy"),
    "CoLA": Task((3, 1), BINARY, matthews, "Matthews"),
    "MRPC": Task(("#1 String", "#2 String", "Quality"), BINARY, accuracy, "accuracy"),
    "RTE": Task(
        ("sentence1", "sentence2", "label"),
        ("not_entailment", "entailment"),
        accuracy,
        "accuracy",
    ),
    "STS-B": Task(("sentence1", "sentence2", "score"), (), spearman, "Spearman"),
}


def load(name: str, data_dir: Path | None) -> tuple[Sentences, Sentences]:
    """Returns the train and dev examples of a task.

    Args:
      name: name of the task, one of `TASKS`.
      data_dir: directory that contains `glue`.

    Raises:
      DataError: the name is unknown, or a file is missing or malformed; the message
        has its path and line.
    """
    if name not in TASKS:
        raise DataError(f"unknown GLUE task {name!r}; known: {', '.join(TASKS)}")
    if data_dir is None:
        raise DataError(
            f"{name} is read from a data directory: give --data-dir DIR or set "
            f"JPRUNE_DATA_DIR.\n{SOURCE}"
        )
    folders = [data_dir / folder / name for folder in ("glue", "glue_data")]
    found = [folder for folder in folders if folder.is_dir()]
    if not found:
        raise DataError(f"found no folder {' or '.join(map(str, folders))}.\n{SOURCE}")
    train, dev = (read(found[0] / f"{p}.tsv", TASKS[name]) for p in ("train", "dev"))
    return train, dev


def read(path: Path, task: Task) -> Sentences:
    """Reads the examples of a file of tab-separated lines without quoting."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.\n{SOURCE}") from error
    rows = [line.rstrip("\r").split("\t") for line in lines if line]
    first = 0
    columns = task.columns
    if isinstance(columns[0], str):
        header, first = rows[0] if rows else [], 1
        missing = [name for name in columns if name not in header]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; it has {header}")
        columns = tuple(header.index(str(name)) for name in columns)
    places = [int(column) for column in columns]
    for number, row in enumerate(rows[first:], first + 1):
        if len(row) <= max(places):
            raise DataError(f"{path}, line {number}: only {len(row)} columns")
    *texts, labels = ([row[place] for row in rows[first:]] for place in places)
    return Sentences(
        tuple(texts[0]),
        tuple(texts[1]) if len(texts) > 1 else None,
        _labels(labels, task, path),
    )


def _labels(words: list[str], task: Task, path: Path) -> np.ndarray:
    try:
        if not task.classes:
            return np.asarray([float(word) for word in words], np.float32)
        return np.asarray([task.classes.index(word) for word in words], np.int32)
    except ValueError as error:
        raise DataError(f"{path} has an invalid label: {error}") from error


def take(sentences: Sentences, indices: np.ndarray) -> Sentences:
    """Returns the examples at the indices."""
    second = sentences.second
    return Sentences(
        tuple(sentences.first[i] for i in indices),
        None if second is None else tuple(second[i] for i in indices),
        sentences.labels[indices],
    )


def held_out(
    train: Sentences, share: float, seed: int, limit: int | None = None
) -> tuple[Sentences, Sentences]:
    """Splits the train examples into a part for training and a held-out part.

    Args:
      train: all train examples.
      share: share of the held-out examples.
      seed: seed of the shuffle.
      limit: maximum number of training examples; the rest is dropped.
    """
    labels = train.labels
    kinds = labels if labels.dtype.kind == "i" else np.rint(labels).astype(np.int32)
    fit, choose = stratified(kinds, (1 - share, share), seed)
    if limit is not None and limit < len(fit):
        chosen = np.random.default_rng(seed).permutation(len(fit))[:limit]
        fit = fit[np.sort(chosen)]
    return take(train, fit), take(train, choose)
