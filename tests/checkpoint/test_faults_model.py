"""Checkpoints of a pruned run, restored to another model, and on other devices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.exact import assert_same, files_of

import jprune as jp
from jprune import checkpoint

AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
PRUNER = jp.select(jp.recipes.gradual_magnitude(0.8, begin=0, steps=8), jp.is_kernel)
TX = jp.sparsify(optax.adam(1e-2), PRUNER, every=2)
DENSE = optax.adam(1e-2)


def params():
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(rng.normal(size=(16, 24)), jnp.float32)},
        "b": {
            "bias": jnp.asarray(rng.normal(size=8), jnp.float32),
            "kernel": jnp.asarray(rng.normal(size=(24, 8)), jnp.float32),
        },
    }


@jax.jit
def train_step(state, step):
    params, optimizer = state
    # Elementwise, so that no sum can depend on how the arrays are cut.
    grads = jax.tree.map(lambda w: w + jnp.asarray(step, w.dtype) / 8, params)
    updates, optimizer = TX.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), optimizer


def train(state, steps):
    for step in steps:
        state = train_step(state, step)
    return state


# ---- another model ----


@functools.cache
def halfway():
    return train((params(), TX.init(params())), range(4))


def with_leaf(path, leaf):
    """The state to restore to, where one leaf of the params is another, or gone."""
    first, last = path.split("/")
    like = params()
    like[first].pop(last, None)
    if leaf is not None:
        like[first][last] = leaf
    return like, TX.init(like)


def renamed():
    like = params()
    like["b"]["weight"] = like["b"].pop("kernel")
    return like, TX.init(like)


MODELS = {
    "shape": (
        lambda: with_leaf("a/kernel", jnp.zeros((24, 16))),
        r"leaf '0/a/kernel' is .*\[16, 24\].*\[24, 16\]",
    ),
    "dtype": (
        lambda: with_leaf("a/kernel", jnp.zeros((16, 24), jnp.bfloat16)),
        "leaf '0/a/kernel' is .*float32.*bfloat16",
    ),
    "extra": (
        lambda: with_leaf("a/scale", jnp.zeros(16)),
        "`like` that it lacks: .*0/a/scale",
    ),
    "missing": (lambda: with_leaf("b/bias", None), "`like` lacks: .*0/b/bias"),
    "renamed": (renamed, "that it lacks: 0/b/weight.*`like` lacks: 0/b/kernel"),
    "optimizer": (
        lambda: (params(), jp.sparsify(optax.sgd(0.1, 0.9), PRUNER).init(params())),
        "that it lacks: .*trace/a/kernel.*`like` lacks: .*mu/a/kernel",
    ),
    "no masks": (lambda: (params(), DENSE.init(params())), "lacks: .*masks/a/kernel"),
    "no optimizer": (lambda: (params(),), "`like` lacks: .*1/inner"),
    "masks as numbers": (
        lambda: (params(), halfway()[1]._replace(masks=params())),
        "leaf '1/masks/a/kernel' is .*bool.*float32",
    ),
    "masks as bits": (
        lambda: (
            params(),
            halfway()[1]._replace(masks=jp.masks.pack(halfway()[1].masks, params())),
        ),
        "leaf '1/masks/a/kernel' is .*bool.*uint8",
    ),
}


@pytest.mark.others_code
@pytest.mark.parametrize("change", MODELS)
def test_another_model_is_refused_by_the_leaf(change, tmp_path):
    make, match = MODELS[change]
    checkpoint.save(tmp_path, 4, halfway())
    before, like = files_of(tmp_path), make()
    for wanted in (like, jax.eval_shape(lambda: like)):
        with pytest.raises(checkpoint.CheckpointError, match=match) as caught:
            checkpoint.restore(tmp_path, wanted)
        assert f"cannot restore {tmp_path}/step_00000004" in str(caught.value)
    assert files_of(tmp_path) == before


@pytest.mark.others_code
def test_packed_masks_come_back_and_unpack(tmp_path):
    masks = halfway()[1].masks
    packed = jp.masks.pack(masks, masks)
    checkpoint.save(tmp_path, 0, {"packed": packed, "masks": masks})
    like = jax.eval_shape(lambda: {"packed": packed, "masks": masks})
    restored = checkpoint.restore(tmp_path, like)
    assert_same(restored, {"packed": packed, "masks": masks})
    assert_same(jp.masks.unpack(restored["packed"], masks), masks)


# ---- other devices ----


class Layout(NamedTuple):
    shape: tuple[int, ...]
    spec: jax.P  # of matrices; vectors are on every device
    kind: jax.sharding.AxisType

    def sharding(self, leaf):
        names = ("x", "y")[: len(self.shape)]
        kinds = (self.kind,) * len(self.shape)
        mesh = jax.make_mesh(self.shape, names, axis_types=kinds)
        spec = self.spec if leaf.ndim == 2 else jax.P()
        return jax.sharding.NamedSharding(mesh, spec)


EIGHT = Layout((8,), jax.P("x"), AUTO)
OTHERS = [
    None,  # one device, and not committed to it
    Layout((4,), jax.P(None, "x"), AUTO),
    Layout((4,), jax.P(None, "x"), EXPLICIT),
    Layout((4, 2), jax.P("x", "y"), EXPLICIT),
]


def abstract(state, layout):
    def leaf(x):
        sharding = None if layout is None else layout.sharding(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state)


@pytest.mark.others_code
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_other_devices_get_the_same_run(kind, tmp_path):
    start = (params(), TX.init(params()))
    expected = halfway(), train(halfway(), range(4, 9))
    halves = [jp.masks.sparsity(params(), state[1].masks) for state in expected]
    assert 0.2 < halves[0] < 0.6 < halves[1]  # there is much left to prune

    layout = EIGHT._replace(kind=kind)
    sharded = jax.tree.map(lambda x: jax.device_put(x, layout.sharding(x)), start)
    sharded = train(sharded, range(4))
    assert len(sharded[1].masks["a"]["kernel"].sharding.device_set) == 8
    assert_same(sharded, expected[0])
    checkpoint.save(tmp_path, 4, sharded)
    before = files_of(tmp_path)
    for other in (layout, *OTHERS):
        like = abstract(sharded, other)
        restored = checkpoint.restore(tmp_path, like)
        assert_same(restored, expected[0])
        for found, asked in zip(
            jax.tree.leaves(restored), jax.tree.leaves(like), strict=True
        ):
            assert found.committed == (asked.sharding is not None)
            assert asked.sharding is None or found.sharding == asked.sharding
        assert_same(train(restored, range(4, 9)), expected[1])
    assert files_of(tmp_path) == before
