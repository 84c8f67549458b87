"""Trees of many small leaves: stacked or not, the same masks in the same places."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import oracles
from support.oracles import BF16, flat, values_of

import jprune as jp
from jprune import selection
from jprune.selection import _batching

SHAPES = [
    (),
    (1,),
    (2,),
    (3,),
    (7,),
    (0,),
    (3, 4),
    (16,),
    (2, 2, 2),
    (17,),
    (5, 9),
    (0, 3),
]


def _leaf(rng, i, dtypes):
    dtype = np.dtype(dtypes[i % len(dtypes)])
    family = ("normal", "tied", "special")[i % 3]
    return np.asarray(oracles.draw(rng, SHAPES[i % len(SHAPES)], dtype, family))


def _check_all(scores, ks):
    host = jax.tree.map(np.asarray, scores)
    n = values_of(host).size
    rng = np.random.default_rng(n)
    counts = {key: int(rng.integers(0, x.size + 1)) for key, x in host.items()}
    for k in ks:
        k = min(k, n)
        found = selection.top_k(scores, k)
        np.testing.assert_array_equal(flat(found), oracles.top_k(values_of(host), k))
        floors = selection.top_k_with_floors(scores, k, counts)
        expected = oracles.with_floors(host, k, counts)
        np.testing.assert_array_equal(flat(floors), expected)
    alone = selection.top_k_per_leaf(scores, counts)
    np.testing.assert_array_equal(flat(alone), oracles.per_leaf(host, counts))
    for masks in (found, floors, alone):
        for key, x in host.items():
            assert isinstance(masks[key], jax.Array)
            assert masks[key].shape == x.shape, key
            assert masks[key].dtype == bool
    return found


@pytest.mark.parametrize(
    "dtypes",
    [
        ["f4"],
        ["f4", BF16, "f2"],
        ["i1", "u1", "?", "i4", "i2", "u2"],
        ["i8", "i4"],  # NumPy's own integers, as many as fit into 32 bits
        ["u4"],
    ],
    ids=str,
)
def test_many_small_leaves(dtypes):
    rng = np.random.default_rng(0)
    scores = {f"{i:03}": _leaf(rng, i, dtypes) for i in range(60)}
    if "i8" in dtypes:
        scores = {k: x if x.dtype == "i4" else x >> 40 for k, x in scores.items()}
    if "i4" in dtypes:  # below all that the narrow types hold, and above
        scores["x"] = np.array([-(2**31), -1000, -129, -1, 0, 256, 2**31 - 1], "i4")
    n = values_of(scores).size
    _check_all(scores, [0, 1, n // 5, n // 2, n - n // 8, n - 1, n])
    _check_all(jax.tree.map(jnp.asarray, scores), [n // 3])


def test_types_without_an_infinity():
    rng, dtype = np.random.default_rng(0), jnp.float8_e4m3fn
    scores = {f"{i}": rng.normal(size=3 + i).astype(dtype) for i in range(12)}
    _check_all(scores, [0, 1, 30, 60])


def test_small_leaves_beside_large_ones():
    rng = np.random.default_rng(1)
    scores = {f"{i:03}": _leaf(rng, i, ["f4", BF16]) for i in range(30)}
    for i, shape in enumerate([(200, 100), (2**14,), (2**14 + 1,), (3, 7000)]):
        scores[f"large {i}"] = oracles.draw(rng, shape, "f4", "tied")
    n = values_of(scores).size
    _check_all(scores, [1, n // 2, n - 3])


def test_masks_are_where_their_leaves_are():
    rng, devices = np.random.default_rng(2), jax.devices()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    scores = {f"{i:02}": _leaf(rng, i, ["f4"]) for i in range(40)}
    scores = {
        k: jax.device_put(x, devices[i % 2]) if i % 4 else x
        for i, (k, x) in enumerate(scores.items())
    }
    for i in range(4):
        x = oracles.draw(rng, (16, 3), "f4", "tied")
        spec = P("x") if i % 2 else P()
        scores[f"mesh {i}"] = jax.device_put(x, NamedSharding(mesh, spec))
    for i in range(2):
        x = oracles.draw(rng, (200, 100), "f4", "tied")
        scores[f"large {i}"] = jax.device_put(x, devices[i])
    n = values_of(scores).size
    found = _check_all(scores, [n // 4])
    for key, x in scores.items():
        if isinstance(x, jax.Array):
            assert found[key].sharding.is_equivalent_to(x.sharding, x.ndim), key
            assert found[key].committed, key


def test_masks_go_with_the_default_device():
    device = jax.devices()[5]
    with jax.default_device(device):
        scores = {f"{i}": jnp.arange(3.0 + i) for i in range(8)}
        found = selection.top_k(scores, 11)
        assert all(m.devices() == {device} for m in found.values())
        np.testing.assert_array_equal(flat(found), oracles.top_k(values_of(scores), 11))


def test_a_nan_in_one_of_many_is_named():
    scores = {f"{i:02}": np.full(3 + i % 5, -np.inf, "f4") for i in range(50)}
    assert flat(selection.top_k(scores, 9)).sum() == 9
    scores["23"][1] = scores["31"][:2] = np.nan
    with pytest.raises(
        jp.NonFiniteScoreError, match=r"'23' \(1 of 6\), '31' \(2 of 4\)"
    ):
        selection.top_k(scores, 1)


@pytest.mark.parametrize("on_host", [True, False])
def test_every_leaf_is_in_one_batch(on_host):
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(_leaf(rng, i, ["f4", "f2"])) for i in range(70)]
    leaves += [jnp.ones((2**14,)), jnp.ones((2**15,)), jnp.ones((2**15,))]
    batches = _batching.batch(leaves, [None] * len(leaves), jnp.dtype("f4"), on_host)
    members = np.concatenate([b.leaves for b in batches])
    assert sorted(members.tolist()) == list(range(len(leaves)))
    assert len(batches) < len(leaves)

    def back_in_order(values):
        return _batching.unbatch(batches, values, leaves)

    in_order = back_in_order if on_host else jax.jit(back_in_order)
    back = in_order([b.values for b in batches])
    for x, y in zip(leaves, back, strict=True):
        np.testing.assert_array_equal(x, y)


@contextlib.contextmanager
def _compilations():
    """The names of what XLA compiles, or would but for its cache on disk."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Compiling "):
                names.append(message.split()[1])

    logger, handler = logging.getLogger("jax"), Handler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _tree_of(leaves, shapes):
    rng = np.random.default_rng(leaves)
    return [
        jnp.asarray(rng.normal(size=shapes[i % len(shapes)]).astype("f4"))
        for i in range(leaves)
    ]


@pytest.mark.parametrize("pool", [1, 40])
def test_the_number_of_programs_does_not_grow_with_the_leaves(pool):
    shapes = [(5 + 3 * i, 2 + i % 4) for i in range(pool)]
    number = {}
    for leaves in (100, 1_000):
        scores = _tree_of(leaves, shapes)
        jax.clear_caches()
        with _compilations() as names:
            found = selection.top_k(scores, leaves)
        assert sum(int(np.sum(m)) for m in found) == leaves
        number[leaves] = len(names)
    assert 0 < number[1_000] == number[100] <= 6, number  # none for the search itself
    others = [jnp.asarray(-np.asarray(x)) for x in scores]
    with _compilations() as names:
        selection.top_k(others, 77)
    assert not names


def test_the_number_of_programs_does_not_grow_with_the_shapes_of_larger_leaves():
    scores = _tree_of(12, [(130 + i, 127) for i in range(12)])
    assert min(x.size for x in scores) > 2**14
    expected = oracles.top_k(np.concatenate([np.ravel(x) for x in scores]), 9_999)
    jax.clear_caches()
    with _compilations() as names:
        found = selection.top_k(scores, 9_999)
    np.testing.assert_array_equal(flat(found), expected)
    assert 0 < len(names) <= 6, names  # apart: three or four for each leaf
