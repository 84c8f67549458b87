"""Products with packed weights against float64, and their gradients."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from experiments.benchmarks.formats import sparse_products as bench
from jprune import formats


def matrix(seed=0, shape=(12, 10), block=(4, 5), density=0.5, dtype=jnp.float32):
    """A weight in blocks, and the dense one in float64."""
    rng = np.random.default_rng(seed)
    grid = (shape[0] // block[0], shape[1] // block[1])
    cells = rng.permutation(np.arange(grid[0] * grid[1]) < density * grid[0] * grid[1])
    mask = np.kron(cells.reshape(grid), np.ones(block, bool)).astype(bool)
    w = jnp.asarray(rng.normal(size=shape), dtype)
    dense = np.where(mask, np.asarray(w, np.float64), 0)
    return formats.pack_blocks(*block)(w, mask), dense


def vectors(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


CASES = [((12, 10), (4, 5)), ((6, 6), (6, 6)), ((4, 4), (1, 1)), ((8, 4), (2, 1))]


@hypothesis.given(
    case=st.sampled_from(CASES),
    lead=st.sampled_from([(), (3,), (2, 3), (0,)]),
    density=st.sampled_from([0.0, 0.4, 1.0]),
    at_once=st.sampled_from([1, 60, 2**18]),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_it_is_the_dense_product(case, lead, density, at_once, seed):
    """One block at a time, some with a rest, and all in one."""
    shape, block = case
    w, dense = matrix(seed, shape, block, density)
    x = vectors(seed, *lead, shape[0])
    found = multiply(x, w, at_once=at_once)
    assert (found.shape, found.dtype) == ((*lead, shape[1]), x.dtype)
    expected = np.asarray(x, np.float64) @ dense
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


multiply = jax.jit(formats.block_matmul, static_argnames="at_once")


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_matrices_without_entries(shape):
    w = formats.pack_blocks(4, 5)(np.ones(shape, np.float32), np.ones(shape, bool))
    found = formats.block_matmul(jnp.ones((3, shape[0])), w)
    assert found.shape == (3, shape[1])
    assert not found.any()


def test_the_order_of_the_blocks_does_not_count():
    w, dense = matrix(density=0.9)
    order = np.random.default_rng(1).permutation(w.values.shape[0])
    x = vectors(2, 3, 12)
    shuffled = jax.tree.map(lambda a: a[order], w)
    for at_once in (1, 2**18):
        found = formats.block_matmul(x, shuffled, at_once=at_once)
        np.testing.assert_allclose(found, np.asarray(x) @ dense, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_dense_product():
    """Three blocks, in a batch of two and a rest."""
    w, dense = matrix(density=0.5)
    x, cotangent = vectors(3, 4, 12), vectors(4, 4, 10)

    def loss(x, values):
        y = formats.block_matmul(x, formats.with_values(w, values), at_once=40)
        return jnp.sum(y * cotangent)

    by_x, by_values = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, w.values)
    c64 = np.asarray(cotangent, np.float64)
    np.testing.assert_allclose(by_x, c64 @ dense.T, rtol=1e-4, atol=1e-4)
    by_dense = np.asarray(x, np.float64).T @ c64
    mask = np.asarray(w.unpack()[1])
    expected = formats.pack_blocks(4, 5)(by_dense.astype(np.float32), mask).values
    np.testing.assert_allclose(by_values, expected, rtol=1e-4, atol=1e-4)
    # The product is linear in either, so forwards it is itself,
    tangent = vectors(5, 4, 12)
    along = jax.jit(lambda x, t: jax.jvp(lambda x: loss(x, w.values), (x,), (t,)))
    out, forwards = along(x, tangent)
    np.testing.assert_allclose(forwards, loss(tangent, w.values), rtol=1e-3, atol=1e-3)
    # and curvature is between the two alone.
    second = jax.jit(jax.hessian(lambda s: loss(s * x, s * w.values)))(jnp.float32(1))
    np.testing.assert_allclose(second, 2 * out, rtol=1e-4)


def test_it_maps_over_inputs_and_over_weights():
    w, dense = matrix()
    x = vectors(6, 5, 3, 12)
    each = jax.vmap(formats.block_matmul, in_axes=(0, None))(x, w)
    np.testing.assert_allclose(each, np.asarray(x) @ dense, rtol=1e-4, atol=1e-4)
    others = [matrix(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(w for w, _ in others))
    found = jax.vmap(formats.block_matmul, in_axes=(None, 0))(x[0], stacked)
    expected = np.stack([np.asarray(x[0]) @ dense for _, dense in others])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_one_trace_for_all_places_of_as_many_blocks():
    traces = []

    @jax.jit
    def product(x, w):
        traces.append(1)
        return formats.block_matmul(x, w)

    for seed in range(3):
        w, dense = matrix(seed)
        x = vectors(seed, 2, 12)
        expected = np.asarray(x) @ dense
        np.testing.assert_allclose(product(x, w), expected, rtol=1e-4, atol=1e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("at_once", [1, 2**18])
def test_narrow_types_sum_in_float32(dtype, at_once):
    """4096 ones: bfloat16 stops counting at 256, float16 at 2048."""
    w = formats.pack_blocks(8, 8)(jnp.ones((4096, 8), dtype), np.ones((4096, 8), bool))
    x = jnp.ones((1, 4096), dtype)
    found = formats.block_matmul(x, w, at_once=at_once)
    assert found.dtype == dtype
    assert found.ravel().tolist() == [4096] * 8
    pattern = np.tile([True, False], 2048)[:, None] & np.ones((1, 8), bool)
    packed = formats.pack_n_of_m(1, 2)(jnp.ones((4096, 8), dtype), pattern)
    found = formats.n_of_m_matmul(x, packed)
    assert (found.dtype, found.ravel().tolist()) == (dtype, [2048] * 8)


def test_n_of_m_is_the_dense_product():
    rng = np.random.default_rng(7)
    kept = rng.random((3, 4, 5)).argsort(1).argsort(1) < 2
    mask, w = kept.reshape(12, 5), rng.normal(size=(12, 5))
    packed = formats.pack_n_of_m(2, 4)(w.astype(np.float32), mask)
    x, dense = vectors(8, 2, 3, 12), np.where(mask, w, 0)
    found = jax.jit(formats.n_of_m_matmul)(x, packed)
    np.testing.assert_allclose(found, np.asarray(x) @ dense, rtol=1e-4, atol=1e-4)
    stored = formats.pack_n_of_m(2, 4, 1)(w.T.astype(np.float32), mask.T)  # (out, in)
    np.testing.assert_array_equal(formats.n_of_m_matmul(x, stored), found)
    same = [0] * 12  # twelve equal outputs make a square matrix
    square = formats.pack_n_of_m(2, 4, 1)(w.T[same].astype(np.float32), mask.T[same])
    repeated = np.asarray(x) @ dense[:, same]
    by_axis = formats.n_of_m_matmul(x, square)
    np.testing.assert_allclose(by_axis, repeated, rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(formats.n_of_m_matmul, in_axes=(0, None))(x, packed)
    np.testing.assert_allclose(mapped, found, rtol=1e-5, atol=1e-5)

    def loss(values):
        w = formats.with_values(packed, values)
        return formats.n_of_m_matmul(x, w).sum()

    by_dense = np.broadcast_to(np.asarray(x).sum((0, 1))[:, None], (12, 5))
    expected = formats.pack_n_of_m(2, 4)(by_dense, mask).values
    found = jax.grad(loss)(packed.values)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_no_float_is_passed_that_is_not_kept():
    """An infinity in x meets no weight that is pruned: 0 * inf is not computed."""
    mask = np.array([[True, True], [False, False]])
    w = formats.pack_blocks(1, 2)(jnp.ones((2, 2)), mask)
    x = jnp.array([3.0, jnp.inf])
    assert formats.block_matmul(x, w).tolist() == [3, 3]


def test_misuse_is_named():
    w, _ = matrix()
    for x in (jnp.ones((2, 10)), jnp.ones(())):
        with pytest.raises(jp.PruningError, match=r"and \(12, 10\)"):
            formats.block_matmul(x, w)
    with pytest.raises(jp.PruningError, match="at_once is a number >= 1; got 0"):
        formats.block_matmul(jnp.ones(12), w, at_once=0)
    kernel = formats.pack_blocks(2, 2)(
        jnp.ones((3, 3, 2, 2)), np.ones((1, 1, 2, 2)) > 0
    )
    with pytest.raises(jp.PruningError, match=r"and \(3, 3, 2, 2\)"):
        formats.block_matmul(jnp.ones((1, 2)), kernel)
    with pytest.raises(jp.PruningError, match=r"got \(3,\)"):
        formats.with_values(w, jnp.ones(3))


@pytest.mark.others_code
def test_the_benchmark_times_the_same_product():
    """Masks, coordinates and rows of one weight; and blocks in three ways."""
    x, w = bench.inputs(bench.Settings(n=2, size=640), 0)
    forms = bench.forms(w, 1, 4, np.random.default_rng(0))
    found = {name: form.product(x, form.w) for name, form in forms.items()}
    dense, mask = forms["masked dense"].w
    assert mask.mean() == 0.25
    expected = np.asarray(x) @ np.where(mask, dense, 0)
    for name in ("masked dense", "BCOO", "BCSR"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-3)
    expected = np.asarray(x) @ forms["blocks of 32"].w.unpack()[0]
    for name in ("", ", each by itself", ", all at once"):
        product = found[f"blocks of 32{name}"]
        np.testing.assert_allclose(product, expected, rtol=1e-3, atol=1e-3)
    assert found["fewer outputs, dense"].shape == (2, 160)
