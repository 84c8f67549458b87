"""Choices, scores, schedules and heads: by hand, by identity, by a stable sort."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import attention_oracle as oracle

import jprune as jp
from jprune import attention
from jprune import attention as ja
from jprune.attention import _choose, _heads, _importance

FEW = [0.0, -0.0, 1.0, 2.0, -1.0, 1e-42, np.inf, -np.inf]


@functools.partial(jax.jit, static_argnums=(1,))
def best(scores, count, valid, protected):
    """By indices, and without flags by a mask."""
    found = ja.top_indices(scores, count, valid=valid, protected=protected)
    return found, attention.top_mask(attention.sort_keys(scores), count)


@hypothesis.settings(max_examples=120, deadline=None)
@hypothesis.given(data=st.data(), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_keep_top_is_a_stable_sort(data, dtype):
    n = data.draw(st.sampled_from([1, 2, 9]))
    scores = np.array(data.draw(st.lists(st.sampled_from(FEW), min_size=n, max_size=n)))
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    valid, protected = (np.array(data.draw(flags)) for _ in range(2))
    count = data.draw(st.sampled_from(sorted({1, (n + 1) // 2, n})))
    scores = scores.astype(jnp.dtype(dtype))
    rounded = scores.astype(np.float32)
    found, mask = best(scores, count, valid, protected)
    assert found.tolist() == oracle.keep(rounded, count, valid, protected)
    assert np.flatnonzero(mask).tolist() == oracle.keep(rounded, count)


def test_a_nan_is_kept_where_it_shows():
    scores = jnp.array([1.0, jnp.nan, jnp.inf, 0.0])
    assert ja.top_indices(scores, 1).tolist() == [1]
    assert ja.top_indices(scores, 2, protected=jnp.arange(4) == 3).tolist() == [1, 3]


def test_a_traced_count_and_counts_for_each_row():
    keys = attention.sort_keys(jnp.tile(jnp.array([3.0, 1.0, 2.0, 3.0]), (5, 1)))
    counts = jnp.array([0, 1, 2, 3, 9], jnp.int32)
    found = jax.jit(attention.top_mask)(keys, counts)
    expected = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(found, expected)


by_pairs, by_bits = map(jax.jit, (_choose.best_by_pairs, _choose.best_by_bits))
places_by_pairs = jax.jit(_choose._places_by_pairs, static_argnums=(1,))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_pairs_say_what_bits_say(data):
    """What a GPU computes: the same choice, the same places."""
    n = data.draw(st.sampled_from([1, 3, 8]))
    row = st.lists(st.sampled_from([0, 1, 5, 2**32 - 1]), min_size=n, max_size=n)
    keys = np.array(data.draw(st.tuples(row, row)), np.uint32)
    need = np.array(data.draw(st.tuples(*[st.integers(0, n)] * 2)), np.int32)
    found = np.asarray(by_pairs(keys, need))
    np.testing.assert_array_equal(found, by_bits(keys, need))
    for mask, row, count in zip(found, keys, need, strict=True):
        wanted = oracle.keep(row.astype(float), int(count))
        assert np.flatnonzero(mask).tolist() == wanted
        if count:
            assert places_by_pairs(mask, int(count)).tolist() == wanted


@pytest.mark.parametrize(("tokens", "loops"), [(32, False), (4096, True)])
def test_a_gpu_compares_pairs_where_rows_are_short(tokens, loops):
    traced = jax.jit(lambda x: ja.top_indices(x, 9)).trace(jnp.zeros((16, tokens)))
    on_gpu = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("while" in on_gpu) == loops
    assert "while" in traced.lower().as_text()


@pytest.mark.parametrize("count", [0, 6, -1])
def test_a_count_that_there_is_not(count):
    with pytest.raises(jp.PruningError, match=rf"keep {count} of 5"):
        ja.top_indices(jnp.zeros(5), count)
    with pytest.raises(jp.PruningError, match="int32"):
        ja.top_indices(jnp.zeros(5, jnp.int32), 2)


def test_taking_and_putting_back_along_any_axis():
    x = jnp.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4)
    ids = jnp.array([[0, 3], [1, 4]])
    taken = ja.take({"x": x, "m": x[:, 0, 0]}, jnp.array([[0, 3], [1, 2]]), axis=0)
    np.testing.assert_array_equal(taken["m"], [[0, 3], [61, 62]])
    by_token = ja.take(x, ids, axis=1)
    np.testing.assert_array_equal(by_token[1, :, 1], x[1, :, 4])
    rows = jnp.swapaxes(x, 1, 2)
    back = _choose.put(jnp.zeros_like(rows), ids, ja.take(rows, ids))
    for b, i in itertools.product(range(2), range(5)):
        kept = i in ids[b].tolist()
        np.testing.assert_array_equal(back[b, i], rows[b, i] if kept else 0)


def test_scores_of_padding_and_of_masked_keys_do_not_count():
    probs = jnp.array([[[0.5, 0.25, 0.25]] * 2 + [[9.0, 9.0, 9.0]]])
    real = jnp.array([True, True, False])
    assert ja.token_importance(probs, real, real).tolist() == [1, 0.5, 0]
    visible = jnp.tri(3, dtype=bool)
    scores = ja.token_importance(probs, real, real, visible=visible)
    assert scores.tolist() == [0.5, 0.5, 0]
    low = jnp.ones((4, 300, 1), jnp.bfloat16)  # whose own sum would stop at 256
    assert ja.token_importance(low).tolist() == [1200]
    assert ja.head_importance(-low).tolist() == [300] * 4


@pytest.mark.parametrize("shape", [(1, 7), (3, 12, 40), (2, 0, 2, 9), (0, 4, 5)])
def test_a_cpu_sums_by_heads_what_others_sum_at_once(shape):
    *batch, heads, n = shape
    rng = np.random.default_rng(0)
    real = rng.random((*batch, n)) < 0.6
    probs = rng.random((*batch, heads, n, 11)).astype(np.float32)
    # What padding looks at is not even looked at.
    probs = np.where(real[..., None, :, None], probs, np.nan)
    wanted = np.nansum(probs.astype(np.float64), axis=(-3, -2))
    for form in (_importance._sum_by_heads, _importance._sum_at_once):
        found = form(jnp.asarray(probs), jnp.asarray(real[..., None]))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_no_form_of_the_scores_makes_a_cpu_write_what_it_masks():
    probs, real = jnp.ones((12, 64, 64)), jnp.ones(64, bool)
    traced = jax.jit(ja.token_importance).trace(probs, real)
    whole = "tensor<12x64x64xi1>"
    assert whole not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert whole in traced.lower(lowering_platforms=("cuda",)).as_text()


# Schedules


def test_the_paper_s_ramp():
    counts = ja.ramp(12, 1000, 0.5, start=0.8, multiple=1)
    # 15 % of 12 are 1.8: two layers are whole; the others go from 0.8 to 0.2.
    assert counts[:3] == (1000, 1000, 800)
    assert counts[-1] == 200
    assert abs(np.mean(counts[2:]) - 500) < 1
    assert ja.ramp(12, 12, 0.75, front=0.3, multiple=1)[:4] == (12,) * 4
    assert all(c % 8 == 0 for c in ja.ramp(12, 512, 0.6)[2:])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    layers=st.integers(1, 40),
    total=st.integers(1, 2000),
    average=st.floats(0.51, 1),
    front=st.floats(0, 0.99),
    multiple=st.sampled_from([1, 8, 16]),
)
def test_ramps_never_grow(layers, total, average, front, multiple):
    counts = ja.ramp(layers, total, average, front=front, multiple=multiple)
    made = ja.schedule(total, counts, (4,) * layers)
    assert made.values == made.entering
    assert 1 <= min(counts) <= max(counts) <= total
    assert hash(made) == hash(ja.schedule(total, list(counts), [4] * layers))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ja.ramp(12, 128, 0.4), r"2 average - start = -0\.19"),
        (lambda: ja.ramp(12, 128, 0.5, start=0.4), "start=0.4"),
        (lambda: ja.from_ratios([0.5, 0.6], 10), r"\[0\.5, 0\.6\]"),
        (lambda: ja.from_ratios([0.5, 0.0], 10), r"\[0\.5, 0\.0\]"),
        (lambda: ja.ltp_ramp(3, 10, 0.5), "than the 3 that keep all"),
        (lambda: ja.schedule(8, (8, 9), (2, 2)), r"tokens .* \(8, 8, 9\)"),
        (lambda: ja.schedule(8, (8, 8), (2, 3)), r"heads .* \(2, 3\)"),
        (lambda: ja.schedule(8, (8,), (2, 2)), "each layer"),
        (lambda: ja.schedule(8, (4, 4), (2, 2), (8, 5)), r"\(8, 5\)"),
        (lambda: ja.schedule(8, (8, 0), (2, 2)), r"\(8, 8, 0\)"),
        (lambda: ja.multiply_adds(ja.dense(1, 8, 3), 64, 64), "3 heads"),
    ],
)
def test_schedules_that_cannot_be_meant(make, message):
    with pytest.raises(jp.PruningError, match=message):
        make()


def test_multiply_adds_are_those_of_the_products():
    """Of an encoder that is written down, as its jaxpr counts them."""
    from jprune import graph as jg

    plan = ja.schedule(24, (24, 16, 8), (4, 4, 2), (24, 24, 16))
    weights = attention.HeadWeights(
        *(jnp.ones((32, 4, 8)),) * 3, output=jnp.ones((4, 8, 32))
    )
    params = {"a": weights, "u": jnp.ones((32, 48)), "d": jnp.ones((48, 32))}

    def finish(p, x, out, ids):
        w = p["a"] if ids.shape[0] == 4 else ja.take_heads(p["a"], ids)
        x = x + ja.combine(w, out)
        return x + jnp.tanh(x @ p["u"]) @ p["d"]

    def model(layers, x):
        mix = lambda p, *rest: ja.cascade.mix_heads(p["a"], *rest)  # noqa: E731
        state = ja.cascade.start(x, 4)
        return ja.cascade.encode(state, layers, plan, mix, finish).x

    graph = jg.trace(model, [params] * 3, jnp.ones((24, 32)))
    assert sum(ja.multiply_adds(plan, 32, 48)) == jg.multiply_adds(graph)


def test_multiply_adds_with_groups_and_with_soft_counts():
    plan = ja.schedule(16, (16, 8), (4, 2))
    few = ja.multiply_adds(plan, 32, 64, heads_per_kv=2)
    # Sixteen tokens, 32 channels, queries of 4 and 2 heads, keys and values of half.
    assert few.projections == 16 * 32 * 8 * (4 + 4 + 2 + 2)
    soft = ja.Schedule(16, (16.0, 8.0), (4, 2), (16.0, 16.0))
    assert tuple(ja.multiply_adds(soft, 32, 64, heads_per_kv=2)) == tuple(few)

    def cost(kept):
        soft = ja.Schedule(16, (kept, kept), (4, 4), (16, kept))
        return sum(ja.multiply_adds(soft, 32, 64))

    # n^2 of Q K^T and of P V in the second layer; all else there is linear.
    slope = 2 * (32 * 32 + 2 * 32 * 64) + 3 * 32 * 32 + 2 * (2 * 8 * 32)
    assert jax.grad(cost)(8.0) == slope


# Heads


def test_removing_heads_is_masking_them():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    w = attention.HeadWeights(
        draw(16, 6, 4),
        draw(16, 3, 4),
        draw(16, 3, 4),
        draw(6, 4, 16),
        draw(6, 4),
        draw(3, 4),
        draw(3, 4),
        draw(16),
    )
    x, ids = draw(2, 5, 16), jnp.array([0, 2])
    less = ja.take_heads(w, ids)
    small = ja.combine(less, ja.attend(*ja.project(less, x))[0])
    alive = jnp.isin(jnp.arange(3), ids)
    whole = ja.mask_heads(ja.attend(*ja.project(w, x))[0], alive)
    np.testing.assert_allclose(small, ja.combine(w, whole), atol=1e-4)
    # Query heads 0, 1 share key head 0, and 4, 5 share key head 2.
    np.testing.assert_array_equal(less.query, w.query[:, jnp.array([0, 1, 4, 5])])
    assert _heads.sum_per_kv_head(jnp.arange(6.0), 3).tolist() == [1, 5, 9]
    with pytest.raises(jp.PruningError, match="6 query heads are not a multiple of 4"):
        _heads.sum_per_kv_head(jnp.arange(6.0), 4)


def test_each_sample_keeps_its_own_heads_and_none_comes_back():
    scores = jnp.array([[3.0, 1.0, 2.0], [1.0, 3.0, 9.0]])
    alive = ja.keep_heads(scores, 2)
    assert alive.tolist() == [[True, False, True], [False, True, True]]
    later = ja.keep_heads(jnp.array([[0.0, 9.0, 1.0]] * 2), 2, alive)
    assert later.tolist() == alive.tolist()


def test_layers_are_joined_only_where_nothing_changes():
    plan = attention.schedule(8, (8, 8, 8, 4, 4, 4), (2, 2, 2, 2, 2, 1))
    assert ja.cascade._runs(plan, True) == [[0, 1, 2], [3], [4], [5]]
    assert ja.cascade._runs(plan, False) == [[i] for i in range(6)]
