"""What a student learns from a teacher, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.loops import distillation, finetune
from experiments.models import bert, encoder
from experiments.tasks import toys

pytestmark = pytest.mark.others_code  # bert adds rows of other ranks
HEADS = 4


def _seen(rng, alive=None):
    """What an encoder of two layers gives: its states, and which tokens are left."""
    states = tuple(rng.normal(size=(3, 5, 4)).astype(np.float32) for _ in range(2))
    if alive is None:
        alive = np.ones((2, 3, 5), bool)
    return encoder.Encoded(states[-1], alive[-1], alive, None, states)


def test_tokens_that_are_left_are_compared():
    rng = np.random.default_rng(0)
    alive = rng.random((2, 3, 5)) < 0.5
    alive[:, :, 0] = True
    ours, theirs = _seen(rng, alive), _seen(rng)
    weights = np.array([1.0, 0.0, 1.0], np.float32)
    expected = 0.0
    for layer in range(2):
        student, teacher = (x.states[layer].astype(float) for x in (ours, theirs))
        each = [
            np.mean((student[b, t] - teacher[b, t]) ** 2)
            for b in (0, 2)
            for t in range(5)
            if alive[layer, b, t]
        ]
        expected += np.mean(each)
    found = distillation.token_loss(ours, theirs, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_outputs_are_compared_as_probabilities_or_numbers():
    logits = np.array([[0.0, 0.0], [1.0, -1.0]])
    taught = np.array([[0.0, np.log(3.0)], [1.0, -1.0]])
    p = 1 / (1 + np.exp(-2.0))  # of the second example's first class
    expected = [np.log(2), -(p * np.log(p) + (1 - p) * np.log(1 - p))]
    found = distillation.output_losses(jnp.asarray(logits), jnp.asarray(taught))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    numbers = distillation.output_losses(jnp.array([[0.5]]), jnp.array([[0.25]]))
    assert numbers.tolist() == [0.0625]


@pytest.fixture(scope="module")
def lesson():
    """Two networks and a batch of sentences."""
    init = lambda seed: bert.with_head(  # noqa: E731
        bert.init(
            jax.random.key(seed),
            vocabulary=toys.VOCABULARY,
            length=32,
            width=16,
            depth=2,
        ),
        jax.random.key(9),
        2,
    )
    batch = next(finetune.batches(toys.sentiment(8, 0), (32,), 8))
    return init(0), init(1), batch


def test_nothing_is_left_to_learn_from_oneself(lesson):
    _, teacher, batch = lesson
    taught = finetune.outputs(teacher, batch, HEADS, finetune.DENSE)

    def loss(params):
        found = finetune.outputs(params, batch, HEADS, finetune.DENSE)
        only_teacher = distillation.Lesson(1.0, 1.0, 0.0)
        return finetune.objective(found, batch, taught, only_teacher)

    grads = jax.grad(loss)(teacher)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-6


def test_objective_is_its_parts(lesson):
    student, teacher, batch = lesson
    found, taught = (
        finetune.outputs(p, batch, HEADS, finetune.DENSE) for p in (student, teacher)
    )
    weights = distillation.Lesson(0.25, 2.0, 0.0)
    total = finetune.objective(found, batch, taught, weights)
    hard = finetune.losses(found[0], batch.labels).mean()
    soft = distillation.output_losses(found[0], taught[0]).mean()
    tokens = distillation.token_loss(found[1], taught[1], batch.weights)
    np.testing.assert_allclose(total, 0.75 * hard + 0.25 * soft + 2 * tokens, rtol=1e-6)
    np.testing.assert_allclose(
        finetune.objective(found, batch, None, weights), hard, rtol=1e-6
    )
    assert float(tokens) > 0.1


@pytest.mark.parametrize("rows", [2, 7, 16])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_words_are_those_of_another_sentence(rows, share):
    rng = np.random.default_rng(rows)
    ids = rng.integers(0, 9, (rows, 11))
    tried = [distillation.exchange(ids, rng, share, 3) for _ in range(200)]
    owns = np.asarray([own for _, own in tried])
    assert abs(owns.mean() - 0.5) < 0.1
    given = 0.0
    for found, own in tried:
        assert (found[own] == ids[own]).all()
        assert ((found < 3) == (ids < 3)).all()  # marks and padding stay
        assert (found[ids < 3] == ids[ids < 3]).all()
        donors = [
            ((found == ids) | (found == np.roll(ids, shift, axis=0))).all()
            for shift in range(1, rows)
        ]
        assert any(donors)
        given += (found != ids).sum()
    assert (given > 0) == (share > 0)


def test_only_the_teacher_speaks_of_exchanged_words(lesson):
    student, teacher, batch = lesson
    batch = batch._replace(own=np.arange(8) < 3)
    found, taught = (
        finetune.outputs(p, batch, HEADS, finetune.DENSE) for p in (student, teacher)
    )
    weights = distillation.Lesson(0.25, 0.0, 0.3)
    hard = np.asarray(finetune.losses(found[0], batch.labels))
    soft = np.asarray(distillation.output_losses(found[0], taught[0]))
    each = [0.75 * hard[i] + 0.25 * soft[i] if i < 3 else soft[i] for i in range(8)]
    total = finetune.objective(found, batch, taught, weights)
    np.testing.assert_allclose(total, np.mean(each), rtol=1e-6)


def test_batches_go_on_round_after_round():
    small = toys.sentiment(40, 0)
    found = finetune.endless(small, (32,), 8, np.random.default_rng(0))
    rounds = [np.concatenate([next(found).rows for _ in range(5)]) for _ in range(3)]
    assert all(sorted(rows) == list(range(40)) for rows in rounds)
    assert len({tuple(rows) for rows in rounds}) == 3


def test_lessons_say_which_sentences_are_their_own():
    small = toys.sentiment(40, 0)
    batches = finetune.batches(small, (32,), 8, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    found = list(finetune.lessons(batches, rng, 0.3, toys.FIRST))
    assert len(found) == 5
    assert 0 < np.mean([batch.own.mean() for batch in found]) < 1
    for batch in found:
        same = (batch.ids == small.tokens.ids[batch.rows]).all(1)
        assert same[batch.own].all()
        assert not same[~batch.own].all()  # or no sentence has another word
        assert (batch.labels == small.labels[batch.rows]).all()
