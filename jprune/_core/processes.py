"""Agreement between the processes of one run.

A file that one process cannot write, or a leaf that one process finds damaged, has to
stop all processes: those that went on would wait forever in the next collective. With
one process, these functions communicate nothing.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

_BLOCK = 4096  # strings are padded to whole blocks, so that few shapes are compiled


def is_first() -> bool:
    """Returns whether this process does the work that a single process has to do.

    Returns:
      True for process 0.

    Example:
      >>> is_first()
      True
    """
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """Gathers a string from each process; every process has to call this.

    Args:
      text: string of this process, of any length.

    Returns:
      The strings, in the order of the processes.

    Example:
      >>> exchange("ready")
      ['ready']
    """
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = _gathered(np.array([data.size], np.int32))[:, 0]
    padded = np.zeros(-(-max(1, sizes.max()) // _BLOCK) * _BLOCK, np.uint8)
    padded[: data.size] = data
    rows = _gathered(padded)
    return [row[:n].tobytes().decode() for row, n in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def agreement() -> Iterator[None]:
    """Context manager: a block that fails on every process if it fails on one.

    Every process has to enter the block. Inside of it, no process may wait for
    another without a time limit.

    Yields:
      None.

    Raises:
      RuntimeError: if the block raised on another process; the message has the
        process and its error. An error of this process is raised unchanged.

    Example:
      >>> with agreement():
      ...     3 / 4
      0.75
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    said = "" if failure is None else f"{type(failure).__name__}: {failure}"
    every = exchange(said)
    if failure is not None:
        raise failure
    for process, other in enumerate(every):
        if other:
            raise RuntimeError(f"process {process} failed: {other}")


def gathered(leaf: jax.Array) -> np.ndarray:
    """Gathers an array that is sharded over processes; every process has to call this.

    Args:
      leaf: array.

    Returns:
      All its values, on the host.
    """
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def is_here(leaf: jax.Array) -> bool:
    """Returns whether this process holds all values of an array.

    Args:
      leaf: array.

    Returns:
      True if all shards, or a replica, are on devices of this process.

    Example:
      >>> import jax.numpy as jnp
      >>> is_here(jnp.arange(3))
      True
    """
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _gathered(row: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(row))
