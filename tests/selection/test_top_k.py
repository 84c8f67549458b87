"""Exact top-k against sorting: NumPy, float64, ties to the lower index."""

import collections
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import experimental
from jax.experimental import checkify
from support import host, oracles
from support.oracles import (
    BF16,
    FAMILIES,
    TREES,
    draw,
    flat,
    is_nan,
    make_tree,
    values_of,
)

import jprune as jp
from jprune import selection
from jprune._core import ordering


def _run(link, scores):
    return link.update(scores, link.init(scores), scores)[0]


@pytest.mark.parametrize("trees", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_random_trees_equal_the_sorting_oracle(trees):
    seen = collections.Counter()
    names = sorted(TREES) if host.FLOAT16 else sorted({*TREES} - {"f16", "floats"})

    @settings(
        max_examples=trees,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        name=st.sampled_from(names),
        family=st.sampled_from(FAMILIES),
        seed=st.integers(0, 2**32 - 1),
        share=st.sampled_from([0.0, 1.0, None, None, None]),
    )
    def check(name, family, seed, share):
        tree = make_tree(name, seed, family)
        values, rng = values_of(tree), np.random.default_rng(seed + 1)
        n = values.size
        k = int(rng.integers(-1, n + 2)) if share is None else round(share * n)
        expected = oracles.top_k(values, min(max(k, 0), n))
        np.testing.assert_array_equal(flat(selection.top_k(tree, k)), expected)
        seen["trees"] += 1
        seen[f"k = {'none' if k <= 0 else 'all' if k >= n else 'some'}"] += 1
        if seed % 10 == 0:
            floors = {key: int(rng.integers(0, x.size + 1)) for key, x in tree.items()}
            found = selection.top_k_with_floors(tree, k, floors)
            expected = oracles.with_floors(tree, k, floors)
            np.testing.assert_array_equal(flat(found), expected)
            assert flat(found).sum() == max(min(max(k, 0), n), sum(floors.values()))
            alone = flat(selection.top_k_per_leaf(tree, floors))
            np.testing.assert_array_equal(alone, oracles.per_leaf(tree, floors))
            counts = jax.tree.leaves(selection.count_top_k(tree, k))
            masks = jax.tree.leaves(selection.top_k(tree, k))
            assert [int(c) for c in counts] == [int(m.sum()) for m in masks]
            seen["floors"] += 1
        if seed % 10 == 1:
            removed = Fraction(int(rng.integers(0, 65)), 64)  # exact in float64
            found = _run(jp.keep_top(float(removed), scope="global"), tree)
            expected = oracles.top_k(values, n - round(n * removed))
            np.testing.assert_array_equal(flat(found), expected)
            seen["global"] += 1
        if seed % 10 == 2:
            removed = Fraction(int(rng.integers(0, 65)), 64)
            found = _run(jp.keep_top(float(removed)), tree)
            assert flat(found).sum() == n - round(n * removed)
            for key, x in tree.items():
                kept = int(np.sum(found[key]))
                assert abs(kept - x.size * (1 - removed)) < 1
                alone = oracles.top_k(np.ravel(x).astype(float), kept)
                np.testing.assert_array_equal(np.ravel(found[key]), alone)
            seen["leaf"] += 1

    check()
    assert seen["trees"] >= trees
    assert min(seen.values()) >= 0.06 * trees, seen


def _assert_same_order(values, bits):
    order = np.argsort(values, kind="stable")
    values, bits = values[order], bits[order]
    np.testing.assert_array_equal(bits[1:] > bits[:-1], values[1:] > values[:-1])
    np.testing.assert_array_equal(bits[1:] == bits[:-1], values[1:] == values[:-1])


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_the_order_of_all_16_bit_floats(dtype):
    patterns = np.arange(2**16, dtype=np.uint16)
    bits = np.asarray(ordering.ordered_bits(jnp.asarray(patterns.view(dtype))))
    assert bits.dtype == np.int16
    nan = is_nan(patterns, dtype)
    assert bits[nan].min() > bits[~nan].max()
    values = patterns[~nan].view(dtype).astype(np.float64)
    _assert_same_order(values, bits[~nan])


@pytest.mark.parametrize(
    "dtype", [np.float32, np.int16, np.uint16, np.int32, np.uint32]
)
def test_the_order_of_wider_floats_and_of_integers(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([draw(rng, 50_000, dtype, f) for f in ("bits", "special")])
    bits = np.asarray(ordering.ordered_bits(jnp.asarray(values)))
    _assert_same_order(values.astype(np.float64), bits)


@settings(deadline=None, derandomize=True, database=None, max_examples=500)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0]),
        min_size=8,
        max_size=8,
    )
)
def test_the_order_of_floats_that_are_drawn_to_be_hard(numbers):
    values = np.array(numbers, np.float32)
    bits = np.asarray(ordering.ordered_bits(values))
    nan = np.asarray(ordering.ordered_bits(np.float32([np.nan, -np.nan])))
    _assert_same_order(values.astype(np.float64), bits)
    most = ordering.greatest_number(np.dtype(np.float32))
    assert bits.max() <= most < nan.min() == nan.max()


def test_double_precision():
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64
    rng = np.random.default_rng(0)
    x = np.where(rng.random(100) < 0.5, 1.0, 1.0 + 2.0**-50) * rng.choice([-1, 1], 100)
    big = rng.integers(0, 2**64, 30, np.uint64, endpoint=False)
    with enable(True):
        for k in (0, 1, 13, 50, 100):
            found = selection.top_k({"a": x[:60], "b": x[60:]}, k)
            np.testing.assert_array_equal(flat(found), oracles.top_k(x, k))
        found = np.asarray(selection.top_k(big, 11))
        np.testing.assert_array_equal(np.sort(big)[-11:], np.sort(big[found]))


SIZES = [0, 1, 2, 3, 7, 1000, 4096, 10**6 + 1, 2**24 + 1, 2**29 - 3, 2**31 - 1]


def _sparsities():
    rng = np.random.default_rng(0)
    edges = [0, 1, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1e-30, 1e-45]
    edges += [2.0**-31, 2.0**-32, 1.5 * 2.0**-31, 2.0**-40, 2.0**-41]  # halves, too
    tenths = [0.1, 0.2, 0.25, 0.3, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
    return np.array([*edges, *tenths, *rng.random(200), *rng.random(50) ** 8], "f4")


@pytest.mark.parametrize("size", SIZES)
def test_kept_count_against_exact_fractions(size):
    sparsities = _sparsities()
    exact = [size * Fraction(float(s)) for s in sparsities]
    known = [selection.kept_count(size, s) for s in sparsities]
    assert all(isinstance(kept, int) for kept in known)
    if size < 2**29:  # the product has at most 53 bits: float64 holds it
        assert known == [size - round(e) for e in exact]
    traced = jax.jit(lambda s: selection.kept_count(size, s))(sparsities)
    eager = selection.kept_count(size, jnp.asarray(sparsities))
    np.testing.assert_array_equal(traced, eager)
    assert traced.dtype == jnp.int32
    assert traced.tolist() == [size - round(e) for e in exact]
    for kept, e in zip(known, exact, strict=True):
        assert 0 <= kept <= size
        assert abs(size - kept - e) <= 0.5 + 1e-6


def test_kept_count_refuses_and_clips():
    for wrong in (-0.1, 1.5, float("nan"), np.float32(2), "0.5", True, None, 10**400):
        with pytest.raises(jp.PruningError, match=r"in \[0, 1\]; got"):
            selection.kept_count(10, wrong)
    for wrong in (-0.1, 1.5, jnp.nan, jnp.bfloat16(1.5), 7):
        with pytest.raises(jp.PruningError, match=r"in \[0, 1\]; got"):
            selection.kept_count(10, jnp.asarray(wrong))
    with pytest.raises(jp.PruningError, match=r"in \[0, 1\]; got .*bool"):
        selection.kept_count(10, jnp.array(True))
    rounding = jnp.array([-1e-7, 1 + 1.2e-7])  # of a schedule that ends at 0 or 1
    np.testing.assert_array_equal(selection.kept_count(10, rounding), [10, 0])


@jax.jit
def _halves(s):
    scores = {"a": jnp.arange(1.0, 5), "b": jnp.arange(1.0, 3)}
    links = jp.keep_top(s), jp.keep_top(s, scope="global"), jp.keep_top(lambda _: s)
    return [_run(link, scores) for link in links]


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan"), float("inf"), 1.001])
def test_a_traced_sparsity_out_of_range_is_reported_and_prunes_nothing(wrong):
    for m in jax.tree.leaves(_halves(wrong)):
        assert m.all()
    both = jax.vmap(_halves)(jnp.array([0.5, wrong]))
    for m, half in zip(*map(jax.tree.leaves, (both, _halves(0.5))), strict=True):
        assert m[0].tolist() == half.tolist()
        assert m[1].all()
    checked = checkify.checkify(_halves)
    error, _ = checked(jnp.float32(wrong))
    assert "a number in [0, 1]; got" in error.get()
    error, masks = checked(jnp.float32(0.5))
    assert error.get() is None
    assert masks[0]["a"].tolist() == [False, False, True, True]


def test_traced_sparsities_have_gradients_and_are_checked_in_training():
    """Of weights through a mask of traced sparsity, with and without `checkify`."""

    def loss(w, s):
        params = {"kernel": w}
        return jnp.sum(jp.prune(params, jp.recipes.magnitude(s))[0]["kernel"])

    w = jnp.array([[1.0, 2.0]])
    assert jax.jit(jax.grad(loss))(w, 0.5).tolist() == [[0, 1]]
    assert jax.jit(jax.grad(loss))(w, 1.5).tolist() == [[1, 1]]
    tx = jp.sparsify(optax.sgd(0.1), jp.recipes.magnitude(lambda t: 1 + jnp.float32(t)))
    step = checkify.checkify(jax.jit(tx.update))
    params = {"kernel": w}
    error, (_, state) = step(params, tx.init(params), params)
    assert error.get() is None  # sparsity 1
    error, _ = step(params, state, params)
    assert "got 2.0" in error.get()


def test_one_trace_for_all_k_and_vmap():
    tree, traces = make_tree("f32", 5, "tied"), []

    @jax.jit
    def masks(k):
        traces.append(None)
        return selection.top_k(tree, k)

    counts = np.arange(-1, 22)
    one_by_one = [flat(masks(k)) for k in counts]
    together = jax.vmap(lambda k: selection.top_k(tree, k))(counts)
    assert len(traces) == 1
    for i, (k, alone) in enumerate(zip(counts, one_by_one, strict=True)):
        expected = oracles.top_k(values_of(tree), np.clip(k, 0, 20))
        np.testing.assert_array_equal(alone, expected)
        batched = jax.tree.map(lambda m, i=i: m[i], together)
        np.testing.assert_array_equal(flat(batched), alone)


def test_vmap_over_scores():
    rows = np.random.default_rng(0).integers(0, 4, (9, 11)).astype(np.float32)
    found = jax.vmap(lambda x: selection.top_k(x, 4))(rows)
    np.testing.assert_array_equal(found, [oracles.top_k(row, 4) for row in rows])


@pytest.mark.parametrize("name", ["f32", "bf16", "f16", "floats"])
def test_nan_is_refused_by_path(name):
    tree = {"layer": make_tree(name, 0, "normal")}
    key = max(tree["layer"], key=lambda k: tree["layer"][k].size)
    tree["layer"][key].flat[1] = np.nan
    size = tree["layer"][key].size
    message = rf"NaN scores in 'layer/{key}' \(1 of {size}\)"
    for call in (
        lambda: selection.top_k(tree, 1),
        lambda: selection.top_k_with_floors(tree, 1, jax.tree.map(lambda _: 0, tree)),
        lambda: _run(jp.keep_top(0.5), tree),
        lambda: _run(jp.keep_top(0.5, scope="global"), tree),
        lambda: _run(jp.keep_above(0.5), tree),
    ):
        with pytest.raises(jp.NonFiniteScoreError, match=message):
            call()


def test_nan_under_jit_is_reported_by_checkify_and_kept():
    tree = {"good": jnp.arange(3.0), "bad": jnp.array([jnp.nan, jnp.inf])}
    for link in (jp.keep_top(0.5), jp.keep_top(0.5, scope="global")):
        checked = checkify.checkify(jax.jit(lambda s, link=link: _run(link, s)))
        error, _ = jax.jit(checked)(tree)
        assert "NaN scores in 'bad'" in error.get()
        error, _ = jax.jit(checked)({**tree, "bad": jnp.ones(2)})
        assert error.get() is None
    found = jax.jit(lambda s: selection.top_k(s, 1))(tree)
    assert found["bad"].tolist() == [True, False]
    assert not found["good"].any()


def test_what_cannot_compete_is_refused():
    floats, ints = jnp.ones(2), jnp.ones(2, jnp.int32)
    with pytest.raises(jp.PruningError, match=r"\('f'\).*\('i'\) cannot be compared"):
        selection.top_k({"f": floats, "i": ints}, 1)
    with pytest.raises(jp.PruningError, match="'z' has scores of type complex64"):
        selection.top_k({"f": floats, "z": floats.astype(jnp.complex64)}, 1)
    big = jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16)
    with pytest.raises(jp.PruningError, match=r"'big' has 4294967296 scores"):
        jax.eval_shape(lambda s: selection.top_k(s, 1), {"big": big})
    for sparsity in (0.5, jnp.float32(0.5)):
        with pytest.raises(jp.PruningError, match=f"below 2.40 entries; got {2**40}"):
            selection.kept_count(2**40, sparsity)


def test_an_empty_tree_keeps_nothing():
    assert selection.top_k({}, 0) == {}
    assert selection.top_k_with_floors({}, 0, {}) == {}


@pytest.mark.parametrize("k", [2.7, True, "3", None, np.array([3]), np.float32(2)])
def test_what_is_no_count(k):
    with pytest.raises(jp.PruningError, match=r"number of entries is an integer; got"):
        selection.top_k(jnp.arange(4.0), k)


@pytest.mark.parametrize("k", [2**31, 2**46, 2**70, np.uint64(2**63), np.int64(2**40)])
def test_counts_beyond_all_integers_of_jax_are_clipped(k):
    assert selection.top_k(np.arange(4.0), k).all()
    assert not selection.top_k(np.arange(4.0), -int(k)).any()


def test_traced_counts_of_several_types():
    scores = {"a": jnp.arange(5.0), "b": jnp.arange(4.0), "c": jnp.arange(3.0)}

    @jax.jit
    def masks(a, b):
        return selection.top_k_per_leaf(scores, {"a": a, "b": b, "c": 2})

    for a, b in [(3, 1), (2**31 + 5, 127)]:
        found = masks(jnp.uint32(a), jnp.int8(b))
        expected = oracles.per_leaf(scores, {"a": min(a, 5), "b": min(b, 4), "c": 2})
        np.testing.assert_array_equal(flat(found), expected)


def test_integers_at_the_top_of_their_type():
    """A bracket that ends at the greatest key there is."""
    top = 2**31 - 1
    scores = np.array([top, top - 1, top - 1, top - 2], np.int32)
    for x in (scores, scores.astype(np.uint32) + np.uint32(2**31)):
        for k in range(5):
            expected = oracles.top_k(x.astype(np.float64), k)
            np.testing.assert_array_equal(selection.top_k(x, k), expected)
            assert int(selection.count_top_k(x, k)) == k


def test_gradients_pass_by_a_selection():
    def kept(x):
        return jnp.sum(jnp.where(selection.top_k(x, 2), x**2, 0.0))

    x = jnp.array([3.0, 1.0, -2.0, 5.0])
    np.testing.assert_array_equal(jax.grad(kept)(x), [6, 0, 0, 10])
