"""Masks as bits: NumPy's packing by rows, meshes, and training as with booleans."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune as jp
from jprune import checkpoint, testing
from jprune.testing import _pruners

pytestmark = pytest.mark.others_code


def _mask(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    shape=st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 99),
)
def test_packing_is_lossless_and_numpys(shape, seed):
    mask, like = _mask(shape, seed), {"w": jax.ShapeDtypeStruct(shape, jnp.int8)}

    @jax.jit
    def there_and_back(masks):
        packed = jp.masks.pack(masks, like)
        return packed, jp.masks.unpack(packed, like)

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        packed, found = there_and_back({"w": mask})
    assert packed["w"].dtype == jnp.uint8
    assert packed["w"].shape == (*shape[:-1], -(-shape[-1] // 8))
    np.testing.assert_array_equal(packed["w"], np.packbits(mask, axis=-1))
    assert found["w"].dtype == bool
    np.testing.assert_array_equal(found["w"], mask)


def test_a_row_longer_than_a_byte_can_count():
    mask = _mask((3, 1000))
    packed = jp.masks.pack([mask], [mask])
    assert packed[0].shape == (3, 125)
    np.testing.assert_array_equal(jp.masks.unpack(packed, [mask])[0], mask)


def test_masks_that_broadcast_stay_boolean():
    params = {"w": jnp.ones((4, 16)), "b": jnp.ones(16), "row": jnp.ones((1, 16))}
    masks = {"w": _mask((1, 16)), "b": np.True_, "row": _mask((1, 16))}
    packed = jp.masks.pack(masks, params)
    types = jax.tree.map(lambda m: (m.dtype, m.shape), packed)
    assert types == {"w": (bool, (1, 16)), "b": (bool, ()), "row": (np.uint8, (1, 2))}
    for a, b in zip(
        jax.tree.leaves(jp.masks.unpack(packed, params)),
        jax.tree.leaves(masks),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 20), r"'layer/w' has shape \(3, 1\); .*\(3, 20\) takes \(3, 3\)"),
        ((4, 3), r"\(4, 3\) takes \(4, 1\)"),
        ((), r"shape \(\) takes no bytes"),
    ],
)
def test_bytes_of_another_shape_are_refused(shape, message):
    mask = {"layer": {"w": _mask((3, 3))}}
    packed = jp.masks.pack(mask, mask)
    like = {"layer": {"w": jax.ShapeDtypeStruct(shape, bool)}}
    with pytest.raises(jp.PruningError, match=message):
        jp.masks.unpack(packed, like)
    with pytest.raises(
        jp.PruningError, match=r"have no leaf 'layer/v'.* have 'layer/w'"
    ):
        jp.masks.unpack(packed, {"layer": {"v": mask["layer"]["w"]}})
    with pytest.raises(jp.PruningError, match="'layer/w' has type uint8"):
        jp.masks.check(mask, packed)


_SPECS = [
    # Where the last axis is in whole bytes on each device, its sharding stays too.
    ((8, 24), PartitionSpec("a"), PartitionSpec("a")),
    ((8, 5), PartitionSpec("a"), PartitionSpec("a")),
    ((8, 64), PartitionSpec("a", "b"), PartitionSpec("a", "b")),
    ((8, 24), PartitionSpec("a", "b"), PartitionSpec("a")),
    ((3, 64), PartitionSpec(None, ("a", "b")), PartitionSpec(None, ("a", "b"))),
    ((4, 8, 10), PartitionSpec("a", "b"), PartitionSpec("a", "b")),
]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("shape", "spec", "packed_spec"), _SPECS)
def test_shardings_survive(shape, spec, packed_spec, axis_type):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    mask = _mask(shape)
    m = jax.device_put(jnp.asarray(mask), NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        packed = jax.jit(jp.masks.pack)([m], [m])
        found = jax.jit(jp.masks.unpack)(packed, [m])[0]
    expected = NamedSharding(mesh, packed_spec)
    assert packed[0].sharding.is_equivalent_to(expected, len(shape))
    np.testing.assert_array_equal(packed[0], np.packbits(mask, axis=-1))
    np.testing.assert_array_equal(found, mask)
    if axis_type is AxisType.Explicit or packed_spec == spec:
        assert found.sharding.is_equivalent_to(m.sharding, len(shape))


def _loss(params, x):
    return sum(
        jnp.sum(jnp.square(w - x).astype(jnp.float32)) for w in jax.tree.leaves(params)
    )


_PRUNER = optax.chain(jp.score_by_magnitude(), jp.keep_above(0.9))


def _tx(packed, pruner=_PRUNER, every=2, inner=None, **options):
    inner = inner or optax.adamw(1e-2)
    return jp.sparsify(inner, pruner, every=every, packed=packed, **options)


def _loop(tx, params, steps=5, donate=()):
    @functools.partial(jax.jit, donate_argnums=donate)
    def step(params, state, x):
        updates, state = tx.update(jax.grad(_loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    state, params = tx.init(params), jax.tree.map(jnp.copy, params)
    for i in range(steps):
        params, state = step(params, state, jnp.sin(jnp.float32(i)))
    return params, state


def _scanned(tx, params, steps=5):
    def body(carry, x):
        params, state = carry
        updates, state = tx.update(jax.grad(_loss)(params, x), state, params)
        return (optax.apply_updates(params, updates), state), None

    xs = jnp.sin(jnp.arange(steps, dtype=jnp.float32))
    return jax.jit(lambda c: lax.scan(body, c, xs)[0])((params, tx.init(params)))


def _from_outside(tx, params, pruner):
    refresh = jax.jit(functools.partial(jp.refresh, pruner))
    update, state = jax.jit(tx.update), tx.init(params)
    for i in range(5):
        if i % 2 == 0:
            params, state = refresh(state, params)
        grads = jax.grad(_loss)(params, jnp.sin(jnp.float32(i)))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _rewinding(packed, params):
    rounds = {"every": 2, "begin": 2, "end": 4}
    inner = jp.rewind(optax.adam(1e-2), to=1, **rounds)
    return _loop(_tx(packed, inner=inner, **rounds), params)


def _partition(packed, params):
    tx = optax.partition(
        {"conv": _tx(packed), "dense": _tx(packed), "rest": optax.adam(1e-2)},
        lambda tree: jp.label(
            tree, [("conv/.*", "conv"), ("blocks/.*", "dense"), (".*", "rest")]
        ),
    )
    return _loop(tx, params)


_WAYS = {
    "donated": lambda packed, params: _loop(_tx(packed), params, donate=(0, 1)),
    "scan": lambda packed, params: _scanned(_tx(packed), params),
    "MultiSteps": lambda packed, params: _loop(
        optax.MultiSteps(_tx(packed, every=1), 2), params
    ),
    "partition": _partition,
    "rewind": _rewinding,
    "refresh from outside": lambda packed, params: _from_outside(
        _tx(packed, _PRUNER, every=None), params, _PRUNER
    ),
    "channels": lambda packed, params: _loop(
        _tx(
            packed,
            optax.chain(
                jp.score_by_magnitude(),
                jp.pool_over_axes(jp.l2_norm, keep="output"),
                jp.keep_top(0.5),
            ),
        ),
        params,
    ),
}


def _same(a, b):
    """The same zeros, and the same weights but for the last bits: XLA fuses anew."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x == 0, y == 0)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", _WAYS)
def test_training_is_as_with_boolean_masks(way):
    params = testing.example_params()
    del params["blocks"][1], params["norm"]
    plain, plain_state = _WAYS[way](False, params)
    packed, state = _WAYS[way](True, params)
    _same(plain, packed)
    masks = jp.masks_of(state, params)
    for a, b in zip(
        jax.tree.leaves(jp.masks_of(plain_state, params)),
        jax.tree.leaves(masks),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert 0.4 < float(jp.sparsity(params, masks)) < 0.8
    held = [x for x in jax.tree.leaves(state) if x.dtype == jnp.uint8]
    if way == "channels":
        assert held == []
        return
    # (3, 3, 8, 16) and (16, 32) in rows of whole bytes, and a query's (16, 2, 8).
    expected = {"partition": [64, 144]}.get(way, [32, 64, 144])
    assert sorted(x.nbytes for x in held) == expected
    with pytest.raises(jp.PruningError, match=r"masks_of\(opt_state, params\)"):
        jp.masks_of(state)


def test_vmap_over_sparsities():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(9, 11)))}
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)

    def run(sparsity, packed):
        pruner = jp.recipes.gradual_magnitude(sparsity, begin=0, steps=3)
        trained, state = _scanned(_tx(packed, pruner, every=1, end=3), params)
        return trained, jp.masks_of(state, params)

    sparsities = jnp.array([0.25, 0.5, 0.9])
    plain, packed = (
        jax.jit(jax.vmap(functools.partial(run, packed=packed)))(sparsities)
        for packed in (False, True)
    )
    _same(plain, packed)
    gone = np.sum(~np.asarray(packed[1]["kernel"]), axis=(1, 2))
    assert gone.tolist() == [round(99 * s) for s in (0.25, 0.5, 0.9)]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_the_bits_lie_with_their_weights(axis_type):
    rng = np.random.default_rng(0)
    params = {
        "rows": {"kernel": jnp.asarray(rng.normal(size=(16, 20)), jnp.float32)},
        "columns": {"kernel": jnp.asarray(rng.normal(size=(6, 64)), jnp.float32)},
    }
    specs = {"rows": PartitionSpec("d"), "columns": PartitionSpec(None, "d")}
    grads = _pruners.random_like(params)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    place = lambda tree: {  # noqa: E731
        k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in tree.items()
    }
    tx = _tx(True, moments="zero")
    alone, state = jax.jit(tx.update)(grads, tx.init(params), params)
    with jax.set_mesh(mesh):
        sharded = place(params)
        first = jax.jit(tx.init)(sharded)
        step = jax.jit(tx.update, donate_argnums=1)
        updates, second = step(place(grads), first, sharded)
        updates, second = step(place(grads), second, sharded)
    alone, state = jax.jit(tx.update)(grads, state, params)
    _same(alone, updates)
    for key, spec in specs.items():
        held = second.masks[key]["kernel"]
        assert held.dtype == jnp.uint8
        np.testing.assert_array_equal(held, state.masks[key]["kernel"])
        assert held.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


def test_a_checkpoint_holds_the_bits(tmp_path):
    params = {"kernel": testing.example_params()["blocks"][0]["kernel"]}
    trained, state = _loop(_tx(True), params)
    checkpoint.save(tmp_path, 1, (trained, state))
    like = jax.eval_shape(lambda: (params, _tx(True).init(params)))
    restored, restored_state = checkpoint.restore(tmp_path, like)
    for a, b in zip(
        jax.tree.leaves((trained, state)),
        jax.tree.leaves((restored, restored_state)),
        strict=True,
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    masks = jp.masks_of(restored_state, restored)
    np.testing.assert_array_equal(masks["kernel"], np.asarray(trained["kernel"]) != 0)
