"""One directory, two writers: of two processes, two threads, and two hosts."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import writer_worker
from support.exact import assert_same, files_of

from jprune import checkpoint
from jprune.checkpoint import _orbax, _steps

ERROR = checkpoint.CheckpointError
ROOT = Path(__file__).parents[2]
REFUSED = "one writer at a time"


def names(directory):
    return sorted(os.listdir(directory))


def test_two_processes_lose_no_step_that_either_saved(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
    }
    pair = [
        subprocess.Popen(
            [sys.executable, writer_worker.__file__, tmp_path, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    lines = [line.partition(" ") for text in said for line in text.splitlines()]
    count = 2 * writer_worker.SAVES
    assert [rest for word, _, rest in lines if word == "failed"] == []
    assert {int(rest) for word, _, rest in lines if word == "saved"} == {*range(count)}
    assert sum(int(rest) for word, _, rest in lines if word == "refusals") > 0
    assert names(tmp_path / "steps") == [f"step_{step:08d}" for step in range(count)]
    for step in range(count):
        like = writer_worker.state(step)
        assert_same(checkpoint.restore(tmp_path / "steps", like, step=step), like)


def test_a_second_thread_is_refused_by_name_and_writes_nothing(tmp_path):
    checkpoint.save(tmp_path, 1, [1])
    before = names(tmp_path)
    owner = f"process {os.getpid()} on "
    refused = []

    def save():
        try:
            checkpoint.save(tmp_path, 2, [2])
        except ERROR as error:
            refused.append(str(error))

    with _steps.locked(tmp_path):
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    (said,) = refused
    assert f"cannot save {tmp_path}/step_00000002: {owner}" in said
    assert REFUSED in said
    assert names(tmp_path) == before
    save()
    assert checkpoint.all_steps(tmp_path) == [1, 2]
    assert len(refused) == 1


def test_two_threads_at_once_lose_no_step(tmp_path):
    outcomes = {}

    def save(first):
        for step in range(first, 16, 2):
            try:
                checkpoint.save(tmp_path, step, writer_worker.state(step), keep=None)
                outcomes[step] = ""
            except ERROR as error:
                outcomes[step] = str(error)

    pair = [threading.Thread(target=save, args=[first]) for first in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    saved = [step for step in sorted(outcomes) if not outcomes[step]]
    assert len(outcomes) == 16
    assert saved
    assert all(not said or REFUSED in said for said in outcomes.values())
    for step in saved:
        like = writer_worker.state(step)
        assert_same(checkpoint.restore(tmp_path, like, step=step), like)
    assert names(tmp_path) == [f"step_{step:08d}" for step in saved]


HOLD = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(100)
"""


def test_a_writer_that_dies_leaves_the_directory_free(tmp_path):
    lock = tmp_path / ".jprune.lock"
    held = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE)
    with held, contextlib.ExitStack() as stack:
        stack.callback(held.kill)
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(ERROR, match=f"another process is saving.*{REFUSED}"):
            checkpoint.save(tmp_path, 1, [1])
        held.send_signal(signal.SIGKILL)
        held.wait()
    assert names(tmp_path) == [".jprune.lock"]
    checkpoint.save(tmp_path, 1, [1])
    assert names(tmp_path) == ["step_00000001"]


def test_without_locks_no_temporary_of_others_is_removed(tmp_path, monkeypatch):
    """Nothing tells whether their writer is alive."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    checkpoint.save(tmp_path, 1, [1])
    other = tmp_path / f".step_00000002.tmp-{'0' * 32}"
    other.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        checkpoint.save(tmp_path, 3, [3], keep=1)
        assert names(tmp_path) == [other.name, "step_00000003"]
    checkpoint.save(tmp_path, 4, [4], keep=1)
    assert names(tmp_path) == ["step_00000004"]


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_writer_whose_files_were_removed_saves_nothing(
    is_made_anew, tmp_path, monkeypatch
):
    """As by a host that does not see this one's lock, while Orbax is still writing."""
    state = {"w": np.arange(1000)}
    checkpoint.save(tmp_path, 1, state)
    before = files_of(tmp_path)
    write = _orbax.write

    def meanwhile(path, arrays):
        write(path, arrays)
        _steps.remove_old(tmp_path, 1, None, is_locked=True)
        assert not path.parent.exists()
        if is_made_anew:
            path.mkdir(parents=True)

    monkeypatch.setattr(_orbax, "write", meanwhile)
    match = "another writer removed" if is_made_anew else "FileNotFoundError"
    with pytest.raises(ERROR, match=f"cannot save {tmp_path}/step_00000002: {match}"):
        checkpoint.save(tmp_path, 2, state)
    assert files_of(tmp_path) == before
