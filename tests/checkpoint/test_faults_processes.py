"""Two processes save one sharded state; two restore it, and one does."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from support import pair_worker

from jprune import checkpoint

ROOT = Path(__file__).parents[2]


def run_pair(directory: Path, kind: str) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    worker = ROOT / "tests" / "support" / "pair_worker.py"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    pair = [
        subprocess.Popen(
            [sys.executable, worker, address, str(i), directory, kind],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        # Either waits for the other, even in vain: the first that ends is looked at.
        deadline = time.monotonic() + 300
        while any(process.poll() is None for process in pair):
            assert not any(process.poll() for process in pair), "one has failed"
            assert time.monotonic() < deadline, "they wait for each other"
            time.sleep(0.05)
    finally:
        for process in pair:
            process.kill()
        said = [process.communicate() for process in pair]
        for _, errors in said:
            sys.stderr.write(errors[-5000:])
    assert [process.returncode for process in pair] == [0, 0]
    return [out for out, _ in said]


@pytest.mark.optimized  # as the other processes are: bit for bit
@pytest.mark.others_code
@pytest.mark.parametrize(
    "kind", ["auto", pytest.param("explicit", marks=pytest.mark.slow)]
)
def test_two_processes_save_and_restore_and_one_restores(kind, tmp_path):
    for said in run_pair(tmp_path, kind):
        assert said.splitlines()[-1] == "done"

    expected = pair_worker.train(pair_worker.make_state(jnp.asarray), range(9))
    restored = checkpoint.restore(tmp_path / "steps", expected)
    pair_worker.assert_equal(restored, expected)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    like = pair_worker.like_of(expected, mesh, jax.P("x"))
    restored = checkpoint.restore(tmp_path / "steps", like)
    pair_worker.assert_equal(restored, expected)
    assert restored["params"]["a"]["kernel"].sharding.spec == jax.P("x")
