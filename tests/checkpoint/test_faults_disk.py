"""Disks that are full, read-only, forbidden or gone: real ones, in a process's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Root reads and writes what is forbidden, unless it gives up these two rights.
OBEY = "setpriv --bounding-set=-dac_override,-dac_read_search"
OWN_DISK = f'mount -t tmpfs -o size=4m tmpfs "$1" && shift && exec {OBEY} "$@"'


def with_a_disk_of_its_own(directory: Path, *command) -> subprocess.CompletedProcess:
    """Runs a command with a file system of 4 MB on a directory, seen by it alone."""
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", OWN_DISK, "sh"]
    return subprocess.run(
        [*alone, directory, *command],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_disks_that_fail_cost_no_step_and_no_run(tmp_path):
    try:
        found = with_a_disk_of_its_own(tmp_path, "true")
    except FileNotFoundError:
        pytest.skip("no `unshare` on this system; see test_checkpoint for a limit")
    if found.returncode:
        pytest.skip(f"no file system can be mounted here: {found.stderr}")
    worker = ROOT / "tests" / "support" / "disk_worker.py"
    found = with_a_disk_of_its_own(
        tmp_path, sys.executable, "-W", "error", worker, tmp_path
    )
    assert found.returncode == 0, found.stderr[-5000:]
    assert found.stdout.splitlines()[-1] == "done"
    assert not list(tmp_path.iterdir()), "nobody else saw the disk"
