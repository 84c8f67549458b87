"""Packed weights: bytes by hand, and every bit back, whatever type and mask."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.exact import bits, random_bits
from support.format_cases import NARROW, TYPES, random_mask, zeroed

import jprune as jp
from jprune import formats

unpacked = jax.jit(lambda packed: packed.unpack())


def assert_round_trip(pack, w, m):
    packed = pack(w, m)
    assert packed.shape == w.shape
    weight, mask = unpacked(packed)
    assert weight.dtype == w.dtype
    assert bits(np.asarray(weight)) == bits(zeroed(w, m))
    assert bits(np.asarray(mask)) == bits(np.asarray(m))
    return packed


def n_of_m(rng, shape, n, m, axis):
    """A mask that keeps n of each m, by NumPy."""
    axis %= len(shape)
    groups = (*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
    kept = rng.random(groups).argsort(axis + 1).argsort(axis + 1) < n
    return kept.reshape(shape)


def in_blocks(rng, shape, height, width, density=0.5):
    lines = math.prod(shape[:-1])
    kept = random_mask(rng, (lines // height, shape[-1] // width), density)
    return np.kron(kept, np.ones((height, width), bool)).astype(bool).reshape(shape)


# ---- bytes by hand ----


def test_bits_by_hand():
    w = np.arange(10, dtype=np.int8).reshape(2, 5)
    m = np.array([[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]], bool)
    packed = formats.pack_bits(w, m)
    assert packed.values.tolist() == [0, 4, 7, 8]
    assert packed.bits.tolist() == [0b10001001, 0b10_000000]


def test_whole_channels_take_a_bit_each():
    packed = formats.pack_bits(np.ones((300, 9), np.float32), np.arange(9)[None] < 2)
    assert packed.values.shape == (600,)
    assert packed.bits.tolist() == [0b11000000, 0]


def test_n_of_m_by_hand():
    w = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    m = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], bool)
    packed = formats.pack_n_of_m(2, 4, axis=0)(w, m)
    assert packed.values.tolist() == [[1, 6], [7, 8]]
    assert packed.positions.tolist() == [0b00_10_11_11]
    along = formats.pack_n_of_m(1, 2, axis=-1)(w, np.array([[1, 0], [0, 1]] * 2, bool))
    assert along.values.ravel().tolist() == [1, 4, 5, 8]
    assert along.positions.tolist() == [0b0101_0000]


@pytest.mark.parametrize(
    ("m", "width"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)]
)
def test_positions_take_no_more_bits_than_they_need(m, width):
    rng = np.random.default_rng(m)
    packed = assert_round_trip(
        formats.pack_n_of_m(1, m, axis=0),
        np.arange(2 * m * 3, dtype=np.int32).reshape(2 * m, 3),
        n_of_m(rng, (2 * m, 3), 1, m, 0),
    )
    assert packed.positions.size == -(-width * 6 // 8)


def test_blocks_by_hand():
    w = np.arange(24, dtype=np.float32).reshape(4, 6)
    m = np.zeros((4, 6), bool)
    m[:2, 3:] = m[2:, :3] = True
    packed = formats.pack_blocks(2, 3)(w, m)
    assert packed.values.tolist() == [
        [[3, 4, 5], [9, 10, 11]],
        [[12, 13, 14], [18, 19, 20]],
    ]
    assert (packed.rows.tolist(), packed.columns.tolist()) == ([0, 1], [1, 0])
    assert packed.grid == (2, 2)


# ---- every bit back ----


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_all_types_come_back_to_the_bit(dtype):
    """Random bits: NaNs with payloads, infinities, subnormals, both zeros."""
    rng = np.random.default_rng(1)
    shape = (8, 12)
    w = random_bits(rng, dtype, shape)
    w.ravel()[::5] = np.zeros((), dtype)  # zeros, of which some are kept
    m = rng.random(shape) < 0.4
    blocks, pattern = in_blocks(rng, shape, 4, 3), n_of_m(rng, shape, 2, 4, 0)
    assert_round_trip(formats.pack_bits, w, m)
    assert_round_trip(formats.pack_dense, w, m)
    assert_round_trip(formats.pack_n_of_m(2, 4), w, pattern)
    assert_round_trip(formats.pack_blocks(4, 3), w, blocks)


def test_minus_zero_and_a_signalling_nan_stay_what_they_are():
    w = np.array([0x80000000, 0x7F800001, 0xFFC12345, 0, 0x00000001], np.uint32)
    for kept in (np.ones(5, bool), np.arange(5) != 3):
        weight, mask = formats.pack_bits(w.view(np.float32), kept).unpack()
        assert np.asarray(weight).view(np.uint32).tolist() == w.tolist()
        assert mask.tolist() == kept.tolist()


SHAPES = [(), (7,), (3, 0, 2), (4, 6), (3, 3, 4, 8)]


@hypothesis.given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    whole=st.sampled_from([0, 0, 0, 1, 2, 8, 15]),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_any_mask_comes_back(shape, dtype, density, whole, seed):
    """Full masks, whole channels along any axes, a mask without axes."""
    rng = np.random.default_rng(seed)
    w = random_bits(rng, jnp.dtype(dtype), shape)
    fits = tuple(1 if whole >> i & 1 else n for i, n in enumerate(shape))
    m = random_mask(rng, () if whole == 15 else fits, density)
    for pack in (formats.pack_bits, formats.pack_dense):
        assert_round_trip(pack, w, np.asarray(m))


PATTERNS = [((4, 6), 1, 3, 1), ((8, 4), 3, 4, 0), ((3, 3, 4, 8), 2, 4, -2)]
PATTERNS += [((3, 3, 4, 8), 4, 4, -2), ((6,), 1, 6, 0), ((0, 4), 2, 4, 1)]


@hypothesis.given(
    case=st.sampled_from(PATTERNS),
    whole=st.booleans(),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_any_n_of_m_mask_comes_back(case, whole, seed):
    shape, n, m, axis = case
    rng = np.random.default_rng(seed)
    fits = list(shape)
    if whole and 0 not in shape:  # the same pattern along all other axes
        fits = [1] * len(shape)
        fits[axis] = shape[axis]
    kept = n_of_m(rng, tuple(fits), n, m, axis)
    w = random_bits(rng, np.dtype(np.float32), shape)
    assert_round_trip(formats.pack_n_of_m(n, m, axis), w, kept)


CUTS = [((4, 6), 2, 3), ((4, 6), 4, 6), ((4, 6), 1, 1), ((3, 3, 4, 8), 2, 8)]
CUTS += [((0, 6), 2, 3)]


@hypothesis.given(
    case=st.sampled_from(CUTS),
    density=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_any_mask_of_blocks_comes_back(case, density, seed):
    shape, height, width = case
    rng = np.random.default_rng(seed)
    w = random_bits(rng, np.dtype(np.float32), shape)
    m = in_blocks(rng, shape, height, width, density)
    assert_round_trip(formats.pack_blocks(height, width), w, m)


def test_whole_rows_are_blocks_and_come_back_narrow():
    w, m = np.ones((4, 6), np.float32), np.array([[True], [True], [False], [False]])
    assert assert_round_trip(formats.pack_blocks(2, 2), w, m).values.shape[0] == 3


# ---- pytrees ----


def every_format():
    rng = np.random.default_rng(3)
    w = rng.normal(size=(8, 8)).astype(np.float32)
    pattern, blocks = n_of_m(rng, (8, 8), 2, 4, 0), in_blocks(rng, (8, 8), 4, 4)
    return {
        "dense": formats.pack_dense(w, pattern),
        "bits": formats.pack_bits(w, pattern),
        "pattern": formats.pack_n_of_m(2, 4)(w, pattern),
        "blocks": formats.pack_blocks(4, 4)(w, blocks),
    }


@pytest.mark.parametrize("name", every_format())
def test_what_is_static_survives(name):
    packed = every_format()[name]
    weight, mask = packed.unpack()  # eager
    for a, b in zip(unpacked(packed), (weight, mask), strict=True):
        assert bits(a) == bits(b)
    doubled = jax.tree.map(lambda x: 2 * x if x.dtype == jnp.float32 else x, packed)
    np.testing.assert_array_equal(doubled.unpack()[0], 2 * weight)
    assert jax.tree.structure(jax.jit(lambda p: p)(packed)) == jax.tree.structure(
        packed
    )
    abstract = jax.eval_shape(lambda p: p.unpack(), packed)
    assert (abstract[0].shape, abstract[1].dtype) == ((8, 8), bool)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), packed, doubled)
    weights, masks = jax.vmap(lambda p: p.unpack())(stacked)
    np.testing.assert_array_equal(weights, jnp.stack([weight, 2 * weight]))
    np.testing.assert_array_equal(masks, jnp.stack([mask, mask]))
    carried, _ = jax.lax.scan(lambda p, _: (p, None), packed, length=2)
    np.testing.assert_array_equal(carried.unpack()[0], weight)


def test_values_alone_are_floats_and_one_trace_serves_all_of_a_kind():
    traces = []

    @jax.jit
    def total(packed):
        traces.append(packed.shape)
        return jnp.sum(packed.unpack()[0])

    for seed in range(3):
        w = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
        found = total(formats.pack_bits(w, np.arange(4)[None] < 2))
        np.testing.assert_allclose(found, w[:, :2].sum(), rtol=1e-5)
    wide = formats.pack_bits(np.ones((2, 8), np.float32), np.arange(8)[None] < 4)
    assert total(wide) == 8
    assert traces == [(4, 4), (2, 8)]


@pytest.mark.parametrize("name", every_format())
def test_gradients_reach_the_values(name):
    """Those of the weight at the kept places, for one and for many at once."""
    packed = every_format()[name]
    rng = np.random.default_rng(5)
    cotangents = rng.normal(size=(3, 8, 8)).astype(np.float32)

    def loss(values, packed, cotangent):
        weight, _ = dataclasses.replace(packed, values=values).unpack()
        return jnp.vdot(weight, cotangent) + jnp.vdot(weight, weight)

    stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), packed)
    grads = jax.jit(jax.vmap(jax.grad(loss)))(stacked.values, stacked, cotangents)
    weight, mask = (np.asarray(x) for x in packed.unpack())
    for grad, cotangent in zip(grads, cotangents, strict=True):
        spread = np.asarray(dataclasses.replace(packed, values=grad).unpack()[0])
        expected = 2 * weight + cotangent
        np.testing.assert_allclose(spread[mask], expected[mask], rtol=1e-5)
        assert grad.size == packed.values.size


# ---- refused ----


@pytest.mark.parametrize(
    ("pack", "shape", "match"),
    [
        (formats.pack_n_of_m(1, 4), (8, 4), "does not keep 1 of every 4 along axis 0"),
        (formats.pack_n_of_m(2, 4, axis=3), (8, 4), "axis 3 of shape"),
        (formats.pack_n_of_m(2, 3), (8, 4), "3 does not divide axis 0"),
        (formats.pack_n_of_m(1, 1), (), "axis -2 of shape"),
        (formats.pack_blocks(3, 4), (8, 4), r"\(3, 4\) do not divide"),
        (formats.pack_blocks(4, 4), (8, 4), r"parts of some blocks of shape \(4, 4\)"),
        (formats.pack_blocks(1, 1), (8,), r"do not divide shape \(8,\)"),
    ],
)
def test_masks_that_do_not_fit_a_format(pack, shape, match):
    m = np.zeros(shape, bool) if len(shape) < 2 else np.tile(np.arange(4) < 3, (8, 1))
    with pytest.raises(formats.FormatError, match=match):
        pack(np.ones(shape, np.float32), m)


def test_more_than_n_do_not_fit_and_fewer_neither():
    for kept in (1, 3):
        m = np.arange(4)[:, None] < np.full((1, 3), kept)
        with pytest.raises(formats.FormatError, match="does not keep 2 of every 4"):
            formats.pack_n_of_m(2, 4)(np.ones((4, 3), np.float32), m)


@pytest.mark.parametrize("name", sorted(NARROW))
def test_two_bit_integers_only_go_dense(name):
    w = random_bits(np.random.default_rng(0), jnp.dtype(name), (4, 4))
    m = np.arange(4)[:, None] < np.array([2, 2, 2, 2])
    for pack in (
        formats.pack_bits,
        formats.pack_n_of_m(2, 4),
        formats.pack_blocks(2, 2),
    ):
        with pytest.raises(formats.FormatError, match=f"does not move {name}"):
            pack(w, m)
    assert_round_trip(formats.pack_dense, w, m)


def test_a_mask_without_axes_has_no_pattern():
    for pack in (formats.pack_n_of_m(1, 1), formats.pack_blocks(1, 1)):
        with pytest.raises(formats.FormatError, match="has no pattern"):
            pack(np.ones((2, 2), np.float32), np.True_)


def test_misuse_is_refused_where_it_is_written():
    for n, m in ((0, 4), (5, 4), (1, 257)):
        with pytest.raises(jp.PruningError, match=f"got {n}:{m}"):
            formats.pack_n_of_m(n, m)
    with pytest.raises(jp.PruningError, match="an axis or a layout; got axis=0"):
        formats.pack_n_of_m(2, 4, axis=0, layout=jp.kernel_axes)
    with pytest.raises(jp.PruningError, match=r"\(0, 4\)"):
        formats.pack_blocks(0, 4)


@pytest.mark.parametrize("pack", [formats.pack_dense, formats.pack_bits])
def test_what_would_change_is_refused(pack):
    with pytest.raises(jp.PruningError, match="float64 to float32"):
        pack(np.ones(3), np.ones(3, bool))
    with pytest.raises(jp.PruningError, match="key"):
        pack(jax.random.key(0), np.True_)
    with pytest.raises(jp.PruningError, match=r"shape \(2,\)"):
        pack(np.ones(3, np.float32), np.ones(2, bool))
