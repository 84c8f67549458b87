"""Pruned weights as JAX's own sparse matrices, and back."""

import jax
import jax.experimental.sparse
import jax.numpy as jnp
import numpy as np
import pytest
from support.exact import bits, random_bits
from support.format_cases import TYPES, random_mask, zeroed

import jprune as jp
from jprune import formats

of_bcoo = jax.jit(formats.of_bcoo)
of_bcsr = jax.jit(formats.of_bcsr)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_all_types_come_back_to_the_bit(dtype):
    """Random bits: NaNs with payloads, infinities, subnormals, both zeros."""
    rng = np.random.default_rng(1)
    w, m = random_bits(rng, dtype, (8, 12)), random_mask(rng, (8, 12), 0.4)
    w.ravel()[::5] = np.zeros((), dtype)  # zeros, of which some are kept
    for weight, mask in (
        of_bcoo(formats.to_bcoo(w, m)),
        of_bcsr(formats.to_bcsr(w, m)),
    ):
        assert bits(np.asarray(weight)) == bits(zeroed(w, m))
        assert bits(np.asarray(mask)) == bits(m)


def test_coordinates_agree_with_the_dense_matrix():
    rng = np.random.default_rng(4)
    w, m = rng.normal(size=(6, 5)).astype(np.float32), rng.random((6, 5)) < 0.4
    w[np.nonzero(m)[0][0], np.nonzero(m)[1][0]] = 0  # kept, and zero
    for to in (formats.to_bcoo, formats.to_bcsr):
        matrix = to(w, m)
        assert matrix.nse == m.sum()
        np.testing.assert_array_equal(matrix.todense(), zeroed(w, m))
    bcsr = formats.to_bcsr(w, m)
    ends = [m[: i + 1].sum() for i in range(6)]
    assert bcsr.indptr.tolist() == [0, *ends]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 4)])
def test_no_coordinates_at_all(shape):
    w, m = np.ones(shape, np.float32), np.zeros(shape, bool)
    c = formats
    for weight, mask in (c.of_bcoo(c.to_bcoo(w, m)), c.of_bcsr(c.to_bcsr(w, m))):
        assert (weight.shape, mask.shape) == (shape, shape)
        assert not weight.any()
        assert not mask.any()


def test_coordinates_of_more_axes_and_of_whole_channels():
    w = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    m = np.array([True, False, True, False])[None, None]
    weight, mask = formats.of_bcoo(formats.to_bcoo(w, m))
    np.testing.assert_array_equal(weight, np.where(m, w, 0))
    np.testing.assert_array_equal(mask, np.broadcast_to(m, w.shape))


def test_entries_that_only_fill_up_are_no_weights():
    """JAX pads sparse matrices with indices out of bounds."""
    w = jnp.array([[0.0, 2.0], [0.0, 3.0]])
    sparse = jax.experimental.sparse
    for matrix, of in (
        (sparse.BCOO.fromdense(w, nse=4), formats.of_bcoo),
        (sparse.BCSR.fromdense(w, nse=4), formats.of_bcsr),
    ):
        weight, mask = of(matrix)
        np.testing.assert_array_equal(weight, w)
        np.testing.assert_array_equal(mask, w != 0)


def test_entries_at_the_same_place_are_added():
    twice = (jnp.array([1.0, 4.0]), jnp.ones((2, 1), jnp.int32))
    matrix = jax.experimental.sparse.BCOO(twice, shape=(3,))
    weight, mask = formats.of_bcoo(matrix)
    assert weight.tolist() == [0, 5, 0]
    assert mask.tolist() == [False, True, False]


def test_matrices_that_mean_something_else_are_refused():
    sparse = jax.experimental.sparse
    batched = sparse.BCOO.fromdense(jnp.ones((2, 3)), n_batch=1)
    with pytest.raises(jp.PruningError, match="has 1 batch axes and 0 dense axes"):
        formats.of_bcoo(batched)
    with pytest.raises(jp.PruningError, match="two axes"):
        formats.to_bcsr(np.ones(3, np.float32), np.ones(3, bool))
