"""Integers beyond 32 bits, against Python's; counts and extremes, against NumPy."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jprune import selection
from jprune._core import counting
from jprune.selection import _boundary

MOST = 2**46
NEAR = st.sampled_from([0, 1, 2**24, 2**30, 2**31, 2**32, 2**33, 2**45, MOST])
NUMBERS = st.integers(0, MOST) | st.builds(
    lambda n, d: min(max(n + d, 0), MOST), NEAR, st.integers(-3, 3)
)
quick = settings(deadline=None, derandomize=True, database=None, max_examples=150)


def _signs(gap):
    return np.sign(np.asarray(gap)).astype(int).tolist()


def _sign(n):
    return (n > 0) - (n < 0)


@quick
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=4, max_size=4))
def test_differences_have_exact_signs(numbers):
    a, b, c = (np.array(x) for x in zip(*numbers, strict=True))
    a = np.concatenate([a, a, a + 1, a])
    b = np.concatenate([b, a[:4], a[:4], a[:4] + 1])
    c = np.tile(c, 4)
    ta, tb, tc = map(counting.total, (a, b, c))
    exact = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    gap = counting.gap(ta, tb)
    assert _signs(gap) == [_sign(d) for d in exact]
    small = [i for i, d in enumerate(exact) if abs(d) < 2**24]
    assert [int(gap[i]) for i in small] == [exact[i] for i in small]
    less = counting.minus(ta, tb)  # may be negative
    assert np.asarray(less.modular).tolist() == [d % 2**32 for d in exact]
    signs = [_sign(d - int(z)) for d, z in zip(exact, c, strict=True)]
    assert _signs(counting.gap(less, tc)) == signs
    twice = counting.minus(less, tc)
    assert _signs(counting.gap(twice, counting.total(0))) == signs


@quick
@given(
    st.lists(st.tuples(NUMBERS, st.integers(1, 2**16)), min_size=8, max_size=8),
    st.sampled_from([0, 1, -1]),
)
@example([(2**32 * 7 - 1, 7)] * 8, 0)
@example([(2**46, 2**16)] * 8, 0)
@example([(2**32 - 1, 1)] * 8, 0)
def test_how_often(numbers, step):
    """Also one beside a multiple, where rounding would show."""
    units = [u for _, u in numbers]
    whole = [max(n - n % u + step, 0) for n, u in numbers]
    for ns in ([n for n, _ in numbers], whole):
        found = counting.how_often(
            counting.total(np.array(ns)), jnp.array(units, jnp.uint32)
        )
        for n, unit, often in zip(ns, units, np.asarray(found), strict=True):
            assert n // unit >= 2**32 or int(often) == n // unit, (n, unit)


def _weights(counts, costs):
    """The sum of counts times costs, as a search forms it."""
    task = _boundary.Task(
        counting.total(np.array([0])),
        jnp.asarray(counts),
        None if costs is None else jnp.zeros_like(counts),
        None if costs is None else jnp.asarray(costs),
    )
    return jax.jit(_boundary.weight)(jnp.asarray(counts), task)


@pytest.mark.parametrize("parts", [1, 10, 1_000, 10_000])
def test_sums_of_many_parts(parts):
    """Equal parts round alike: the error of a plain float sum would add up."""
    rng = np.random.default_rng(parts)
    share = MOST // parts
    cost = min(2**16, -(-share // (2**32 - 1)))
    for kind, costs in itertools.product(
        ("equal", "random", "one"), (None, np.full(parts, cost, np.uint32))
    ):
        most = min(share // cost, 2**32 - 1)
        counts = np.full(parts, most, np.uint32)
        if kind == "random":
            counts = rng.integers(0, most, parts, np.uint32, endpoint=True)
        if kind == "one":
            counts[1:] = 1
        each = [1] * parts if costs is None else costs.tolist()
        exact = sum(n * c for n, c in zip(counts.tolist(), each, strict=True))
        found = _weights(counts, costs)
        assert int(found.modular[0]) == exact % 2**32
        assert abs(float(found.rough[0]) - exact) < 2**30
        for off in (-(2**31), -1, 0, 1, 2**31):
            there = counting.total(np.array([max(exact + off, 0)]))
            sign = _sign(exact - max(exact + off, 0))
            assert _signs(counting.gap(found, there)) == [sign]


def test_totals_of_arrays_and_of_what_is_traced():
    numbers = np.array([-5, 0, 2**40 + 3])
    assert counting.total(numbers).modular.tolist() == [0, 0, 3]
    for n in (jnp.int32(-7), jnp.uint32(2**32 - 1), jnp.int8(100)):
        for make in (counting.total, jax.jit(counting.total)):
            found = make(n)
            assert int(found.modular) == max(int(n), 0)
            assert float(found.rough) == np.float32(max(int(n), 0))
    number = counting.total(3)
    assert counting.total(number) is number


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1000,), (3, 0, 2), (5, 7, 11)])
def test_counts_and_extremes(shape):
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**31), 2**31 - 1, shape, np.int32, endpoint=True)
    pivots = [-(2**31), -(2**30), 0, 5, 2**30, 2**31 - 1]
    found = counting.count([x >= np.int32(p) for p in pivots])
    assert found.dtype == jnp.uint32
    assert found.tolist() == [int((x >= p).sum()) for p in pivots]
    for dtype in (np.int16, np.int32):
        info, y = np.iinfo(dtype), x.astype(dtype)
        expected = [y.min(initial=info.max), y.max(initial=info.min)]
        np.testing.assert_array_equal(counting.extremes(jnp.asarray(y)), expected)


@pytest.mark.parametrize(
    "spec", [P(), P("x"), P(None, "y"), P(("x", "y")), P("y", "x"), P(None, ("y", "x"))]
)
def test_ranks_of_shards_are_those_of_the_whole(spec):
    mesh = jax.make_mesh(
        (4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    x, top = jnp.zeros((8, 16, 3)), 2**31 - 1
    found = jax.shard_map(
        lambda x: counting.ranks(x, jnp.int32(top), spec),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )(x)
    whole = top - np.arange(x.size, dtype=np.int32).reshape(x.shape)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(counting.ranks(x, jnp.int32(top)), whole)


@pytest.mark.parametrize("size", [2**31, 3 * 10**9, 2**33 + 1, 2**39 + 7, 2**40 - 1])
def test_kept_counts_beyond_2_31_against_fractions(size):
    rng = np.random.default_rng(size)
    edges = [0, 1, 0.5, 1 / 3, 0.9, 0.99, 1e-8, 1 - 2**-24, 2**-40, 1e-45]
    powers = 2.0 ** -rng.uniform(0, 45, 100)
    sparsities = np.float32([*edges, *rng.random(100), *powers])
    exact = [size - round(size * Fraction(float(s))) for s in sparsities]
    traced = jax.jit(lambda s: selection.kept_count(size, s))(sparsities)
    assert traced.modular.tolist() == [n % 2**32 for n in exact]
    for rough, n in zip(traced.rough, exact, strict=True):
        assert abs(float(rough) - n) < 2**30
    for s, n in zip(sparsities[:12], exact, strict=False):
        eager = selection.kept_count(size, jnp.float32(s))
        assert int(eager.modular) == n % 2**32
        known = selection.kept_count(size, float(s))
        assert abs(known - n) <= 1
        assert isinstance(known, int)


def test_what_a_large_tree_of_abstract_leaves_selects():
    """More than 2^31 entries: of shapes alone, with a k that is a `Total`."""
    leaf = jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16)
    scores = [leaf] * 5

    def masks(scores, sparsity):
        return selection.top_k(scores, selection.kept_count(5 * 2**30, sparsity))

    found = jax.eval_shape(masks, scores, jax.ShapeDtypeStruct((), jnp.float32))
    assert [(m.shape, m.dtype) for m in found] == [(leaf.shape, jnp.bool_)] * 5
