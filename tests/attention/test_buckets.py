"""LTP's layers by size against float64 on each sentence's own tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.exact import assert_rows_close

import jprune as jp
from jprune import attention as ja
from jprune.attention import buckets, cascade

LENGTH, HIDDEN, HEADS, DIM, DEPTH = 12, 8, 2, 4, 3
THRESHOLDS = (0.06, 0.09, 0.12)
SIZES = (4, 8, LENGTH)


def _inputs(seed, batch=3):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    layers = [
        {
            "q": 2 * draw(HIDDEN, HEADS, DIM),
            "k": draw(HIDDEN, HEADS, DIM),
            "v": draw(HIDDEN, HEADS, DIM),
            "o": draw(HEADS, DIM, HIDDEN) / 4,
            "up": draw(HIDDEN, HIDDEN) / 2,
        }
        for _ in range(DEPTH)
    ]
    lengths = rng.integers(1, LENGTH + 1, batch)
    return layers, draw(batch, LENGTH, HIDDEN), lengths


def _ours(layers, x, lengths, sizes=SIZES, thresholds=THRESHOLDS, extra=0.0):
    valid = jnp.arange(LENGTH)[None] < jnp.asarray(lengths)[:, None]
    first = jnp.broadcast_to(jnp.arange(LENGTH)[None] == 0, valid.shape)
    state = cascade.start(x, HEADS, valid=valid, protected=first)
    for layer, threshold in zip(layers, thresholds, strict=True):
        weights = ja.HeadWeights(*(layer[n] for n in "qkvo"))

        def mix(x, valid, ids, weights=weights):
            return cascade.mix_heads(weights, x, valid, ids)

        def finish(x, outputs, ids, weights=weights, layer=layer):
            x = x + ja.combine(weights, outputs)
            return x + jnp.tanh(x @ layer["up"]) + extra * x.shape[-2]

        state = buckets.threshold_layer(state, mix, finish, threshold, sizes)
    return state


def _oracle(layers, x, length):
    """One sentence, its own tokens alone: returns them, and where they stood."""
    x, places = np.asarray(x, np.float64)[:length], np.arange(length)
    for layer, threshold in zip(layers, THRESHOLDS, strict=True):
        q, k, v = (np.einsum("td,dhe->hte", x, layer[n]) for n in "qkv")
        logits = q @ k.swapaxes(1, 2) / np.sqrt(DIM)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        probs = e / e.sum(-1, keepdims=True)
        stays = (probs.mean((0, 1)) > threshold) | (places == 0)
        said = np.einsum("hte,hed->td", probs @ v, layer["o"])
        x, places = (x + said)[stays], places[stays]
        x = x + np.tanh(x @ layer["up"])
    return x, places


def _narrow(layers, x):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (layers, x))


@pytest.mark.parametrize("seed", range(8))
def test_tokens_that_are_left_are_those_of_the_sentence_alone(seed):
    layers, x, lengths = _inputs(seed)
    state = _ours(*_narrow(layers, x), lengths)
    gone = 0
    for i, length in enumerate(lengths):
        want, places = _oracle(layers, x[i], length)
        n = len(places)
        gone += length - n
        assert state.valid[i].tolist() == [True] * n + [False] * (LENGTH - n)
        np.testing.assert_array_equal(state.positions[i, :n], places)
        np.testing.assert_allclose(state.x[i, :n], want, rtol=2e-4, atol=2e-4)
    assert gone > 0


def test_the_smallest_size_that_holds_all_sentences_is_what_runs():
    layers, x, _ = _inputs(3)
    layers, x = _narrow(layers, x)

    def size(lengths, sizes):
        """What a layer that prunes nothing adds to each token: its size."""
        run = [
            _ours(layers[:1], x, lengths, sizes, thresholds=(0.0,), extra=extra)
            for extra in (1.0, 0.0)
        ]
        return float(jnp.round(run[0].x - run[1].x)[0, 0, 0])

    assert size([1, 4, 2], SIZES) == 4
    assert size([1, 5, 2], SIZES) == 8
    assert size([1, 5, LENGTH], SIZES) == LENGTH
    assert size([1, 5, 2], (LENGTH,)) == LENGTH


def test_results_do_not_depend_on_sizes_and_one_program_serves_all_inputs():
    traced = []

    @jax.jit
    def run(layers, x, lengths, thresholds):
        traced.append(None)
        return _ours(layers, x, lengths, thresholds=thresholds)

    for seed, scale in itertools.product(range(4), (0.5, 1.0)):
        layers, x, lengths = _inputs(seed)
        layers, x = _narrow(layers, x)
        thresholds = tuple(scale * t for t in THRESHOLDS)
        found = run(layers, x, lengths, thresholds)
        whole = _ours(layers, x, lengths, sizes=(LENGTH,), thresholds=thresholds)
        np.testing.assert_array_equal(found.valid, whole.valid)
        rows = np.asarray(found.valid)
        np.testing.assert_array_equal(found.positions[rows], whole.positions[rows])
        assert_rows_close(found.x[rows], whole.x[rows], 1e-5)
    assert len(traced) == 1


def test_vmap_an_empty_batch_and_sizes_that_do_not_fit():
    layers, x, lengths = _inputs(5)
    layers, x = _narrow(layers, x)
    both = jax.vmap(lambda x, n: _ours(layers, x, n))(
        jnp.stack([x, 2 * x]), jnp.stack([lengths, lengths])
    )
    alone = _ours(layers, 2 * x, lengths)
    rows = np.asarray(alone.valid)
    np.testing.assert_array_equal(both.valid[1], rows)
    assert_rows_close(both.x[1][rows], alone.x[rows], 1e-5)
    assert _ours(layers, x[:0], lengths[:0]).x.shape == (0, LENGTH, HIDDEN)
    for sizes in ((), (4, 8), (8, 4, LENGTH), (0, LENGTH)):
        with pytest.raises(jp.PruningError, match="do not ascend"):
            _ours(layers, x, lengths, sizes)
