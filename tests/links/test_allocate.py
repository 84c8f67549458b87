"""Allocations against the published loops, in NumPy and float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import links, selection
from jprune._core import counting
from jprune.links import _allocate

NET = {
    "conv": {"kernel": (3, 3, 3, 16)},
    "conv_1": {"kernel": (3, 3, 16, 32)},
    "dense": {"kernel": (288, 64)},
    "head": {"kernel": (64, 10)},
    "empty": {"kernel": (0, 4)},
}
PINS = (("head/.*", 0.0), ("conv/kernel", 0.25))
RATES = [0.0, 0.1, 0.5, 0.77, 0.9, 0.95, 0.99, 1.0]


def _params(shapes=None, dtype=jnp.float32):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        NET if shapes is None else shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _counts(allocation, params, sparsity):
    """The counts, by path, of a sparsity known on the host and of a traced one."""
    host = allocation(params, params, sparsity)
    traced = jax.jit(lambda s: allocation(params, params, s))(jnp.float32(sparsity))
    paths = jp.tree.leaf_paths(params)
    return [
        dict(zip(paths, map(int, jax.tree.leaves(c)), strict=True))
        for c in (host, traced)
    ]


def _sizes(params):
    return {
        path: math.prod(x.shape)
        for path, x in zip(
            jp.tree.leaf_paths(params), jax.tree.leaves(params), strict=True
        )
    }


def _check_bounds(counts, sizes):
    assert counts.keys() == sizes.keys()
    assert all(0 <= counts[path] <= size for path, size in sizes.items())


@pytest.mark.parametrize("sparsity", RATES)
def test_uniform_is_uniform_within_a_unit(sparsity):
    sizes = _sizes(_params())
    n = sum(sizes.values())
    host, traced = _counts(links.uniform(), _params(), sparsity)
    assert sum(host.values()) == n - round(n * sparsity)
    assert sum(traced.values()) == int(selection.kept_count(n, jnp.float32(sparsity)))
    for counts in (host, traced):
        _check_bounds(counts, sizes)
        for path, size in sizes.items():
            assert abs(counts[path] - size * (1 - sparsity)) <= 1


def _densities(shares, sizes, sparsity, fixed):
    """The published loop: what would be over-full is made dense, until none is.

    Evci et al.'s `get_mask_random` with Erdos-Renyi sparsities, in own words.
    """
    dense = set()
    while True:
        budget = (1 - sparsity) * sum(sizes.values())
        budget -= sum(sizes[p] * fixed[p] for p in fixed)
        budget -= sum(sizes[p] for p in dense)
        free = [p for p in sizes if sizes[p] and p not in dense and p not in fixed]
        if not free:
            return {p: fixed.get(p, 1.0) for p in sizes}
        level = budget / sum(shares[p] * sizes[p] for p in free)
        worst = max(shares[p] for p in free)
        if level * worst <= 1:
            return {p: fixed.get(p, level * shares[p]) for p in free} | {
                p: fixed.get(p, 1.0) for p in sizes if p not in free
            }
        dense |= {p for p in free if shares[p] == worst}


def _erk_share(shape):
    return sum(shape) / math.prod(shape) if math.prod(shape) else 0


def _er_share(shape):
    *_, fan_in, fan_out = shape
    return (fan_in + fan_out) / (fan_in * fan_out) if fan_in else 0


@pytest.mark.parametrize(
    ("sparsity", "pins"),
    [(s, ()) for s in RATES] + [(s, PINS) for s in RATES if 0.1 <= s <= 0.95],
)
@pytest.mark.parametrize(
    ("make", "share"),
    [
        (links.erdos_renyi_kernel, _erk_share),
        (links.erdos_renyi, _er_share),
        (links.uniform, lambda shape: 1),
    ],
    ids=["erk", "er", "uniform"],
)
def test_the_published_loop(make, share, sparsity, pins):
    params = _params()
    sizes = _sizes(params)
    shapes = [x.shape for x in jax.tree.leaves(params)]
    shares = {p: share(s) for p, s in zip(sizes, shapes, strict=True)}
    fixed = {"head/kernel": 1.0, "conv/kernel": 0.75} if pins else {}
    expected = _densities(shares, sizes, sparsity, fixed)
    n = sum(sizes.values())
    host, traced = _counts(make(pins=pins), params, sparsity)
    assert sum(host.values()) == n - round(n * sparsity)
    assert sum(traced.values()) == int(selection.kept_count(n, jnp.float32(sparsity)))
    for counts in (host, traced):
        _check_bounds(counts, sizes)
        for path, density in expected.items():
            assert abs(counts[path] - density * sizes[path]) <= 1 + 1e-6, path
            if path in fixed:
                assert counts[path] == density * sizes[path]


@pytest.mark.parametrize("seed", range(5))
def test_random_layers_at_random_sparsities(seed):
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 60, rng.integers(2, 5))) for _ in range(9)]
    params = _params([tuple(map(int, shape)) for shape in shapes])
    sizes = _sizes(params)
    n = sum(sizes.values())
    shares = dict(zip(sizes, map(_erk_share, shapes), strict=True))
    for sparsity in rng.integers(1, 256, 6) / 256:  # exact in float32
        host = links.erdos_renyi_kernel()(params, params, float(sparsity))
        expected = _densities(shares, sizes, sparsity, {})
        assert sum(map(int, host)) == n - round(n * sparsity)
        for count, path in zip(host, sizes, strict=True):
            assert abs(int(count) - expected[path] * sizes[path]) <= 1 + 1e-6
        traced = links.erdos_renyi_kernel()(params, params, jnp.float32(sparsity))
        assert sum(map(int, traced)) == n - round(n * sparsity)
        assert max(abs(int(a) - int(b)) for a, b in zip(host, traced, strict=True)) <= 1


def test_erk_by_hand():
    # Shares 20 and 110: full at the levels 5 and 1000 / 110.
    params = _params({"a": (10, 10), "b": (10, 100)})
    for expected in ([10, 55], [50, 275], [100, 550], [100, 990]):
        sparsity = 1 - sum(expected) / 1100
        host, traced = _counts(links.erdos_renyi_kernel(), params, sparsity)
        assert list(host.values()) == list(traced.values()) == expected


@pytest.mark.parametrize("sparsity", [0.1, 0.9, 0.999])
def test_totals_of_large_models_are_exact(sparsity):
    params = _params([(10**8 + 1,), (3 * 10**8 + 3,), (777,), (2**30,)])
    sizes = list(_sizes(params).values())
    n = sum(sizes)
    host = links.uniform()(params, params, sparsity)
    traced = links.uniform()(params, params, jnp.float32(sparsity))
    assert sum(map(int, host)) == n - round(n * sparsity)
    assert sum(map(int, traced)) == int(selection.kept_count(n, jnp.float32(sparsity)))
    for a, b, size in zip(host, traced, sizes, strict=True):
        assert abs(int(a) - size * (1 - sparsity)) <= 1
        assert abs(int(a) - int(b)) <= 1 + 1e-6 * size  # float32


def _rescaled(scores, sparsity, min_fraction):
    """Gupta et al.'s loop: rescale to the budget, clamp, until nothing changes."""
    sizes = {p: x.size for p, x in scores.items()}
    n = sum(sizes.values())
    least = int(n * min_fraction)
    flat = np.concatenate([np.ravel(x).astype(np.float64) for x in scores.values()])
    kept = np.zeros(n, bool)
    kept[np.argsort(-flat, kind="stable")[: n - round(n * sparsity)]] = True
    parts = np.split(kept, np.cumsum(list(sizes.values()))[:-1])
    rates = {p: 1 - part.mean() for p, part in zip(sizes, parts, strict=True)}
    rates = {p: 0.0 if sizes[p] < least else s for p, s in rates.items()}
    for _ in range(2_000):
        total = sum(sizes[p] * s for p, s in rates.items())
        rates = {p: s * sparsity * n / total for p, s in rates.items()}
        rates = {p: min(s, max(1 - least / sizes[p], 0)) for p, s in rates.items()}
    return {p: sizes[p] * (1 - s) for p, s in rates.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.96])
def test_rescaled_global_is_the_fixed_point_of_the_loop(seed, sparsity):
    rng = np.random.default_rng(seed)
    scores = {
        name: np.abs(rng.normal(size=size) * scale).astype(np.float32)
        for name, size, scale in (
            ("a", 4000, 1.0),
            ("b", 300, 0.01),  # falls under the minimum
            ("c", 20, 1e-4),  # smaller than the minimum
            ("d", 900, 0.5),
            ("e", 2000, 0.2),
        )
    }
    expected = _rescaled(scores, sparsity, 0.005)
    n = sum(x.size for x in scores.values())
    allocation = links.rescaled_global(0.005)
    for s in (sparsity, jnp.float32(sparsity)):
        found = allocation(scores, scores, s)
        assert sum(map(int, found.values())) == int(selection.kept_count(n, s))
        for path, kept in expected.items():
            assert abs(int(found[path]) - kept) <= 1 + 1e-3, path
    assert int(found["c"]) == 20
    assert int(found["b"]) >= int(n * 0.005)


def test_rescaled_global_without_a_minimum_is_the_global_selection():
    rng = np.random.default_rng(0)
    scores = {p: rng.random(200).astype("f4") * s for p, s in (("a", 1), ("b", 0.05))}
    masks = selection.top_k(scores, 60)
    found = links.rescaled_global(0.0)(scores, scores, 1 - 60 / 400)
    assert jax.tree.map(int, found) == jax.tree.map(lambda m: int(m.sum()), masks)


def _level(shares, low, high, total):
    """Water filling by bisection."""
    down, up = 0.0, max(h / a for a, h in zip(shares, high, strict=True) if a) + 1
    for _ in range(200):
        level = (down + up) / 2
        if sum(np.clip(level * shares, low, high)) < total:
            down = level
        else:
            up = level
    return level


@pytest.mark.parametrize("seed", range(6))
def test_filling_against_bisection(seed):
    rng = np.random.default_rng(seed)
    high = rng.integers(0, 500, 12)
    low = rng.integers(0, high + 1) * (rng.random(12) < 0.3)
    shares = rng.lognormal(0, 2, 12)
    for total in rng.integers(low.sum(), high.sum() + 1, 8):
        real = np.clip(_level(shares, low, high, total) * shares, low, high)
        for xp, dtype in ((np, np.float64), (jnp, np.float32)):
            found = _allocate._fill(xp, xp.asarray(shares, dtype), low, high, total)
            assert int(found.sum()) == total
            assert np.all((np.asarray(found) >= low) & (np.asarray(found) <= high))
            assert np.max(np.abs(np.asarray(found) - real)) < 1 + 1e-3


@pytest.mark.parametrize("xp", [np, jnp])
def test_budgets_that_the_bounds_do_not_allow_are_met_as_far_as_they_go(xp):
    low, high = np.array([2, 0, 3]), np.array([5, 4, 3])
    shares = xp.asarray([1.0, 1.0, 1.0], "f4")
    for total, expected in (
        (0, [2, 0, 3]),
        (5, [2, 0, 3]),
        (12, [5, 4, 3]),
        (99, high),
    ):
        found = _allocate._fill(xp, shares, low, high, total)
        np.testing.assert_array_equal(found, expected)
    # A leaf without a share gets what no other can take.
    found = _allocate._fill(xp, xp.asarray([1.0, 0.0], "f4"), low[1:] * 0, high[:2], 8)
    np.testing.assert_array_equal(found, [5, 3])


def test_pins_that_cannot_be_met_are_refused_where_they_are_known():
    params = _params({"a": (10, 10), "b": (10, 10)})
    for make in (links.uniform, links.erdos_renyi_kernel):
        allocation = make(pins=[("a", 0.0)])
        message = "keep between 100 and 200 of 200 entries, but sparsity 0.75 keeps 50"
        with pytest.raises(jp.PruningError, match=message):
            allocation(params, params, 0.75)
        found = allocation(params, params, jnp.float32(0.75))
        assert jax.tree.map(int, found) == {"a": 100, "b": 0}
        with pytest.raises(jp.PruningError, match=r"rule 'c.\*' applies to no leaf"):
            make(pins=[("a", 0.0), ("c.*", 0.5)])(params, params, 0.5)
        with pytest.raises(jp.PruningError, match=r"got 1\.5"):
            make(pins=[("a", 1.5)])
    with pytest.raises(jp.PruningError, match=r"got -0\.1"):
        links.rescaled_global(-0.1)
    with pytest.raises(jp.PruningError, match=r"'bias' has shape \(3,\)"):
        links.erdos_renyi()(*[_params({"bias": (3,)})] * 2, 0.5)


def test_pooled_scores_are_counted_in_channels():
    params = _params({"kernel": (3, 3, 8, 16), "out": (16, 10)})
    scores = _params({"kernel": (1, 1, 1, 16), "out": (1, 10)})
    found = links.uniform()(scores, params, 0.5)
    assert jax.tree.map(int, found) == {"kernel": 8, "out": 5}


def test_nothing_to_divide():
    assert links.uniform()({}, {}, 0.5) == {}
    empty = _params({"a": (0, 3)})
    assert jax.tree.map(int, links.erdos_renyi_kernel()(empty, empty, 0.5)) == {"a": 0}


def test_a_minimum_of_everything_keeps_everything():
    """`min_fraction` is in [0, 1], both ends included."""
    scores = {"a": jnp.arange(10.0), "b": jnp.arange(20.0)}
    allocation = links.rescaled_global(1)
    for sparsity in (0.0, jnp.float32(0), jnp.float32(0.9)):
        found = allocation(scores, scores, sparsity)
        assert jax.tree.map(int, found) == {"a": 10, "b": 20}
    with pytest.raises(jp.PruningError, match=r"at least 30 of 30.*0\.9 keeps 3"):
        allocation(scores, scores, 0.9)
    with pytest.raises(jp.PruningError, match=r"got 1\.01"):
        links.rescaled_global(1.01)


@pytest.mark.parametrize("xp", [np, jnp])
def test_equal_leaves_get_the_units_that_are_left_in_tree_order(xp):
    """Forty, because an unstable sort leaves a few in their order."""
    shares, low, high = xp.ones(40, "f4"), np.zeros(40, int), np.full(40, 10)
    for more in (0, 1, 17, 39):
        found = _allocate._fill(xp, shares, low, high, 160 + more)
        assert found.tolist() == [5] * more + [4] * (40 - more)


def test_equal_leaves_of_a_rescaled_selection():
    scores = {name: jnp.arange(10.0) for name in "abc"}
    allocation = links.rescaled_global(0.0)
    for s in (1 - 14 / 30, jnp.float32(1 - 14 / 30)):
        found = allocation(scores, scores, s)
        assert jax.tree.map(int, found) == {"a": 5, "b": 5, "c": 4}


def test_a_minimum_out_of_reach_is_refused():
    scores = {name: jnp.arange(10.0) for name in "abc"}
    allocation = links.rescaled_global(0.2)  # 6 of 30 in each leaf, 18 in all
    with pytest.raises(jp.PruningError, match=r"at least 18 of 30.*0\.9 keeps 3"):
        allocation(scores, scores, 0.9)
    counts = allocation(scores, scores, 0.4)
    assert sorted(map(int, counts.values())) == [6, 6, 6]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("pins", [(), (("head", 0.25), ("stem", 0.0))])
def test_more_weights_than_an_int32_counts(sparsity, pins):
    """3.8e9 weights under a traced sparsity, of which float32 holds seven digits."""
    shapes = {f"l{i}": (2**15, 2**14 + i) for i in range(7)}
    params = _params({**shapes, "head": (100, 10), "stem": (7, 9), "none": (0, 3)})
    n = sum(_sizes(params).values())
    assert n > 2**31
    for allocation in (links.uniform(pins=pins), links.erdos_renyi_kernel(pins=pins)):
        traced = jax.jit(lambda s, f=allocation: f(params, params, s))
        counts = jax.tree.map(int, traced(jnp.float32(sparsity)))
        _check_bounds(counts, _sizes(params))
        kept = n - round(n * float(np.float32(sparsity)))
        fixed = {"head": 750, "stem": 63} if pins else {}
        assert counts.items() >= fixed.items()
        if 0 < sparsity < 1:
            assert sum(counts.values()) == kept
            host = allocation(params, params, float(np.float32(sparsity)))
            for path, count in counts.items():
                assert abs(count - int(host[path])) <= 2**10, path
        elif not pins:
            assert sum(counts.values()) == kept


def test_a_rescaled_selection_of_more_weights_than_an_int32_counts():
    """The selection itself is not run; `tests/selection/test_scale.py` has one."""
    sizes = np.array([2**29 + i for i in range(6)] + [10, 0])
    shares = jnp.asarray(sizes, jnp.float32) / 4
    n, low = int(sizes.sum()), np.zeros_like(sizes)
    for gone in (0, 3, n // 3, n - 5, n):
        for given in (gone, counting.total(gone)):
            found = np.asarray(_allocate._fill(jnp, shares, low, sizes, given))
            assert found.sum(dtype=np.int64) == gone
            assert (found <= sizes).all()
            assert (found >= 0).all()


def test_a_rescaled_selection_of_nothing():
    assert links.rescaled_global()({}, {}, 0.5) == {}


def test_a_traced_rescaled_selection_of_a_large_tree_compiles():
    params = _params({f"l{i}": (2**15, 2**14) for i in range(5)})
    for s in (0.9, jnp.float32(0.9)):
        found = jax.eval_shape(lambda x, s=s: links.rescaled_global()(x, x, s), params)
        assert found.keys() == params.keys()
