"""Saves on a disk that is full, read-only, forbidden or gone; says `done` at the end.

`test_faults_disk.py` runs it as a process of its own, with a small file system that
nobody else sees mounted on the directory it is given.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import checkpoint
from support.exact import assert_same, files_of


def make_state() -> dict:
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.integers(0, 2**32, (250, 1000), np.uint32)).view(jnp.float32)
    return {"w": w, "mask": w > 0, "count": jnp.asarray(0)}


@jax.jit
def train(state: dict) -> dict:
    w = jnp.where(state["mask"], -state["w"], 0)
    return {**state, "w": w, "count": state["count"] + 1}


def raises(*words: object):
    return pytest.raises(checkpoint.CheckpointError, match=".*".join(map(str, words)))


def trouble(act, *args, **kwargs) -> str:
    """What it was that failed; empty if nothing did."""
    try:
        act(*args, **kwargs)
    except checkpoint.CheckpointError as error:
        return str(error)
    return ""


def full_disk(directory: Path) -> None:
    steps, ballast = directory / "steps", directory / "ballast"
    state = make_state()
    checkpoint.save(steps, 0, state)
    before, free = files_of(steps), shutil.disk_usage(directory).free
    rooms = [0, 4096, 12288, 20480, 40960, *range(100_000, 1_500_000, 200_000)]
    failed = []
    for step, room in enumerate(rooms, 1):
        ballast.write_bytes(bytes(max(0, free - room)))
        state = train(state)
        said = trouble(checkpoint.save, steps, step, state, keep=None)
        if said:
            assert f"cannot save {steps}/step_{step:08d}" in said
            assert "no space" in said.lower(), said
            assert files_of(steps) == before, room
            failed.append(room)
        else:
            assert_same(checkpoint.restore(steps, state), state)
            shutil.rmtree(steps / f"step_{step:08d}")
        # The earlier step is what it was, and the run goes on once there is room.
        assert_same(checkpoint.restore(steps, make_state()), make_state())
        ballast.unlink()
        if step % 5 == 1:
            checkpoint.save(steps, 100 + step, state)
            assert_same(checkpoint.restore(steps, state), state)
            shutil.rmtree(steps / f"step_{100 + step:08d}")
        before = files_of(steps)
    assert 5 <= len(failed) < len(rooms), failed
    print("room in bytes at which saving failed:", failed)


def read_only(directory: Path) -> None:
    steps = directory / "read only"
    state = make_state()
    checkpoint.save(steps, 1, state)
    before = files_of(directory)
    mount = ["mount", "-o"]
    subprocess.run([*mount, "remount,ro", directory], check=True)
    with raises(f"cannot save {steps}/step_00000002", "Read-only file system"):
        checkpoint.save(steps, 2, state)
    with raises(f"cannot save {directory}/new/step_00000002", "Read-only"):
        checkpoint.save(directory / "new", 2, state)
    assert_same(checkpoint.restore(steps, state), state)
    subprocess.run([*mount, "remount,rw", directory], check=True)
    assert files_of(directory) == before
    checkpoint.save(steps, 2, state, keep=1)
    assert checkpoint.all_steps(steps) == [2]


def forbidden(directory: Path) -> None:
    steps = directory / "forbidden"
    state = make_state()
    step = checkpoint.save(steps, 1, state)
    before = files_of(steps)

    steps.chmod(0o500)
    with raises(f"cannot save {steps}/step_00000002", "Permission denied"):
        checkpoint.save(steps, 2, state)
    assert_same(checkpoint.restore(steps, state), state)
    steps.chmod(0o000)
    with raises(f"cannot list {steps}", "Permission denied"):
        checkpoint.latest_step(steps)
    with raises(f"cannot restore from {steps}", "Permission denied"):
        checkpoint.restore(steps, state)
    steps.chmod(0o700)

    for path in [step, step / "arrays", *(p for p in step.rglob("*") if p.is_file())]:
        mode = path.stat().st_mode
        path.chmod(0)
        with raises(f"cannot restore {step}", "Permission denied"):
            checkpoint.restore(steps, state)
        path.chmod(mode)
    assert files_of(steps) == before

    # A step that cannot be removed: the new one is there, and that is said.
    step.chmod(0o500)
    with raises(f"saved {steps}/step_00000002", "Permission denied"):
        checkpoint.save(steps, 2, state, keep=1)
    assert checkpoint.all_steps(steps)[-1] == 2
    assert_same(checkpoint.restore(steps, state), state)
    for path in steps.iterdir():
        path.chmod(0o700)
    checkpoint.save(steps, 3, state, keep=1)
    assert os.listdir(steps) == ["step_00000003"]


def gone(directory: Path) -> None:
    """Somebody removes the directory while a step is being saved."""
    steps, state = directory / "gone", make_state()
    rng = np.random.default_rng(1)
    failed = 0
    for delay in rng.uniform(0, 0.03, 12):
        checkpoint.save(steps, 1, state)

        def remove(delay=delay):
            time.sleep(delay)
            shutil.rmtree(steps, ignore_errors=True)

        remover = threading.Thread(target=remove)
        remover.start()
        said = trouble(checkpoint.save, steps, 2, state)
        remover.join()
        assert not said or f"{steps}/step_00000002" in said
        failed += bool(said)
        shutil.rmtree(steps, ignore_errors=True)
    print("saves that failed because the directory went:", failed)
    assert failed > 0
    shutil.rmtree(steps, ignore_errors=True)
    (directory / "file").write_text("")
    with raises(f"cannot list {directory}/file", "Not a directory"):
        checkpoint.latest_step(directory / "file")
    with raises(f"cannot save {directory}/file/step_00000001"):
        checkpoint.save(directory / "file", 1, state)
    with raises(f"cannot restore from {directory}/file", "Not a directory"):
        checkpoint.restore(directory / "file", state)


def main() -> None:
    directory = Path(sys.argv[1])
    for act in (full_disk, read_only, forbidden, gone):
        act(directory)
        for left in directory.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    print("done")


if __name__ == "__main__":
    main()
