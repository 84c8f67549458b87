"""Synthetic sentences, for studies of attention without a data directory."""

import numpy as np

from experiments.tasks.wordpiece import Examples, Tokens

BEGIN, END, FIRST, POLAR = 1, 2, 3, 12  # first word; number of good and of bad words
VOCABULARY = 64


def sentiment(count: int, seed: int, longest: int = 32) -> Examples:
    """Returns sentences of neutral words with one or three good or bad words.

    The class is that of the majority of these. All other words are redundant, as in
    the reviews of SST-2.

    Args:
      count: number of sentences.
      seed: random seed.
      longest: maximum length in tokens, including the begin and end marks.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    lengths = rng.integers(longest // 2, longest + 1, count).astype(np.int32)
    ids = rng.integers(FIRST + 2 * POLAR, VOCABULARY, (count, longest))
    for i, (label, length) in enumerate(zip(labels, lengths, strict=True)):
        places = 1 + rng.choice(length - 2, 3, replace=False)
        other = 1 - label if rng.random() < 0.5 else label
        kinds = np.asarray([label, label, other]) if rng.random() < 0.5 else label[None]
        words = FIRST + POLAR * kinds + rng.integers(0, POLAR, len(kinds))
        ids[i, places[: len(words)]] = words
        ids[i, 0], ids[i, length - 1], ids[i, length:] = BEGIN, END, 0
    ids = ids.astype(np.int32)
    return Examples(Tokens(ids, np.zeros_like(ids), lengths), labels)
