"""The toy architectures: they run, follow from their key, and have generic values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import zoo
from experiments.models.zoo import (
    attention,
    decoding,
    encoders,
    experts,
    language,
    recurrent,
    sequences,
)

pytestmark = pytest.mark.others_code
KEY = jax.random.key(0)


def floating(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [leaf for leaf in leaves if np.issubdtype(leaf.dtype, np.floating)]


def same(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_architectures_run_and_follow_from_their_key(name):
    architecture = zoo.ARCHITECTURES[name](KEY)
    outputs = jax.jit(architecture.fn)(architecture.params, *architecture.inputs)
    assert all(np.isfinite(leaf).all() for leaf in floating(outputs))
    assert all(np.ptp(leaf) > 0 for leaf in floating(outputs))  # they tell inputs apart
    for leaf in floating(architecture.params):
        assert leaf.dtype == np.float32
        assert not np.isin(leaf, [0, 1]).any()

    again = zoo.ARCHITECTURES[name](KEY)
    assert same(architecture.params, again.params)
    assert same(architecture.inputs, again.inputs)


def test_other_keys_give_other_values():
    build = zoo.ARCHITECTURES["VGG (Linen)"]
    params, others = (build(jax.random.key(seed)).params for seed in (0, 1))
    assert not any(map(same, floating(params), floating(others)))


def test_variances_are_positive_and_scales_near_one():
    params = zoo.ARCHITECTURES["ResNet-18 (Linen)"](KEY).params
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if path[-1].key in ("var", "scale"):
            assert 0 < leaf.min() < 1 < leaf.max() < 3


def test_train_mode_updates_its_statistics():
    fn, params, inputs = zoo.ARCHITECTURES["ResNet-18 in train mode (Linen)"](KEY)[:3]
    _, updated = jax.jit(fn)(params, *inputs)
    for old, new in zip(
        jax.tree.leaves(params["batch_stats"]),
        jax.tree.leaves(updated["batch_stats"]),
        strict=True,
    ):
        assert old.shape == new.shape
        assert not np.array_equal(old, new)


@pytest.mark.parametrize("other", [language.llama_library, decoding.cached])
def test_llama_is_one_function_however_it_attends(other):
    llama, other = language.llama(KEY), other(KEY)
    (words,) = other.inputs
    np.testing.assert_allclose(
        jax.jit(llama.fn)(other.params, words),
        jax.jit(other.fn)(other.params, words),
        rtol=1e-4,
        atol=1e-4,
    )


def test_greedy_words_are_the_most_likely_ones():
    llama, greedy = language.llama(KEY), decoding.greedy(KEY)
    words, last = jax.jit(greedy.fn)(greedy.params, *greedy.inputs)
    logits = jax.jit(llama.fn)(greedy.params, words[:, :-1])
    np.testing.assert_array_equal(logits.argmax(-1), words[:, 1:])
    np.testing.assert_allclose(logits[:, -1], last, rtol=1e-4, atol=1e-4)


def test_selective_scan_is_its_recurrence():
    rng = np.random.default_rng(0)
    x, step = rng.normal(size=(2, 2, 5, 4))
    a = -rng.random((4, 3))
    b, c = rng.normal(size=(2, 2, 5, 3))
    state, expected = np.zeros((2, 4, 3)), []
    for t in range(5):
        drive = (step[:, t] * x[:, t])[..., None] * b[:, t, None]
        state = np.exp(step[:, t, :, None] * a) * state + drive
        expected.append(np.einsum("nds,ns->nd", state, c[:, t]))
    found = recurrent.selective_scan(*map(jnp.float32, (x, step, a, b, c)))
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-4)


def test_the_masked_products_of_mamba_2_are_its_recurrence():
    rng = np.random.default_rng(0)
    x, step = rng.normal(size=(2, 5, 3, 4)), rng.random((2, 5, 3))
    a, (b, c) = -rng.random(3), rng.normal(size=(2, 2, 5, 6))
    state, expected = np.zeros((2, 3, 6, 4)), []
    for t in range(5):
        drive = np.einsum("bh,bn,bhp->bhnp", step[:, t], b[:, t], x[:, t])
        state = np.exp(step[:, t] * a)[..., None, None] * state + drive
        expected.append(np.einsum("bn,bhnp->bhp", c[:, t], state))
    found = sequences.ssd(*map(jnp.float32, (x, step, a, b, c)))
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-4)


def test_linear_attention_is_a_sum_over_the_past():
    """With decay d: y_t = r_t (sum over s < t of d^(t-1-s) k_s v_s + bonus k_t v_t)."""
    rng = np.random.default_rng(0)
    r, k, v = rng.normal(size=(3, 2, 5, 3, 4))
    decay, bonus = rng.random((2, 3, 4))
    expected = np.zeros((2, 5, 3, 4))
    for t in range(5):
        for s in range(t + 1):
            weight = bonus if s == t else decay ** (t - 1 - s)
            score = (r[:, t] * weight * k[:, s]).sum(-1, keepdims=True)
            expected[:, t] += score * v[:, s]
    found = sequences.linear_attention(*map(jnp.float32, (r, k, v, decay, bonus)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_sorted_experts_are_the_best_ones():
    """By a product for each example, with the kernels of its expert."""
    fn, params, (x,) = experts.ragged(KEY)[:3]
    p = params["experts"]
    h = x @ params["in"]["kernel"] + params["in"]["bias"]
    gates = jax.nn.softmax(h @ params["router"]["kernel"])
    y = []
    for row, gate in zip(h, gates, strict=True):
        e = int(gate.argmax())
        hidden = jax.nn.gelu(row @ p["up"][e] + p["up_bias"][e])
        y.append(gate[e] * (hidden @ p["down"][e] + p["down_bias"][e]))
    expected = (h + jnp.stack(y)) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(fn(params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [attention.rolling_input, attention.rolling_state])
def test_a_rolling_cache_forgets_its_first_position(build):
    a = build(KEY)
    logits, new = a.fn(a.params, *a.inputs)
    old, new = (a.params["cache"], new["cache"]) if a.stateful else (a.inputs[1], new)
    assert logits.shape == (3, 30)
    for before, after in zip(old, new, strict=True):
        for name in ("keys", "values"):
            np.testing.assert_array_equal(after[name][:, :-1], before[name][:, 1:])
            assert not np.array_equal(after[name][:, -1], before[name][:, -1])


def test_distances_have_the_buckets_of_t5():
    # By hand, for 8 buckets and distances to 16: 0, 1, 2 to 5, and 6 on.
    found = encoders.buckets(np.arange(-8, 9))
    assert found.tolist() == [3, 3, 3, 2, 2, 2, 2, 1, 0, 5, 6, 6, 6, 6, 7, 7, 7]
