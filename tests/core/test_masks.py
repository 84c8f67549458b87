"""Mask trees: hand-counted cases, and NumPy's own bit packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import masks as masks_lib
from jprune._core import counting

DTYPES = ["f4", "bfloat16", "f2", "i4", "u1", "?"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_keeps_type_and_shape(dtype):
    params = {"w": jnp.ones((2, 3), dtype), "b": jnp.ones(3, dtype), "s": jnp.ones(())}
    mask = np.array([[True, False, True], [False, False, True]])
    masks = {"w": mask, "b": np.bool_(True), "s": np.bool_(False)}
    for apply in (jp.apply, jax.jit(jp.apply)):
        found = apply(params, masks)
        assert found["w"].dtype == params["w"].dtype
        np.testing.assert_array_equal(np.asarray(found["w"], bool), mask)
        np.testing.assert_array_equal(np.asarray(found["b"], bool), True)
        assert found["s"] == 0


def test_apply_is_no_product():
    w = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -2.0, -2.0])
    found = jp.apply([w], [jnp.arange(5) == 4])[0]
    np.testing.assert_array_equal(found, [0, 0, 0, 0, -2])
    assert not np.signbit(found[:4]).any()


def test_whole_channels_broadcast():
    params = {"kernel": jnp.arange(1.0, 7).reshape(2, 3)}
    columns = {"kernel": jnp.array([[True, False, True]])}
    rows = {"kernel": jnp.array([[False], [True]])}
    assert jp.apply(params, columns)["kernel"].tolist() == [[1, 0, 3], [4, 0, 6]]
    assert jp.apply(params, rows)["kernel"].tolist() == [[0, 0, 0], [4, 5, 6]]
    both = masks_lib.intersect(columns, rows)
    assert jp.apply(params, both)["kernel"].tolist() == [[0, 0, 0], [4, 0, 6]]


def test_truth_tables():
    a, b = {"w": np.array([True, True, False, False])}, {"w": np.tile([True, False], 2)}
    assert masks_lib.intersect(a, b)["w"].tolist() == [True, False, False, False]
    third = {"w": np.array([False, True, True, True])}
    assert masks_lib.intersect(a, b, third)["w"].tolist() == [False] * 4
    assert masks_lib.intersect(a)["w"].tolist() == a["w"].tolist()


def test_full_keeps_everything():
    params = {"w": jnp.ones((2, 3)), "n": jnp.arange(2)}
    masks = masks_lib.full(params)
    masks_lib.check(params, masks)
    assert [m.shape for m in jax.tree.leaves(masks)] == [(), ()]
    assert jax.tree.map(int, masks_lib.kept(params, masks)) == {"w": 6, "n": 2}
    assert float(jp.sparsity(params, masks)) == 0


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"a": True}, "The masks have no leaf 'b/w', which the params have.$"),
        (
            {"a": True, "b": {"v": True}},
            "no leaf 'b/w', .*; they have 'b/v'",
        ),
        ({"a": True, "b": {"w": 1.0}}, "mask of 'b/w' has type float32"),
        (
            {"a": True, "b": {"w": np.ones(4, bool)}},
            r"'b/w' has shape \(4,\).*\(2, 4\)",
        ),
        ({"a": True, "b": {"w": np.ones((2, 2), bool)}}, r"'b/w' has shape \(2, 2\)"),
        ({"a": True, "b": {"w": np.ones((1, 2, 4), bool)}}, r"shape \(1, 2, 4\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    params = {"a": jnp.ones(3), "b": {"w": jnp.ones((2, 4))}}
    for call in (masks_lib.check, jp.apply, jp.sparsity, masks_lib.kept, jp.summary):
        with pytest.raises(jp.PruningError, match=message):
            call(params, jax.tree.map(np.asarray, masks))


def test_counts_by_hand():
    params = {
        "full": jnp.ones((2, 4)),
        "columns": jnp.ones((3, 4)),
        "never": jnp.ones(10),
        "empty": jnp.ones((0, 4)),
        "scalar": jnp.ones(()),
    }
    masks = {
        "full": jnp.array([[True, False, False, False], [True, True, False, False]]),
        "columns": jnp.array([[True, False, True, True]]),
        "never": jnp.array(True),
        "empty": jnp.ones((0, 4), bool),
        "scalar": jnp.array(True),
    }
    for kept in (masks_lib.kept, jax.jit(masks_lib.kept)):
        counts = jax.tree.map(int, kept(params, masks))
        assert counts == {"full": 3, "columns": 9, "never": 10, "empty": 0, "scalar": 1}
    each = jax.tree.map(float, masks_lib.sparsity_per_leaf(params, masks))
    expected = {"full": 0.625, "columns": 0.25, "never": 0, "empty": 0, "scalar": 0}
    assert each == expected
    # 8 pruned of the 20 that can be: leaves with a scalar mask do not count.
    assert float(jp.sparsity(params, masks)) == np.float32(8 / 20)


def test_counts_of_large_leaves_are_exact():
    n = 2**15
    params = [jax.ShapeDtypeStruct((n, n), jnp.float32)] * 3
    column = jnp.arange(n) < n - 1
    masks = [column[None], column[:, None], jnp.zeros((1, n), bool)]
    expected = [n * (n - 1), n * (n - 1), 0]
    assert jax.tree.map(int, masks_lib.kept(params, masks)) == expected
    removed = (3 * n * n - sum(expected)) / (3 * n * n)  # of more than 2^31
    assert float(jp.sparsity(params, masks)) == pytest.approx(removed, rel=1e-6)


def test_counts_beyond_int32_are_exact():
    """Masks of channels, of leaves and of a tree with 2^31 weights and more."""
    n = 2**17
    params = {
        "large": jax.ShapeDtypeStruct((n, n), jnp.float32),  # 2^34 weights
        "edge": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16),  # 2^31
        "never": jax.ShapeDtypeStruct((3, 2**30), jnp.float32),
    }
    masks = {
        "large": (jnp.arange(n) % 4 != 0)[None],
        "edge": (jnp.arange(2**15) > 0)[None],
        "never": jnp.array(True),
    }
    found = masks_lib.kept(params, masks)
    assert found == {
        "large": 3 * 2**32,
        "edge": 2**16 * (2**15 - 1),
        "never": 3 * 2**30,
    }
    assert all(type(count) is int for count in found.values())
    each = jax.tree.map(float, masks_lib.sparsity_per_leaf(params, masks))
    assert each == {"large": 0.25, "edge": 2**-15, "never": 0.0}
    expected = (2**32 + 2**16) / (2**34 + 2**31)
    for sparsity in (
        jp.sparsity(params, masks),
        jax.jit(lambda m: jp.sparsity(params, m))(masks),
    ):
        assert float(sparsity) == pytest.approx(expected, rel=1e-7)
    report = jp.summary(params, masks)["total"]
    assert report["kept"] == sum(found.values())
    assert report["sparsity"] == pytest.approx(expected, rel=1e-12)


def test_leaves_beyond_int32_are_refused_by_name_inside_of_a_trace():
    params = {"w": {"large": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}}
    masks = {"w": {"large": jnp.ones((1, 2**15), bool)}}
    said = r"'w/large' has shape \(65536, 32768\): 2\^31 .*outside of jit"
    with pytest.raises(jp.PruningError, match=said):
        jax.jit(lambda m: masks_lib.kept(params, m))(masks)
    params = {"w": {"large": jax.ShapeDtypeStruct((2**16 - 1, 2**15), jnp.float32)}}
    counts = jax.jit(lambda m: masks_lib.kept(params, m))(masks)
    assert int(counts["w"]["large"]) == 2**31 - 2**15


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (2, 9, 2), (0, 4), (1, 1)])
def test_counts_of_parts_add_up(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    most = max(1, mask.size // max(1, max(shape, default=1)))
    for limit in (2**32 - 1, most, most + 1, 3 * most):
        parts = counting.true_entries(mask, limit)
        assert sum(n for n, _ in parts) == mask.size
        assert max(n for n, _ in parts) <= limit
        assert sum(int(count) for _, count in parts) == mask.sum()
