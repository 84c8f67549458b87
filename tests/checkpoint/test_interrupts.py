"""Interrupts at every point of a save, and writes that go on after an error."""

import gc
import os
import resource
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from support.exact import assert_same, files_of
from support.export_cases import small

from jprune import checkpoint, formats
from jprune._core import files

STATE = {"w": np.arange(3000.0), "mask": np.arange(99) > 9}
CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir", "link")


@pytest.fixture
def interrupts(monkeypatch):
    """A function `at(n)`: `KeyboardInterrupt` at the nth file that is touched.

    As from a keyboard: a signal comes, and Python raises in the main thread. The
    function `at.count()` says how many files were touched since.
    """
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    calls = {"count": 0, "at": -1}

    def counted(act):
        def call(*args, **kwargs):
            calls["count"] += 1
            if calls["count"] - 1 == calls["at"]:
                os.kill(os.getpid(), signal.SIGINT)
            return act(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def at(n):
        calls.update(count=0, at=n)

    at.count = lambda: calls["count"]
    yield at
    signal.signal(signal.SIGINT, previous)


def test_an_interrupted_save_leaves_a_whole_step_or_nothing(tmp_path, interrupts):
    checkpoint.save(tmp_path, 1, STATE)
    before = files_of(tmp_path)
    interrupts(-1)
    checkpoint.save(tmp_path, 2, STATE)
    shutil.rmtree(tmp_path / "step_00000002")
    count, interrupted = interrupts.count(), 0
    assert count > 20
    for n in range(0, count, max(1, count // 30)):
        interrupts(n)
        try:
            checkpoint.save(tmp_path, 2, STATE)
        except KeyboardInterrupt:
            interrupted += 1
        interrupts(-1)
        found = sorted(os.listdir(tmp_path))
        assert found in (["step_00000001"], ["step_00000001", "step_00000002"]), n
        if found[1:]:
            assert_same(checkpoint.restore(tmp_path, STATE), STATE)
            shutil.rmtree(tmp_path / "step_00000002")
        assert files_of(tmp_path) == before
    assert interrupted > 20  # some saves touch fewer files


def test_an_interrupted_file_is_whole_or_not_there(tmp_path, interrupts):
    path, tree = tmp_path / "m", small()
    interrupts(-1)
    formats.save_packed(path, tree)
    count = interrupts.count()
    assert count >= 3
    for n in range(count):
        path.unlink(missing_ok=True)
        interrupts(n)
        with pytest.raises(KeyboardInterrupt):
            formats.save_packed(path, tree)
        interrupts(-1)
        assert os.listdir(tmp_path) in ([], ["m"])
        if path.exists():
            assert_same(formats.load_packed(path), tree)


def test_a_second_interrupt_does_not_wait(interrupts):
    go_on, ended = threading.Event(), threading.Event()
    interrupts(-1)

    def act():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # the first is waited for
        os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(30)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        files.uninterrupted(act)
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(30)


def test_what_an_uninterrupted_function_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        files.uninterrupted(lambda: 1 / 0)


def test_files_that_are_written_after_an_error_are_removed(tmp_path):
    """Orbax raises the first error, and its other threads go on."""
    path = tmp_path / "step"
    path.mkdir()

    def write():
        for i in range(100):
            (path / f"{i}").mkdir(parents=True, exist_ok=True)
            time.sleep(0.002)

    thread = threading.Thread(target=write)
    thread.start()
    files.remove_directory(path)
    thread.join()
    assert not os.listdir(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_that_may_not_grow_leave_nothing(tmp_path):
    rng = np.random.default_rng(0)
    state = {f"w{i}": rng.normal(size=30_000) for i in range(8)}
    checkpoint.save(tmp_path, 0, state)
    before = files_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(1000, 200_000, 40_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(checkpoint.CheckpointError, match="cannot save"):
                checkpoint.save(tmp_path, 1, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert files_of(tmp_path) == before, limit
    time.sleep(0.2)  # Orbax complains of its other writes, from other threads
    gc.collect()
