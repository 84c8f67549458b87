"""Two processes with two devices each select what one process does, bit for bit."""

import ast
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support import two_process_worker as worker

import jprune as jp

ROOT = Path(__file__).parents[2]


def _run_pair(directory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    logs = [(directory / f"{i}.log").open("w") for i in range(2)]
    pair = [
        subprocess.Popen(
            [sys.executable, worker.__file__, address, str(i), directory],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for i, log in enumerate(logs)
    ]
    try:
        # Either would wait for the other in vain: the first that fails ends both.
        deadline = time.monotonic() + 240
        while any(process.poll() is None for process in pair):
            if any(process.poll() for process in pair) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        for process, log in zip(pair, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    said = [(directory / f"{i}.log").read_text() for i in range(2)]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(said)[-5000:]


def _assembled(directory, run, like):
    """The whole arrays, from the shards that both have written."""
    paths = dict(zip(jp.leaf_paths(like), jax.tree.leaves(like), strict=True))
    whole = {path: np.empty(np.shape(x), x.dtype) for path, x in paths.items()}
    filled = {path: np.zeros(np.shape(x), int) for path, x in paths.items()}
    for process in range(2):
        with np.load(directory / f"{run}-{process}.npz") as shards:
            for name, data in shards.items():
                path, _, starts = name.rpartition(" [")
                starts = ast.literal_eval("[" + starts)
                index = tuple(
                    slice(s, s + n) for s, n in zip(starts, data.shape, strict=True)
                )
                if filled[path][index].any():  # replicated: alike everywhere
                    np.testing.assert_array_equal(whole[path][index], data)
                whole[path][index] = data
                filled[path][index] += 1
    assert all(np.all(x) for x in filled.values())
    return jax.tree.unflatten(jax.tree.structure(like), whole.values())


@pytest.mark.optimized  # as the other processes are: bit for bit
@pytest.mark.others_code
def test_two_processes_select_what_one_does(tmp_path):
    _run_pair(tmp_path)
    alone = {}
    for name, (run, _) in worker.RUNS.items():
        alone[name] = jax.device_get(run(lambda x, spec: jnp.asarray(x)))
        together = _assembled(tmp_path, name, alone[name])
        assert jax.tree.all(jax.tree.map(np.array_equal, together, alone[name])), name

    scores, k = worker.host(), worker.K
    expected = {
        "global": oracles.top_k(oracles.values_of(scores), k),
        "leaf": oracles.per_leaf(scores, worker.FLOORS),
        "floors": oracles.with_floors(scores, k, worker.FLOORS),
    }
    for found in alone.values():
        for name, masks in expected.items():
            np.testing.assert_array_equal(oracles.flat(found["masks"][name]), masks)
    trained = alone["compiled"]["trained"]["masks"]
    kernels = [trained[name]["kernel"] for name in ("one", "two")]
    n = sum(m.size for m in kernels)
    assert sum(int(m.sum()) for m in kernels) == n - round(0.8 * n)
