"""One of two processes that train, save and restore one sharded, pruned state.

`test_faults_processes.py` runs it twice; every line that both must print alike is
compared there.
"""

import contextlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import checkpoint
from jprune._core import processes
from support.exact import files_of

PRUNER = jp.select(jp.recipes.gradual_magnitude(0.8, begin=0, steps=8), jp.is_kernel)
TX = jp.sparsify(optax.adam(1e-2), PRUNER, every=2)
AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
ERROR = checkpoint.CheckpointError


def params() -> dict:
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": rng.normal(size=(16, 24)).astype(np.float32)},
        "b": {
            "bias": rng.normal(size=8).astype(np.float32),
            "half": rng.normal(size=(8, 4)).astype(jnp.bfloat16),
            "kernel": rng.normal(size=(24, 8)).astype(np.float32),
        },
    }


@jax.jit
def train_step(params, optimizer, step):
    grads = jax.tree.map(lambda w: w + jnp.asarray(step, w.dtype) / 8, params)
    updates, optimizer = TX.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), optimizer


def train(state: dict, steps: range) -> dict:
    params, optimizer = state["params"], state["optimizer"]
    for step in steps:
        params, optimizer = train_step(params, optimizer, step)
    return {**state, "params": params, "optimizer": optimizer}


def make_state(place) -> dict:
    """A state of all kinds of leaves, as whatever `place` makes of arrays."""
    p = jax.tree.map(place, params())
    return {
        "params": p,
        "optimizer": jax.jit(TX.init)(p),
        "key": jax.random.key(3),
        "drawn key": jax.jit(lambda x: jax.random.key(x.size))(p["b"]["bias"]),
        "weak": jnp.asarray(0.5),
        "numbers": [np.arange(3), 0.25, np.zeros((0, 2), np.float32)],
    }


def placed(mesh, spec):
    def place(x):
        sharding = jax.NamedSharding(mesh, spec if x.ndim == 2 else jax.P())
        return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

    return place


def like_of(state: dict, mesh, spec) -> dict:
    """What to restore to: global arrays with another spec, even key and weak ones."""

    def leaf(x):
        if not isinstance(x, jax.Array):
            return x
        sharding = jax.NamedSharding(mesh, spec if x.ndim == 2 else jax.P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state)


def plain(leaf):
    is_jax = isinstance(leaf, jax.Array)
    is_key = is_jax and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def assert_equal(found: dict, expected: dict) -> None:
    """What this process has of the one is, to the bit, that part of the other."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        a, b = plain(a), np.asarray(plain(b))
        assert (np.shape(a), np.asarray(b).dtype) == (b.shape, b.dtype), path
        if not isinstance(a, jax.Array):
            assert np.asarray(a).tobytes() == b.tobytes(), path
            continue
        assert a.addressable_shards, path
        for shard in a.addressable_shards:
            assert np.asarray(shard.data).tobytes() == b[shard.index].tobytes(), path


def round_trip(steps: Path, step: int, kind, expected: list[dict]) -> None:
    """Saves halfway, and goes on from what was restored, sharded another way."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    # Explicit axes take their mesh from the context.
    with contextlib.nullcontext() if kind == AUTO else jax.set_mesh(mesh):
        state = train(make_state(placed(mesh, jax.P("x"))), range(4))
        checkpoint.save(steps, step, state, keep=None)
        like = like_of(state, mesh, jax.P(None, "x"))
        restored = checkpoint.restore(steps, like, step=step)
        assert_equal(restored, expected[0])
        kernel = restored["params"]["a"]["kernel"]
        assert kernel.sharding == like["params"]["a"]["kernel"].sharding
        assert len(kernel.addressable_shards) < len(kernel.sharding.device_set)
        assert restored["weak"].weak_type
        ended = train(restored, range(4, 9))
        assert_equal(ended, expected[1])
        fail_together(steps, state, like)
        # And the run goes on.
        checkpoint.save(steps, 9, ended, keep=1)
        assert checkpoint.all_steps(steps) == [9]
        assert_equal(checkpoint.restore(steps, like), expected[1])
    assert_equal(checkpoint.restore(steps, expected[1]), expected[1])


def fail_together(steps: Path, state: dict, like: dict) -> None:
    """What fails on one process fails on both, and is named."""
    before, first = files_of(steps.parent), processes.is_first()
    with pytest.raises(ERROR, match="leaf 'x': it differs between the processes"):
        checkpoint.save(steps, 6, {"x": np.float32(first)})
    with pytest.raises(ERROR, match="the leaves must be the same on all processes"):
        checkpoint.save(steps, 6, {f"x{first}": np.ones(2)})
    with pytest.raises(ERROR, match=r"process 1 failed.*'x': it is a str|^cannot.*str"):
        checkpoint.save(steps, 6, {"x": np.ones(2) if first else "text"})
    with pytest.raises(ERROR, match="the step must be the same on all processes"):
        checkpoint.save(steps, 7 + first, state)
    with pytest.raises(ERROR, match="it exists"):
        checkpoint.save(steps, 4, state)
    with pytest.raises(ERROR, match="the step must be the same on all processes"):
        checkpoint.restore(steps, like, step=4 if first else 3)
    with pytest.raises(ERROR, match=r"like` that it lacks: y|process 1 failed.*: y"):
        checkpoint.restore(steps, like if first else {"y": np.ones(1)}, step=4)
    own = steps.parent / f"{jax.process_index()}"
    with pytest.raises(ERROR, match="not all processes see"):
        checkpoint.save(own, 1, state)
    if first:
        own.rmdir()
    processes.exchange("removed")
    assert files_of(steps.parent) == before


def main() -> None:
    address, process, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    local = make_state(jnp.asarray)
    halfway = train(local, range(4))
    expected = [halfway, train(halfway, range(4, 9))]
    kinds = {"auto": AUTO, "explicit": EXPLICIT}
    round_trip(directory / "steps", 4, kinds[sys.argv[4]], expected)
    print("done", flush=True)


if __name__ == "__main__":
    main()
