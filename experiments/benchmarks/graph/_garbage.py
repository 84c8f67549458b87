"""What Python's collector takes of the times of `bench graph`.

It imports the standard library only: `_torch_pruning` runs in an interpreter that may
have neither JAX nor this package.
"""

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def full_collections() -> Iterator[list[float]]:
    """Records the CPU seconds of each full collection in a block.

    A full collection visits all that the imports made, so its time says how much was
    imported, and chance whether it falls into the block.

    Yields:
      A list that grows by one entry for each full collection.
    """
    begun: list[float] = []
    taken: list[float] = []

    def record(phase: str, info: dict[str, Any]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            begun.append(time.process_time())
        else:
            taken.append(time.process_time() - begun.pop())

    gc.callbacks.append(record)
    try:
        yield taken
    finally:
        gc.callbacks.remove(record)
