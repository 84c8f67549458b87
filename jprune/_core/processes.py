"""What the processes of one run decide together.

A file that one process cannot write, or a leaf that one of them finds damaged, must
stop all of them: a process that goes on alone waits forever in the next collective.
With one process, everything here is what it says and nothing more.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

_BLOCK = 4096  # texts are padded to whole blocks: fewer shapes to compile for


def is_first() -> bool:
    """Returns whether this is the process that does what one alone has to do.

    Returns:
      True for process 0.

    Example:
      >>> is_first()
      True
    """
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """Returns what each process said; every process has to call it.

    Args:
      text: what this one says, in any length.

    Returns:
      The texts, in the order of the processes.

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
    """A block that fails on every process if it fails on one.

    Every process has to enter it, and no process may wait for another inside it,
    but with a time limit.

    Yields:
      Nothing.

    Raises:
      RuntimeError: if the block raised on another process only, saying which and
        what. Where it raised on this one, that is raised as it is.

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
    """Returns all values of an array that is spread over processes.

    Args:
      leaf: the array; every process has to call this.

    Returns:
      The values.
    """
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def is_here(leaf: jax.Array) -> bool:
    """Returns whether this process holds all values of an array.

    Args:
      leaf: the array.

    Returns:
      True if its shards, or a replica of it, are on devices of this process.

    Example:
      >>> import jax.numpy as jnp
      >>> is_here(jnp.arange(3))
      True
    """
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _gathered(row: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(row))
