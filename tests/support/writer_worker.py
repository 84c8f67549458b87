"""One of two processes that save to one directory, each its own steps.

`test_writers.py` runs it twice. A save that is refused since the other process is
saving is tried again. It prints `saved STEP` or `failed WHY` for each step, and
`refusals COUNT` at the end.
"""

import sys
import time
from pathlib import Path

import numpy as np

from jprune import checkpoint

SAVES = 10


def state(step: int) -> dict:
    return {f"w{i}": np.full(20_000, float(step + i)) for i in range(6)}


def main() -> None:
    directory, process = Path(sys.argv[1]), int(sys.argv[2])
    checkpoint.save(directory / f"own {process}", 0, state(0))  # imports Orbax
    (directory / f"ready {process}").touch()
    deadline = time.monotonic() + 120
    while len(list(directory.glob("ready *"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    refusals = 0
    for step in range(process, 2 * SAVES, 2):
        said = "one writer at a time"
        while "one writer at a time" in said and time.monotonic() < deadline:
            try:
                checkpoint.save(directory / "steps", step, state(step), keep=None)
                said = ""
            except checkpoint.CheckpointError as error:
                said = str(error)
                refusals += 1
                time.sleep(0.001)
        print(f"failed {said}" if said else f"saved {step}", flush=True)
    print("refusals", refusals, flush=True)


if __name__ == "__main__":
    main()
