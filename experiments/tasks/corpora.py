"""Byte-level texts for language models, read from the data directory.

    DIR/text/tinyshakespeare/input.txt
    DIR/text/wikitext-2/valid.txt, test.txt

Without a data directory, `descriptions` returns prose that comes with scikit-learn.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.tasks.data import DataError

SOURCE = (
    "Expected in DIR/text: tinyshakespeare/input.txt, from "
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    "input.txt, and wikitext-2/valid.txt and test.txt, from "
    "https://github.com/pytorch/examples/tree/main/word_language_model/data/wikitext-2"
)


class Text(NamedTuple):
    """Disjoint pieces of one text, uint8: train, validation and test."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def pieces(content: bytes, train: float = 0.8, validation: float = 0.1) -> Text:
    """Splits a text into three consecutive pieces."""
    data = np.frombuffer(content, np.uint8)
    cuts = (int(train * len(data)), int((train + validation) * len(data)))
    return Text(*np.split(data, cuts))


def shakespeare(data_dir: Path | None) -> Text:
    """Returns tiny-shakespeare: 80 % train, 10 % validation and the usual 10 % test."""
    return pieces(read(data_dir, "tinyshakespeare/input.txt"))


def wikitext(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the valid and test files of WikiText-2."""
    valid, test = (
        np.frombuffer(read(data_dir, f"wikitext-2/{part}.txt"), np.uint8)
        for part in ("valid", "test")
    )
    return valid, test


def read(data_dir: Path | None, name: str) -> bytes:
    """Returns the bytes of a file of `DIR/text`.

    Raises:
      DataError: the file is missing or empty.
    """
    if data_dir is None:
        raise DataError(
            "texts are read from a data directory: give --data-dir DIR or set "
            f"JPRUNE_DATA_DIR.\n{SOURCE}"
        )
    path = data_dir / "text" / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.\n{SOURCE}") from error
    if not content:
        raise DataError(f"{path} is empty.\n{SOURCE}")
    return content


def descriptions() -> Text:
    """Returns scikit-learn's descriptions of its toy sets, some 20 kB of English."""
    from sklearn import datasets

    loaders: tuple[Any, ...] = (
        datasets.load_iris,
        datasets.load_digits,
        datasets.load_wine,
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_linnerud,
    )
    return pieces("\n".join(str(load()["DESCR"]) for load in loaders).encode())


def windows(data: np.ndarray, length: int) -> np.ndarray:
    """Splits a text into rows of `length`; an incomplete last row is dropped."""
    rows = len(data) // length
    return data[: rows * length].reshape(rows, length)
