"""Named arrays on the disk, through Orbax.

Nothing is verified here; `_checkpoint` does. Several processes write together, and each
reads by itself.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

Type = tuple[str, list[int]]  # name of a dtype, and shape
_AT_ONCE = 2**28  # bytes read to the host at once; larger arrays are read one by one


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays to a new directory; each process writes its shards.

    Args:
      path: directory; not created if there are no arrays.
      arrays: maps names to NumPy arrays, equal on all processes, or JAX arrays.
    """
    if arrays:
        ocp = need_orbax()
        with _checkpointer(ocp, range(jax.process_count())) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))


def read(path: Path, types: dict[str, Type]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads arrays one after the other, whole, on the host of this process.

    Holds a few hundred megabytes at a time, or one larger array.

    Args:
      path: directory.
      types: maps the names of wanted arrays to their dtypes and shapes; empty arrays
        are created, not read.

    Yields:
      Names and arrays, whose types are not verified.
    """
    full = {name: kind for name, kind in types.items() if 0 not in kind[1]}
    for name in types.keys() - full.keys():
        dtype, shape = types[name]
        yield name, np.empty(shape, dtype)
    ocp = need_orbax()
    # Each process by itself, so that none waits for one that fails.
    with _checkpointer(ocp, [jax.process_index()]) as checkpointer:
        for names in _batches(full):
            kind = ocp.RestoreArgs(restore_type=np.ndarray)
            wanted = ocp.args.PyTreeRestore(
                item=dict.fromkeys(names, 0),
                restore_args=dict.fromkeys(names, kind),
                partial_restore=True,
            )
            found = checkpointer.restore(path, args=wanted)
            for name in names:
                yield name, found.pop(name)


def need_orbax() -> Any:
    """Imports `orbax.checkpoint`.

    Returns:
      The module.

    Raises:
      ImportError: if it is not installed; says how to install it.
    """
    try:
        # Imported here because the import takes a second.
        import orbax.checkpoint as ocp
    except ImportError as error:
        message = "Checkpoints need Orbax: pip install 'jprune[checkpoint]'"
        raise ImportError(message) from error
    return ocp


def _batches(types: dict[str, Type]) -> Iterator[list[str]]:
    batch, total = [], 0
    for name, (dtype, shape) in types.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if batch and total + size > _AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch


def _checkpointer(ocp: Any, active: Sequence[int]) -> Any:
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(),
        # Named processes wait for each other at barriers with a time limit.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=min(active), active_processes=set(active)
        ),
    )
