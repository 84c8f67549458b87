"""Distillation of the dense network into the pruned one.

The pruned network learns the outputs of the dense one, and its tokens after each layer
(TinyBERT, Jiao et al., 2019, arXiv:1909.10351, equations 8 and 10): with pruned and
quantized attention, each layer gets its target directly. Both networks have the same
width, so tokens are compared without a projection; pruned tokens are not compared.

Networks soon fit the train sentences of small tasks, and the teacher then says little
more about these than the labels. So it is also evaluated on augmented sentences, as in
TinyBERT: here, some words are exchanged with those of another sentence of the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.models import encoder


class Lesson(NamedTuple):
    """Weights of the distillation.

    Attributes:
      outputs: weight of the teacher's outputs in the loss, in [0, 1]; the labels have
        the remaining weight.
      tokens: weight of the token loss, which is added.
      exchanged: share of words that are exchanged in half of the sentences; for these
        only the teacher's outputs count.
    """

    outputs: float
    tokens: float
    exchanged: float


def output_losses(logits: jax.Array, taught: jax.Array) -> jax.Array:
    """Returns the distance of each example's outputs from the teacher's.

    Args:
      logits: `(batch, outputs)`, outputs of the student.
      taught: outputs of the teacher; same shape.

    Returns:
      `(batch,)`: the cross-entropy with the teacher's probabilities, or the squared
      error for a single output (a regression).
    """
    if logits.shape[-1] == 1:
        return jnp.square(logits - taught)[:, 0]
    return optax.losses.softmax_cross_entropy(logits, jax.nn.softmax(taught))


def token_loss(
    found: encoder.Encoded, taught: encoder.Encoded, weights: jax.Array
) -> jax.Array:
    """Returns the mean squared difference of tokens, summed over layers.

    Args:
      found: result of the student, with all slots (`slots=None`).
      taught: result of the teacher, with all slots.
      weights: `(batch,)`, 0 for examples that do not count.
    """
    total = jnp.zeros(())
    for ours, theirs, left in zip(
        found.states, taught.states, found.alive, strict=True
    ):
        weight = left * weights[:, None]
        each = jnp.square(ours - theirs).mean(-1)
        total = total + (each * weight).sum() / weight.sum()
    return total


def exchange(
    ids: np.ndarray, rng: np.random.Generator, share: float, first_word: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exchanges words between sentences of a batch.

    Args:
      ids: `(batch, width)`, tokens of at least two sentences.
      rng: random generator; it draws half of the sentences, the words to exchange,
        and the row offset of the sentence that the new words come from.
      share: share of words to exchange, where both sentences have a word.
      first_word: smallest token that is a word; smaller ones are padding and marks.

    Returns:
      The tokens `(batch, width)`, and a mask `(batch,)`, which is False for sentences
      with exchanged words, whose labels are no longer valid.
    """
    rows = len(ids)
    other = np.roll(ids, rng.integers(1, rows), axis=0)
    own = rng.random(rows) < 0.5
    chosen = (rng.random(ids.shape) < share) & ~own[:, None]
    words = (ids >= first_word) & (other >= first_word)
    return np.where(chosen & words, other, ids), own
