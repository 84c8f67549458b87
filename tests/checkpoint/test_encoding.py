import hashlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from support.exact import DTYPES, assert_same, bits, random_bits

from jprune._core import encoding

RNG = np.random.default_rng(0)


def round_trip(leaf, like=None):
    stored, entry = encoding.encode(leaf)
    like = leaf if like is None else like
    assert encoding.describe(like) == encoding.describe(leaf)
    return encoding.decode(entry, np.asarray(stored), like)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    seed=st.integers(0, 999),
)
def test_any_bits_of_any_dtype_come_back(dtype, shape, seed):
    leaf = random_bits(np.random.default_rng(seed), dtype, shape)
    stored, entry = encoding.encode(leaf)
    assert stored.dtype.name in ("bfloat16", *np.sctypeDict)
    assert (stored.dtype.name, list(stored.shape)) == encoding.stored_type(entry)
    assert bits(encoding.decode(entry, stored, leaf)) == bits(leaf)


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(st.one_of(st.floats(), st.booleans(), st.complex_numbers()))
def test_python_numbers_come_back(number):
    assert bits(round_trip(number)) == bits(number)


@pytest.mark.parametrize("number", [0, -(2**63), 2**64 - 1])
def test_python_integers_come_back(number):
    assert_same(round_trip(number), number)


def test_a_mask_takes_a_bit_for_each_weight():
    mask = RNG.random((9, 7)) < 0.5
    stored, entry = encoding.encode(jnp.asarray(mask))
    assert (stored.dtype, stored.shape) == (np.uint8, (8,))  # ceil(63 / 8)
    powers = [128, 64, 32, 16, 8, 4, 2, 1]
    assert stored[0] == np.dot(mask.ravel()[:8], powers)
    assert stored[7] == np.dot(mask.ravel()[56:], powers[:7])
    assert (entry["dtype"], entry["shape"]) == ("bool", [9, 7])


@pytest.mark.parametrize("order", ["<f4", ">f4"])
@pytest.mark.parametrize("view", [np.array, np.asfortranarray, lambda x: x.T[::2].T])
def test_the_checksum_is_of_little_endian_bytes_in_row_major_order(order, view):
    x = view(RNG.normal(size=(3, 4)).astype(order))
    little = b"".join(np.float32(v).astype("<f4").tobytes() for v in x.ravel())
    assert encoding.encode(x)[1]["sha256"] == hashlib.sha256(little).hexdigest()
    assert np.array_equal(round_trip(x), x)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_draw_what_they_would_have_drawn(impl):
    keys = jax.random.split(jax.random.key(4, impl=impl), (2, 3))
    restored = round_trip(keys, jax.eval_shape(lambda: keys))
    assert_same(restored, keys)
    drawn = jax.random.uniform(restored[1, 2], (5,))
    assert np.array_equal(drawn, jax.random.uniform(keys[1, 2], (5,)))


def test_a_weak_type_still_promotes_as_it_did():
    for leaf in (jnp.asarray(0.1), jnp.full(3, 0.1), jnp.asarray(np.nan) * 1.0):
        assert leaf.weak_type
        restored = round_trip(leaf, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        assert_same(restored, leaf)
        assert (jnp.ones(leaf.shape, jnp.bfloat16) * restored).dtype == jnp.bfloat16


def test_types_follow_like():
    values = np.arange(3, dtype=np.int8)
    assert_same(round_trip(jnp.asarray(values), values), values)
    assert_same(round_trip(values, jnp.asarray(values)), jnp.asarray(values))
    assert_same(round_trip(np.float32(2), np.ones((), np.float32)), np.float32(2)[...])
    assert_same(round_trip(np.ones((), np.float32), np.float32(0)), np.float32(1))


def test_what_jax_would_cast_is_refused():
    like = jax.ShapeDtypeStruct((3,), np.float64)
    with pytest.raises(ValueError, match=r"float64 to float32; set jax_enable_x64"):
        round_trip(np.ones(3), like)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],
        lambda x: x[:2],
        lambda x: x.reshape(1, 3),
        lambda x: x.view(np.int32),
        lambda x: x.astype(np.float64),
    ],
)
def test_what_was_not_stored_is_not_decoded(change):
    stored, entry = encoding.encode(np.float32([1, 2, 3]))
    with pytest.raises(ValueError, match="does not match its checksum"):
        encoding.decode(entry, change(stored), stored)


@pytest.mark.parametrize(
    ("leaf", "match"),
    [
        ("text", "it is a str, not an array"),
        (np.tanh, "it is a ufunc, not an array"),
        (np.array([None]), "arrays of object cannot be stored"),
        (np.array(["a"]), "arrays of <U1 cannot be stored"),
        (np.array(["2026-01-01"], "M8[D]"), "arrays of datetime"),
        (np.zeros(2, [("a", "i4")]), "cannot be stored"),
        (np.zeros(2, jax.dtypes.float0), "cannot be stored"),
        (2**80, "arrays of object"),
        (jax.ShapeDtypeStruct((2,), np.float32), "arrays of object"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(leaf, match):
    with pytest.raises(ValueError, match=match):
        encoding.encode(leaf)


# ---- parts of one leaf on many processes ----


def described_by_boxes(x, *boxes):
    """What processes that hold these parts of an array would say of it."""
    plain = encoding.encode(x)[1]
    return [
        {**plain, "sha256": {box: hashlib.sha256(x[part].tobytes()).hexdigest()}}
        for box, part in boxes
    ]


def test_a_leaf_of_many_processes_is_checked_part_by_part():
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    parts = [("0:4,0:2", np.s_[:, :2]), ("0:4,2:6", np.s_[:, 2:])]
    entries = described_by_boxes(x, *parts)
    entry = encoding.join(entries)
    assert_same(encoding.decode(entry, x, x), x)
    changed = x.copy()
    changed[3, 2] += 1
    with pytest.raises(ValueError, match=r"does not match.*\[0:4,2:6\]"):
        encoding.decode(entry, changed, x)
    with pytest.raises(ValueError, match="shards are missing; found: 0:4,0:2"):
        encoding.join(entries[:1])
    whole = encoding.encode(x)[1]
    assert encoding.join([whole, whole]) == whole
    for other in ({"dtype": "int32"}, {"sha256": "0"}, {"weak": True}):
        with pytest.raises(ValueError, match="differs between the processes"):
            encoding.join([whole, {**whole, **other}])
    with pytest.raises(ValueError, match="only some of the processes hold"):
        encoding.join([entries[0], whole])
    with pytest.raises(ValueError, match="differs between the processes"):
        encoding.join([whole, entries[0]])


# ---- devices ----


def mesh_of(devices, axis_type=jax.sharding.AxisType.Auto):
    return jax.make_mesh((devices,), ("x",), axis_types=(axis_type,))


def test_arrays_come_back_to_the_sharding_of_like():
    rows = jax.sharding.NamedSharding(mesh_of(8), jax.P("x"))
    columns = jax.sharding.NamedSharding(mesh_of(4), jax.P(None, "x"))
    w = RNG.normal(size=(16, 8)).astype(np.float32)
    leaves = [w, w > 0, jax.random.split(jax.random.key(0), 8), jnp.full((8, 4), 0.1)]
    for leaf in leaves:
        leaf = jax.device_put(leaf, rows)
        restored = round_trip(leaf)
        assert_same(restored, leaf)
        assert restored.sharding == rows
    leaf = jax.device_put(w, rows)
    like = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=columns)
    restored = round_trip(leaf, like)
    assert_same(restored, leaf)
    assert restored.sharding == columns


def test_what_was_not_committed_to_a_device_is_not():
    device = jax.devices()[3]
    free = round_trip(jnp.ones(2))
    pinned = round_trip(jax.device_put(np.ones(2, np.float32), device))
    assert not free.committed
    assert pinned.committed
    assert (free + pinned).devices() == {device}


def test_an_abstract_mesh_takes_the_devices_in_force():
    mesh = mesh_of(8, jax.sharding.AxisType.Explicit)
    sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
    abstract = jax.sharding.NamedSharding(mesh.abstract_mesh, jax.P("x"))
    x = jax.device_put(np.arange(8, dtype=np.float32), sharding)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=abstract)
    with jax.set_mesh(mesh):
        restored = round_trip(x, like)
    assert_same(restored, x)
    assert restored.sharding == sharding
