"""The published stories260K: a Llama of 260,032 weights that tells small stories.

    DIR/stories260K/stories260K.bin, tok512.bin

The formats are those of llama2.c. Weights: a header of seven int32, then float32
arrays. Tokenizer: the maximum length, then score, length and bytes of each piece, which
are merged greedily by score.
"""

import itertools
import struct
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.models import decoder
from experiments.tasks.data import DataError

SOURCE = (
    "Expected in DIR/stories260K: stories260K.bin and tok512.bin; download them from "
    "https://huggingface.co/karpathy/tinyllamas/tree/main/stories260K"
)
BEGIN, END = 1, 2  # tokens before and after a text


class Vocabulary(NamedTuple):
    """Pieces of text with their merge scores.

    Attributes:
      pieces: bytes of each token; the single bytes, after the three special tokens, are
        written as `<0x41>`.
      scores: merge scores; the pair with the largest score is merged first.
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without the begin token."""
        known = {piece: i for i, piece in enumerate(self.pieces)}
        ids: list[int] = []
        for character in f" {text}" if text else "":
            raw = character.encode()
            ids += [known[raw]] if raw in known else [3 + byte for byte in raw]
        while True:
            pairs = [
                self.pieces[a] + self.pieces[b] for a, b in itertools.pairwise(ids)
            ]
            found = [
                (-self.scores[known[p]], i) for i, p in enumerate(pairs) if p in known
            ]
            if not found:
                return ids
            place = min(found)[1]
            ids[place : place + 2] = [known[pairs[place]]]

    def decode(self, ids: Any) -> str:
        """Returns the text of tokens, without begin, end and the first space."""
        out = b"".join(self._bytes(int(i)) for i in ids if int(i) not in (BEGIN, END))
        return out.decode(errors="replace").removeprefix(" ")

    def _bytes(self, token: int) -> bytes:
        piece = self.pieces[token]
        return bytes([token - 3]) if piece.startswith(b"<0x") else piece


def load(data_dir: Path | None) -> tuple[decoder.Decoder, Any, Vocabulary]:
    """Returns the model, its parameters and its vocabulary.

    Raises:
      DataError: a file is missing, truncated or of another format.
    """
    if data_dir is None:
        raise DataError(f"stories260K is read from a data directory.\n{SOURCE}")
    folder = data_dir / "stories260K"
    try:
        weights = (folder / "stories260K.bin").read_bytes()
        vocabulary = (folder / "tok512.bin").read_bytes()
    except OSError as error:
        raise DataError(f"stories260K cannot be read: {error}.\n{SOURCE}") from error
    try:
        params, heads, kv_heads, size = parse_weights(weights)
        words = parse_vocabulary(vocabulary, size)
    except (struct.error, ValueError) as error:
        raise DataError(f"{folder} has a broken file: {error}.\n{SOURCE}") from error
    return decoder.llama(heads, kv_heads), params, words


def parse_weights(content: bytes) -> tuple[Any, int, int, int]:
    """Returns parameters, heads, key heads and vocabulary of a v0 checkpoint.

    Raises:
      ValueError: the size does not match the header, or the output layer is not tied
        to the embedding.
    """
    width, hidden, depth, heads, kv_heads, size, length = struct.unpack_from(
        "<7i", content
    )
    if size < 0:
        raise ValueError("a separate output layer is not supported")
    keys, dim = kv_heads * (width // heads), width // heads
    shapes = {
        "embed": (size, width),
        "norm1": (depth, width),
        "q": (depth, width, width),
        "k": (depth, keys, width),
        "v": (depth, keys, width),
        "o": (depth, width, width),
        "norm2": (depth, width),
        "gate": (depth, hidden, width),
        "down": (depth, width, hidden),
        "up": (depth, hidden, width),
        "norm": (width,),
        "angles": (2, length, dim // 2),  # rotary tables, which are recomputed here
    }
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    numbers = np.frombuffer(content, "<f4", offset=28)
    if len(numbers) != sum(sizes):
        raise ValueError(f"{len(numbers)} numbers, but the header says {sum(sizes)}")
    parts = np.split(numbers.astype(np.float32), np.cumsum(sizes)[:-1])
    arrays = {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    embed, norm = (jnp.asarray(arrays.pop(name)) for name in ("embed", "norm"))
    arrays.pop("angles")
    layers = [
        {name: jnp.asarray(np.ascontiguousarray(a[i].T)) for name, a in arrays.items()}
        for i in range(depth)
    ]
    params = {"embed": embed, "layers": layers, "norm": norm}
    return params, heads, kv_heads, size


def parse_vocabulary(content: bytes, size: int) -> Vocabulary:
    """Returns the vocabulary of a tokenizer file of `size` pieces."""
    place, pieces, scores = 4, [], []
    for _ in range(size):
        score, length = struct.unpack_from("<fi", content, place)
        piece = content[place + 8 : place + 8 + length]
        if len(piece) != length:
            raise ValueError(f"the tokenizer ends inside piece {len(pieces)}")
        place += 8 + length
        pieces.append(piece)
        scores.append(score)
    return Vocabulary(tuple(pieces), tuple(scores))
