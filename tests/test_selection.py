"""Exact top-k against sorting: NumPy, float64, ties to the lower index."""

import collections
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import experimental
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune as jp
from jprune import selection

BF16 = ml_dtypes.bfloat16

# Every new shape costs a compilation, so the trees are a few and the values many.
TREES = {
    "f32": {"a": ((), "f4"), "b": ((7,), "f4"), "c": ((0,), "f4"), "d": ((3, 4), "f4")},
    "bf16": {"a": ((3, 4), BF16), "b": ((2, 0, 2), BF16), "c": ((7,), BF16)},
    "f16": {"a": ((40,), "f2")},
    "i32": {"a": ((7,), "i4"), "b": ((), "i4")},
    "u16": {"a": ((2, 3, 2), "u2")},
    "floats": {"a": ((7,), "f2"), "b": ((3, 4), BF16), "c": ((), "f4")},
    "ints": {"a": ((7,), "i1"), "b": ((3, 4), "u1"), "c": ((2,), "?"), "d": ((), "i2")},
    "u32": {"a": ((40,), "u4")},
    "empty": {"a": ((0,), "f4")},
}
FAMILIES = ("bits", "normal", "special", "tied", "constant")


def _special(dtype):
    """The values at which an order of floats goes wrong first."""
    info = ml_dtypes.finfo(dtype)
    tiny = info.smallest_subnormal
    normal, most = info.smallest_normal, info.max
    values = [0, -0.0, np.inf, -np.inf, tiny, -tiny, 2 * tiny, normal, -normal]
    return np.array([*values, most, info.min, 1, -1], dtype)


def _is_nan(patterns, dtype):
    """From the bits: NumPy warns when it looks at a signalling NaN."""
    infinity = np.array(np.inf, dtype).view(patterns.dtype)
    magnitude = patterns & ~np.array(-0.0, dtype).view(patterns.dtype)
    return magnitude > infinity


def _draw(rng, shape, dtype, family):
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        if family in ("tied", "constant"):
            return np.full(shape, 1, dtype) * rng.integers(0, 2, shape).astype(dtype)
        if family == "special":
            return rng.choice([info.min, info.min + 1, 0, info.max], shape).astype(
                dtype
            )
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if family == "bits":
        raw = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, np.uint64)
        raw = raw.astype(f"u{dtype.itemsize}")
        return np.where(_is_nan(raw, dtype), np.zeros_like(raw), raw).view(dtype)
    if family == "special":
        return rng.choice(_special(dtype), shape).astype(dtype)
    if family == "tied":
        return rng.choice([-0.5, 0, -0.0, 0.5, 1], shape).astype(dtype)
    if family == "constant":
        return np.full(shape, rng.normal(), dtype)
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def _tree(name, seed, family):
    rng = np.random.default_rng(seed)
    return {
        key: np.asarray(_draw(rng, shape, dtype, family))
        for key, (shape, dtype) in TREES[name].items()
    }


def _values(tree):
    """All scores of a tree in float64, which holds every dtype here exactly."""
    return np.concatenate([np.ravel(x).astype(np.float64) for x in tree.values()])


def _flat(masks):
    return np.concatenate([np.ravel(np.asarray(m)) for m in masks.values()])


def _oracle(values, k):
    """The k largest, by a stable sort: ties to the lower index."""
    kept = np.zeros(values.shape, bool)
    kept[np.argsort(-values, kind="stable")[:k]] = True
    return kept


def _oracle_with_floors(tree, k, floors):
    first = np.concatenate(
        [_oracle(np.ravel(x).astype(float), floors[key]) for key, x in tree.items()]
    )
    order = np.argsort(-_values(tree), kind="stable")
    rest = [i for i in order if not first[i]][: max(k - first.sum(), 0)]
    first[rest] = True
    return first


def _run(link, scores):
    return link.update(scores, link.init(scores), scores)[0]


def test_5000_random_trees_equal_the_sorting_oracle():
    seen = collections.Counter()

    @settings(
        max_examples=5_000,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        name=st.sampled_from(sorted(TREES)),
        family=st.sampled_from(FAMILIES),
        seed=st.integers(0, 2**32 - 1),
        share=st.sampled_from([0.0, 1.0, None, None, None]),
    )
    def check(name, family, seed, share):
        tree = _tree(name, seed, family)
        values, rng = _values(tree), np.random.default_rng(seed + 1)
        n = values.size
        k = int(rng.integers(-1, n + 2)) if share is None else round(share * n)
        expected = _oracle(values, min(max(k, 0), n))
        np.testing.assert_array_equal(_flat(selection.top_k(tree, k)), expected)
        seen["trees"] += 1
        seen[f"k = {'none' if k <= 0 else 'all' if k >= n else 'some'}"] += 1
        if seed % 10 == 0:
            floors = {key: int(rng.integers(0, x.size + 1)) for key, x in tree.items()}
            found = selection.top_k_with_floors(tree, k, floors)
            np.testing.assert_array_equal(
                _flat(found), _oracle_with_floors(tree, k, floors)
            )
            alone = _flat(selection.top_k_per_leaf(tree, floors))
            np.testing.assert_array_equal(alone, _oracle_with_floors(tree, 0, floors))
            seen["floors"] += 1
        if seed % 10 == 1:
            removed = Fraction(int(rng.integers(0, 65)), 64)  # exact in float64
            found = _run(jp.keep_top(float(removed), scope="global"), tree)
            expected = _oracle(values, n - round(n * removed))
            np.testing.assert_array_equal(_flat(found), expected)
            seen["global"] += 1
        if seed % 10 == 2:
            removed = Fraction(int(rng.integers(0, 65)), 64)
            found = _run(jp.keep_top(float(removed)), tree)
            assert _flat(found).sum() == n - round(n * removed)
            for key, x in tree.items():
                kept = int(np.sum(found[key]))
                assert abs(kept - x.size * (1 - removed)) < 1
                alone = _oracle(np.ravel(x).astype(float), kept)
                np.testing.assert_array_equal(np.ravel(found[key]), alone)
            seen["leaf"] += 1

    check()
    assert seen["trees"] >= 5_000
    assert min(seen.values()) >= 300, seen


def _assert_same_order(values, bits):
    order = np.argsort(values, kind="stable")
    values, bits = values[order], bits[order]
    np.testing.assert_array_equal(bits[1:] > bits[:-1], values[1:] > values[:-1])
    np.testing.assert_array_equal(bits[1:] == bits[:-1], values[1:] == values[:-1])


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_the_order_of_all_16_bit_floats(dtype):
    patterns = np.arange(2**16, dtype=np.uint16)
    bits = np.asarray(selection.ordered_bits(jnp.asarray(patterns.view(dtype))))
    assert bits.dtype == np.uint16
    nan = _is_nan(patterns, dtype)
    assert bits[nan].min() > bits[~nan].max()
    values = patterns[~nan].view(dtype).astype(np.float64)
    _assert_same_order(values, bits[~nan])


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16, np.int32])
def test_the_order_of_wider_floats_and_of_integers(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([_draw(rng, 50_000, dtype, f) for f in ("bits", "special")])
    bits = np.asarray(selection.ordered_bits(jnp.asarray(values)))
    _assert_same_order(values.astype(np.float64), bits)


def test_double_precision():
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64
    rng = np.random.default_rng(0)
    x = np.where(rng.random(100) < 0.5, 1.0, 1.0 + 2.0**-50) * rng.choice([-1, 1], 100)
    big = rng.integers(0, 2**64, 30, np.uint64, endpoint=False)
    with enable(True):
        for k in (0, 1, 13, 50, 100):
            found = selection.top_k({"a": x[:60], "b": x[60:]}, k)
            np.testing.assert_array_equal(_flat(found), _oracle(x, k))
        found = np.asarray(selection.top_k(big, 11))
        np.testing.assert_array_equal(np.sort(big)[-11:], np.sort(big[found]))


SIZES = [0, 1, 2, 3, 7, 1000, 4096, 10**6 + 1, 2**24 + 1, 2**29 - 3, 2**31 - 1]


def _sparsities():
    rng = np.random.default_rng(0)
    edges = [0, 1, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1e-30, 2.0**-31]
    tenths = [0.1, 0.2, 0.25, 0.3, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
    return np.array([*edges, *tenths, *rng.random(200), *rng.random(50) ** 8], "f4")


@pytest.mark.parametrize("size", SIZES)
def test_kept_count_against_exact_fractions(size):
    sparsities = _sparsities()
    exact = [size * Fraction(float(s)) for s in sparsities]
    known = [int(selection.kept_count(size, s)) for s in sparsities]
    if size < 2**29:  # the product has at most 53 bits: float64 holds it
        assert known == [size - round(e) for e in exact]
    traced = jax.jit(lambda s: selection.kept_count(size, s))(sparsities)
    eager = selection.kept_count(size, jnp.asarray(sparsities))
    np.testing.assert_array_equal(traced, eager)
    for found, slack in ((known, 1e-6), (np.asarray(eager), 0.1)):
        for kept, e in zip(found, exact, strict=True):
            assert 0 <= kept <= size
            assert abs(size - int(kept) - e) <= 0.5 + slack


def test_kept_count_refuses_and_clips():
    for wrong in (-0.1, 1.5, float("nan"), np.float32(2)):
        with pytest.raises(jp.PruningError, match=r"in \[0, 1\]; got"):
            selection.kept_count(10, wrong)
    clipped = selection.kept_count(10, jnp.array([-0.1, 1.5]))
    np.testing.assert_array_equal(clipped, [10, 0])


def test_one_trace_for_all_k_and_vmap():
    tree, traces = _tree("f32", 5, "tied"), []

    @jax.jit
    def masks(k):
        traces.append(None)
        return selection.top_k(tree, k)

    counts = np.arange(-1, 22)
    one_by_one = [_flat(masks(k)) for k in counts]
    together = jax.vmap(lambda k: selection.top_k(tree, k))(counts)
    assert len(traces) == 1
    for i, (k, alone) in enumerate(zip(counts, one_by_one, strict=True)):
        np.testing.assert_array_equal(alone, _oracle(_values(tree), np.clip(k, 0, 20)))
        batched = jax.tree.map(lambda m, i=i: m[i], together)
        np.testing.assert_array_equal(_flat(batched), alone)


def test_vmap_over_scores():
    rows = np.random.default_rng(0).integers(0, 4, (9, 11)).astype(np.float32)
    found = jax.vmap(lambda x: selection.top_k(x, 4))(rows)
    np.testing.assert_array_equal(found, [_oracle(row, 4) for row in rows])


MESH_SPECS = {
    "a": ("x", None),
    "b": (None, "y", None),
    "c": (None,),
    "d": (("x", "y"),),
}
MESH_SHAPES = {"a": (64, 32), "b": (16, 64, 6), "c": (33,)}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_nothing_is_gathered(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    rng = np.random.default_rng(0)
    # Few values, so that the search of the ties crosses devices too.
    host = {k: rng.integers(0, 5, s).astype("f4") for k, s in MESH_SHAPES.items()}
    scores = {
        k: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*MESH_SPECS[k])))
        for k, x in host.items()
    }
    n, floors = _values(host).size, {"a": 70, "b": 0, "c": 30}
    for k in (0, n // 3, n):
        found = selection.top_k(scores, k)
        np.testing.assert_array_equal(_flat(found), _oracle(_values(host), k))
        again = selection.top_k_with_floors(scores, k, floors)
        expected = _oracle_with_floors(host, k, floors)
        np.testing.assert_array_equal(_flat(again), expected)
        for masks in (found, again):
            for key, x in scores.items():
                assert masks[key].sharding.is_equivalent_to(x.sharding, x.ndim), key
    program = jax.jit(selection.top_k).lower(scores, n // 3).compile().as_text()
    moved = re.findall(
        r"= (.*) (?:all-gather|all-to-all|collective-permute|ragged-all-to-all)\S*\(",
        program,
    )
    sizes = [
        np.prod([int(d) for d in dims.split(",") if d])
        for shapes in moved
        for dims in re.findall(r"\[([\d,]*)\]", shapes)
    ]
    assert "all-reduce" in program or moved  # the pattern would find something
    assert all(size <= 64 for size in sizes), moved


@pytest.mark.parametrize("name", ["f32", "bf16", "f16", "floats"])
def test_nan_is_refused_by_path(name):
    tree = {"layer": _tree(name, 0, "normal")}
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
        assert "NaN scores in 'bad': 1" in error.get()
        error, _ = jax.jit(checked)({**tree, "bad": jnp.ones(2)})
        assert error.get() is None
    found = jax.jit(lambda s: selection.top_k(s, 1))(tree)
    assert found["bad"].tolist() == [True, False]
    assert not found["good"].any()


def test_what_cannot_compete_is_refused():
    floats, ints = jnp.ones(2), jnp.ones(2, jnp.int32)
    with pytest.raises(jp.PruningError, match=r"\('f'\).*\('i'\) cannot compete"):
        selection.top_k({"f": floats, "i": ints}, 1)
    with pytest.raises(jp.PruningError, match="'z' has scores of type complex64"):
        selection.top_k({"f": floats, "z": floats.astype(jnp.complex64)}, 1)
    half = jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16)
    with pytest.raises(jp.PruningError, match=r"^2147483648 scores compete"):
        jax.eval_shape(lambda s: selection.top_k(s, 1), [half, half])
    for size in (2**31, 2**40):
        for sparsity in (0.5, jnp.float32(0.5)):
            with pytest.raises(jp.PruningError, match=f"^{size} entries"):
                selection.kept_count(size, sparsity)


def test_leaves_that_are_alone_are_counted_alone():
    half = jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16)
    masks = jax.eval_shape(lambda s: _run(jp.keep_top(0.5), s), [half] * 3)
    assert [m.shape for m in masks] == [half.shape] * 3
    full = jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)
    with pytest.raises(jp.PruningError, match=r"^2147483648 scores compete"):
        jax.eval_shape(lambda s: _run(jp.keep_top(0.5), s), [half, full])


def test_an_empty_tree_keeps_nothing():
    assert selection.top_k({}, 0) == {}
    assert selection.top_k_with_floors({}, 0, {}) == {}


def test_a_count_is_an_integer():
    with pytest.raises(jp.PruningError, match=r"integer; got 2\.7"):
        selection.top_k(jnp.arange(4.0), 2.7)
