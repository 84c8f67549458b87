"""A run that is killed at any moment, and resumed, ends as if nothing had been.

`pytest -m slow tests/test_resume.py` kills more often, and at random moments too.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from sklearn import datasets
from support import resume_worker

from jprune import checkpoint

EVERY = 3
ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds for what takes a few, on a machine that is busy


class Run(NamedTuple):
    directory: Path
    steps: int
    cache: Path | None  # of compiled code, which each life gets a copy of

    def path(self) -> Path:
        return self.directory / "steps"

    def entries(self) -> set[str]:
        return set(os.listdir(self.path())) if self.path().exists() else set()

    def latest(self) -> int:
        return checkpoint.latest_step(self.path()) or 0

    def saves(self) -> set[str]:
        return {name for name in self.entries() if ".tmp-" in name}

    def lines(self, name: str) -> list[str]:
        return (self.directory / name).read_text().splitlines()


def make_run(tmp_path: Path, name: str, steps: int, cache: Path | None = None) -> Run:
    data = datasets.load_digits()
    directory = tmp_path / name
    directory.mkdir()
    np.savez(
        directory / "digits.npz",
        images=(data.data / 16).astype(np.float32),
        labels=data.target.astype(np.int32),
    )
    return Run(directory, steps, cache)


def start(run: Run, die: tuple[str, str, int] | None = None) -> subprocess.Popen:
    # A kill may leave half an entry in the cache: no life sees that of another.
    cache = run.directory / "cache"
    if run.cache is not None:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(run.cache, cache)
    worker = ROOT / "tests" / "support" / "resume_worker.py"
    arguments = [run.directory, "--steps", str(run.steps), "--every", str(EVERY)]
    arguments += ["--die", *map(str, die)] if die else []
    return subprocess.Popen(
        [sys.executable, "-W", "error", worker, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def is_killed(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, errors


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def stop(process: subprocess.Popen) -> None:
    process.kill()
    is_killed(process)


# ---- the moments ----


def any_time(run: Run, rng) -> None:
    """While training or saving, or before, in what is slower to hit by name."""
    process, goal = start(run), run.latest() + EVERY * rng.integers(0, 3)
    lives = len(run.lines("starts.txt"))
    wait_for(process, lambda: len(run.lines("starts.txt")) > lives)
    wait_for(process, lambda: run.latest() >= goal)
    time.sleep(rng.uniform(0, 0.05))
    stop(process)


def while_saving(run: Run, rng) -> None:
    """While a save is in progress for certain: the worker stands still."""
    before = run.entries()
    process = start(run)
    goal = run.latest() + EVERY * rng.integers(0, 3)
    wait_for(process, lambda: run.latest() >= goal)
    while True:
        wait_for(process, lambda: run.saves() - before)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGSTOP)
        if run.saves() - before:
            break
        process.send_signal(signal.SIGCONT)
    stop(process)
    assert run.saves() - before


def before_the_rename(run: Run, rng) -> None:
    is_killed(start(run, ("os.rename", r"/step_\d{8}$", rng.integers(1, 4))))
    assert run.saves()


def between_rename_and_flush(run: Run, rng) -> None:
    """The directory is opened to be flushed, once the step has its name."""
    before = run.latest()
    is_killed(start(run, ("open", r"/steps None", rng.integers(1, 6))))
    assert run.latest() > before


def before_an_old_step_is_set_aside(run: Run, rng) -> None:
    before = run.latest()
    pattern = r"/step_\d{8} .*/\.step_\d{8}\.tmp-"
    is_killed(start(run, ("os.rename", pattern, rng.integers(1, 3))))
    assert run.latest() > before
    # One more than are kept, or two where a kill came before the last removal.
    assert len(checkpoint.all_steps(run.path())) in (4, 5)


def while_an_old_step_is_removed(run: Run, rng) -> None:
    before = run.latest()
    # Only `shutil.rmtree` removes files by name and open directory; a step has ten
    # or so.
    is_killed(start(run, ("os.remove", r"^[^/ ]+ \d+$", rng.integers(1, 25))))
    assert run.latest() > before
    assert run.saves()


def while_restoring(run: Run, rng) -> None:
    before = run.entries()
    is_killed(start(run, ("open", r"/steps/step_\d{8}/", rng.integers(1, 9))))
    assert run.entries() == before


FEW = [while_saving, while_an_old_step_is_removed, while_restoring]
ALL = [*FEW, between_rename_and_flush, before_an_old_step_is_set_aside]
ALL += [any_time, before_the_rename]


# ---- the runs ----


def check_steps(run: Run, digests: dict[str, str]) -> None:
    """Every step that is there loads, and is what the whole run had then."""
    for step in checkpoint.all_steps(run.path()):
        state = checkpoint.restore(
            run.path(), jax.eval_shape(resume_worker.init), step=step
        )
        assert resume_worker.digest(state) == digests[str(step)], step


def survives(tmp_path: Path, moments: list, kills: int, seed: int) -> None:
    steps = EVERY * (10 + 4 * kills)  # more than so many lives get to
    whole = make_run(tmp_path, "whole", steps)
    finish(start(whole))
    digests = dict(line.split() for line in whole.lines("digests.txt"))
    assert [int(step) for step in digests] == list(range(EVERY, steps + 1, EVERY))

    killed = make_run(tmp_path, "killed", steps, whole.directory / "cache")
    rng = np.random.default_rng(seed)
    for life in range(kills):
        before = killed.latest()
        moments[life % len(moments)](killed, rng)
        assert killed.latest() >= before
        check_steps(killed, digests)
    finish(start(killed))

    starts = [int(line) for line in killed.lines("starts.txt")]
    assert len(starts) == kills + 1
    assert starts == sorted(starts)
    assert 0 < starts[-1] < steps
    # Whatever was computed twice came out the same, and so did the end.
    for line in killed.lines("digests.txt"):
        step, digest = line.split()
        assert digest == digests[step], step
    kept = [steps - 2 * EVERY, steps - EVERY, steps]
    assert checkpoint.all_steps(killed.path()) == kept
    assert len(killed.entries()) == len(kept), "what dead saves left was removed"
    check_steps(killed, digests)


@pytest.mark.others_code
def test_a_killed_run_ends_bit_identical(tmp_path):
    survives(tmp_path, FEW, kills=len(FEW), seed=0)


@pytest.mark.slow
@pytest.mark.others_code
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_is_killed_all_the_time_ends_bit_identical(tmp_path, seed):
    survives(tmp_path, ALL, kills=26, seed=seed)
