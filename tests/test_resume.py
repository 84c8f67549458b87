"""A run that is killed at any moment, and resumed, ends as if nothing had been.

`JPRUNE_KILLS=50 pytest tests/test_resume.py` kills more often, and trains longer
for it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from jprune import checkpoint

KILLS = int(os.environ.get("JPRUNE_KILLS", "4"))
EVERY = 3
STEPS = EVERY * (10 + 5 * KILLS)  # more than KILLS lives get to
ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds for what takes a few, on a machine that is busy


@pytest.fixture
def run_directory(tmp_path):
    data = datasets.load_digits()

    def make(name):
        directory = tmp_path / name
        directory.mkdir()
        np.savez(
            directory / "digits.npz",
            images=(data.data / 16).astype(np.float32),
            labels=data.target.astype(np.int32),
        )
        return directory

    return make


def start(directory: Path) -> subprocess.Popen:
    worker = Path(__file__).with_name("resume_worker.py")
    arguments = [directory, "--steps", str(STEPS), "--every", str(EVERY)]
    return subprocess.Popen(
        [sys.executable, "-W", "error", worker, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def entries(directory: Path) -> set[str]:
    steps = directory / "steps"
    return set(os.listdir(steps)) if steps.exists() else set()


def latest(directory: Path) -> int:
    return checkpoint.latest_step(directory / "steps") or 0


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


def kill_any_time(process, directory, rng) -> None:
    time.sleep(rng.uniform(0, 0.2))
    kill(process)


def kill_in_a_save(process, directory, rng) -> None:
    """Kills while a save is in progress for certain: the worker stands still."""

    def saving():
        return any(".tmp-" in name for name in entries(directory) - before)

    before = entries(directory)
    while True:
        wait_for(process, saving)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGSTOP)
        if saving():
            return kill(process)
        process.send_signal(signal.SIGCONT)


def test_a_killed_run_ends_bit_identical(run_directory):
    whole, killed = run_directory("whole"), run_directory("killed")
    finish(start(whole))

    rng = np.random.default_rng(0)
    for life in range(KILLS):
        process, in_a_save = start(killed), life % 2 == 0
        # In a save may be in the first one after a resume, but not of all.
        more = EVERY * rng.integers(0 if in_a_save and life else 1, 3)
        goal = latest(killed) + more
        wait_for(process, lambda goal=goal: latest(killed) >= goal)
        (kill_in_a_save if in_a_save else kill_any_time)(process, killed, rng)
        assert not in_a_save or any(".tmp-" in name for name in entries(killed))
    finish(start(killed))

    starts = [int(line) for line in (killed / "starts.txt").read_text().split()]
    assert len(starts) == KILLS + 1
    assert starts == sorted(starts)
    assert 0 < starts[-1] < STEPS
    assert (killed / "digest.txt").read_text() == (whole / "digest.txt").read_text()

    steps = [STEPS - 2 * EVERY, STEPS - EVERY, STEPS]
    assert checkpoint.all_steps(killed / "steps") == steps
    assert len(entries(killed)) == len(steps), "what dead saves left was removed"
