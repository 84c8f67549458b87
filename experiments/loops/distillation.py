"""What a pruned network learns from the dense one, besides the labels.

Its outputs, and its tokens after each layer (TinyBERT, Jiao et al., 2019,
arXiv:1909.10351, equations 8 and 10): where attention is cut and rounded, each layer
is told at once what it should have said. Both networks are of one width, so tokens are
compared as they are; a token that was pruned is compared no more.

Small tasks are soon known by heart, and then the teacher says little more about them
than the labels. So it is also asked about sentences that nobody wrote, as TinyBERT's
is: here some words are those of another sentence of the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.models import encoder


class Lesson(NamedTuple):
    """How much a teacher counts.

    Attributes:
      outputs: The share of its outputs in the loss, 0 to 1; the labels have the rest.
      tokens: The weight of its tokens, beside that.
      exchanged: The share of words that are exchanged in half of the sentences, of
        which only the teacher speaks.
    """

    outputs: float
    tokens: float
    exchanged: float


def output_losses(logits: jax.Array, taught: jax.Array) -> jax.Array:
    """Returns how far each example's outputs are from the teacher's.

    Args:
      logits: `(batch, outputs)`, of the student.
      taught: The same shape, of the teacher.

    Returns:
      `(batch,)`: the cross-entropy to the teacher's probabilities, or the squared
      error where there is one output, a number.
    """
    if logits.shape[-1] == 1:
        return jnp.square(logits - taught)[:, 0]
    return optax.losses.softmax_cross_entropy(logits, jax.nn.softmax(taught))


def token_loss(
    found: encoder.Encoded, taught: encoder.Encoded, weights: jax.Array
) -> jax.Array:
    """Returns the mean squared difference of tokens, summed over layers.

    Args:
      found: Of the student, with all slots (`slots=None`).
      taught: Of the teacher, likewise.
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
    """Returns sentences with words of one another, and which are still their own.

    Args:
      ids: `(batch, width)`, tokens, two sentences at least.
      rng: Draws the half of the sentences, their words, and whose words they get:
        those at the same places of the sentence that many rows above.
      share: Of words to exchange, where both sentences have one.
      first_word: The least token that is a word; below are padding and marks.

    Returns:
      The tokens `(batch, width)`, and `(batch,)`: False where words may have been
      exchanged, so that the label holds no more.
    """
    rows = len(ids)
    other = np.roll(ids, rng.integers(1, rows), axis=0)
    own = rng.random(rows) < 0.5
    chosen = (rng.random(ids.shape) < share) & ~own[:, None]
    words = (ids >= first_word) & (other >= first_word)
    return np.where(chosen & words, other, ids), own
