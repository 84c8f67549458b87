import asyncio
import contextlib
import functools
import hashlib
import json
import resource
import sys
import threading
from typing import NamedTuple

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hypothesis import strategies as st
from support.exact import DTYPES, assert_same, files_of, random_bits

import jprune as jp
from jprune import checkpoint
from jprune.checkpoint import _orbax

ERROR = checkpoint.CheckpointError
RNG = np.random.default_rng(0)


# ---- round trips ----


class Point(NamedTuple):
    x: jax.Array
    value: jax.Array


def nasty():
    floats = np.uint32([0x7FC00123, 0xFFA00001, 0x80000000, 1, 0x807FFFFF, 0xFF800000])
    floats = floats.view(np.float32)
    return {
        "floats": jnp.asarray(floats),
        "float16": jnp.asarray(np.uint16([0x7E01, 0xFD55, 0x8000, 1]).view(np.float16)),
        "numpy": {dtype.name: random_bits(RNG, dtype, (3, 5)) for dtype in DTYPES},
        "numpy scalar": np.float64(-0.0),
        "zero rank": jnp.asarray(np.float32(2.5)),
        "zero rank mask": jnp.asarray(True),
        "mask": jnp.asarray(RNG.random((7, 11)) < 0.5),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "empty mask": jnp.zeros((4, 0), bool),
        "strided": np.arange(24.0).reshape(4, 6)[::2, ::-3],
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "python": [True, -3, 2**63, 1e-310, 1 + 2j],
        "weak": [jnp.asarray(0.5), jnp.full((2, 2), 3)],
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), (2, 3)),
        "raw key": jax.random.PRNGKey(5),
        "point": (Point(jnp.ones(2), jnp.zeros(2)), None, optax.MaskedNode()),
        "a.dot": {"": jnp.ones(1)},
        "weiß/雪": jnp.ones(1),
    }


@functools.cache
def optax_states():
    params = {"conv": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "w": None}
    labels = {"conv": {"kernel": "a", "bias": "b"}, "w": None}
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 10), mu_dtype=jnp.bfloat16),
        optax.ema(0.9),
    )
    transforms = [
        optax.adamw(1e-3),
        chain,
        optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(1e-3, 0, 9)),
        optax.MultiSteps(chain, 3).gradient_transformation(),
        optax.partition({"a": optax.adam(1e-3), "b": optax.set_to_zero()}, labels),
    ]

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, state):
        grads = jax.tree.map(lambda x: x + 0.1, params)
        return tx.update(grads, state, params)

    return [step(tx, step(tx, tx.init(params))[1]) for tx in transforms]


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def nnx_states():
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    return nnx.state(model), nnx.state(optimizer)


def equinox_state():
    model = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
    return eqx.partition(model, eqx.is_array)[0]


@pytest.mark.others_code
@pytest.mark.parametrize("make", [nasty, optax_states, nnx_states, equinox_state])
def test_round_trip(make, tmp_path):
    state = make()
    path = checkpoint.save(tmp_path, 7, state)
    assert path == tmp_path / "step_00000007"
    before = files_of(tmp_path)
    assert_same(checkpoint.restore(tmp_path, state), state)
    assert files_of(tmp_path) == before


@pytest.mark.others_code
@pytest.mark.parametrize("make", [optax_states, nnx_states, equinox_state])
def test_round_trip_into_an_abstract_state(make, tmp_path):
    state = make()
    checkpoint.save(tmp_path, 0, state)
    assert_same(checkpoint.restore(tmp_path, jax.eval_shape(lambda: state)), state)


def test_a_bare_array_and_a_tree_without_arrays(tmp_path):
    for step, state in enumerate([jnp.arange(3), (), {"empty": jnp.zeros((0, 2))}]):
        checkpoint.save(tmp_path, step, state)
        assert_same(checkpoint.restore(tmp_path, state), state)


def test_masks_are_bits_on_the_disk(tmp_path):
    mask = RNG.random((1000, 1003)) < 0.5
    path = checkpoint.save(tmp_path, 0, {"mask": jnp.asarray(mask)})
    (leaf,) = json.loads((path / "manifest.json").read_text())["leaves"]
    assert (leaf["dtype"], leaf["shape"]) == ("bool", [1000, 1003])
    assert (leaf["stored"], leaf["stored_shape"]) == ("bits", [125375])
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size < 1.05 * mask.size / 8

    with ocp.PyTreeCheckpointer() as checkpointer:  # what anybody else would read
        stored = checkpointer.restore(path / "arrays")["mask"]
    assert np.array_equal(np.unpackbits(stored, count=mask.size), mask.ravel())


def test_the_manifest_says_what_was_saved(tmp_path):
    x = np.float32([1.5, -2.0])
    path = checkpoint.save(tmp_path, 12, {"net": {"w": x}})
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert manifest["versions"]["jax"] == jax.__version__
    (leaf,) = manifest["leaves"]
    assert leaf["path"] == "net/w"
    assert leaf["sha256"] == hashlib.sha256(x.astype("<f4").tobytes()).hexdigest()


@pytest.mark.others_code
def test_a_pruner_and_its_masks_go_on_where_they_were(tmp_path):
    params = {"kernel": jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32)}
    pruner = jp.select(jp.recipes.magnitude(0.5), jp.is_kernel)
    tx = jp.sparsify(optax.adam(1e-2), pruner, every=2)

    def train(params, state, steps):
        for step in steps:
            grads = jax.tree.map(lambda w, s=step: jnp.sin(w + s), params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    halfway = train(params, tx.init(params), range(3))
    checkpoint.save(tmp_path, 3, halfway)
    restored = checkpoint.restore(tmp_path, jax.eval_shape(lambda: halfway))
    assert_same(train(*restored, range(3, 6)), train(*halfway, range(3, 6)))


@pytest.mark.others_code
@pytest.mark.parametrize("at_once", [1, 40])
def test_what_is_read_in_many_parts_is_the_same(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(_orbax, "_AT_ONCE", at_once)  # bytes
    state = nasty()
    checkpoint.save(tmp_path, 0, state)
    assert_same(checkpoint.restore(tmp_path, state), state)


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(1, 2**29)))
def test_no_more_is_read_at_once_than_stated_or_one_leaf(sizes):
    types = {str(i): ("uint8", [size]) for i, size in enumerate(sizes)}
    batches = list(_orbax._batches(types))
    assert [name for batch in batches for name in batch] == list(types)
    for batch in batches:
        total = sum(sizes[int(name)] for name in batch)
        assert total <= 2**28 or len(batch) == 1


# ---- saving ----


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"a": {"b": 1}, "a.b": 0}, r"\['a'\]\['b'\] and \['a.b'\] collide"),
        ({"a": {"b": 1}, "a/b": 0}, r"\['a'\]\['b'\] and \['a/b'\] collide"),
        ({"a.b/c": 1, "a/b.c": 0}, r"\['a.b/c'\] and \['a/b.c'\] collide"),
        ({"x": [np.ones(2), "text"]}, "leaf 'x/1': it is a str, not an array"),
        ({"a": jax.ShapeDtypeStruct((2,), np.float32)}, "leaf 'a'"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(
    state, match, tmp_path
):
    with pytest.raises(ERROR, match=match):
        checkpoint.save(tmp_path / "new", 0, state)
    assert not list(tmp_path.iterdir())


KEYS = st.sampled_from(["a", "b", "a.b", "a/b", "b.a", "."])


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    st.recursive(
        st.integers(0, 9),
        lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3),
        max_leaves=6,
    )
)
def test_paths_collide_exactly_where_a_flat_table_of_names_would(
    tmp_path_factory, state
):
    def names(node, prefix=()):
        if isinstance(node, dict):
            return [n for k, v in node.items() for n in names(v, (*prefix, k))]
        return ["/".join(prefix).replace(".", "/")]

    directory = tmp_path_factory.mktemp("paths") / "new"
    if len(set(names(state))) < len(names(state)):
        with pytest.raises(ERROR, match="collide"):
            checkpoint.save(directory, 0, state)
        assert not directory.exists()
    else:
        checkpoint.save(directory, 0, state)
        assert checkpoint.restore(directory, state) == state


def test_deleted_and_traced_arrays_are_refused(tmp_path):
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(ERROR, match=r"leaf 'x'.*deleted"):
        checkpoint.save(tmp_path, 0, {"x": x})
    with pytest.raises(ERROR, match=r"leaf 'x'.*Tracer"):
        jax.jit(lambda y: checkpoint.save(tmp_path, 0, {"x": y}))(jnp.ones(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("step", "keep"), [(-1, 3), (0, 0), (0, -2)])
def test_numbers_out_of_range(step, keep, tmp_path):
    with pytest.raises(ValueError, match=f"step={step}, keep={keep}"):
        checkpoint.save(tmp_path, step, {}, keep=keep)


def test_a_step_is_never_overwritten(tmp_path):
    checkpoint.save(tmp_path, 3, [3])
    before = files_of(tmp_path)
    with pytest.raises(ERROR, match=r"step_00000003: it exists"):
        checkpoint.save(tmp_path, 3, [4])
    assert files_of(tmp_path) == before


def test_the_latest_steps_are_kept(tmp_path):
    for step in [1, 5, 9, 10**9]:
        checkpoint.save(tmp_path, step, [step])
    assert checkpoint.all_steps(tmp_path) == [5, 9, 10**9]
    assert checkpoint.latest_step(tmp_path) == 10**9
    checkpoint.save(tmp_path, 7, [7], keep=None)
    assert checkpoint.all_steps(tmp_path) == [5, 7, 9, 10**9]
    checkpoint.save(tmp_path, 2, [2], keep=2)  # what was just saved stays
    assert checkpoint.all_steps(tmp_path) == [2, 10**9]
    checkpoint.save(tmp_path, 3, [3], keep=1)
    assert checkpoint.all_steps(tmp_path) == [3]
    assert checkpoint.restore(tmp_path, [0]) == [3]


def test_what_dead_saves_left_is_ignored_then_removed_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path, 3, [3])
    dead = tmp_path / f".step_00000004.tmp-{'0' * 32}"
    dead.mkdir()
    (dead / "manifest.json").write_text("{")
    others = [
        tmp_path / name for name in (".step_00000004", "step_5", "step_000000004")
    ]
    for other in others:
        other.mkdir()
    (tmp_path / "step_00000009").write_text("a file")
    assert checkpoint.all_steps(tmp_path) == [3]
    assert checkpoint.restore(tmp_path, [0]) == [3]
    checkpoint.save(tmp_path, 6, [6], keep=1)
    assert not dead.exists()
    names = {"step_00000006", "step_00000009", *(other.name for other in others)}
    assert {path.name for path in tmp_path.iterdir()} == names


@contextlib.contextmanager
def file_size_limit(size):
    """Writing beyond `size` bytes fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_leaves_the_last_good_one(tmp_path):
    state = {"w": RNG.normal(size=200_000)}
    checkpoint.save(tmp_path, 3, state)
    before = files_of(tmp_path)
    with (
        file_size_limit(200_000),
        pytest.raises(ERROR, match=f"cannot save {tmp_path}/step_00000004"),
    ):
        checkpoint.save(tmp_path, 4, state, keep=1)
    assert files_of(tmp_path) == before
    assert_same(checkpoint.restore(tmp_path, state), state)
    checkpoint.save(tmp_path, 4, state)
    assert checkpoint.latest_step(tmp_path) == 4


def test_no_thread_is_left_and_a_notebooks_event_loop_is_no_obstacle(tmp_path):
    state = {"w": jnp.ones(3), "mask": jnp.asarray(True)}

    async def cell():
        checkpoint.save(tmp_path, 0, state)
        return checkpoint.restore(tmp_path, state)

    before = set(threading.enumerate())
    assert_same(asyncio.run(cell()), state)
    assert set(threading.enumerate()) <= before


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"jprune\[checkpoint\]"):
        checkpoint.save(tmp_path, 0, {})
    with pytest.raises(ImportError, match=r"jprune\[checkpoint\]"):
        checkpoint.restore(tmp_path, {})
