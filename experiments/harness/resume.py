"""Checkpoints of long studies, so that an interrupted run can be resumed.

If JPRUNE_RESUME_DIR is set, it holds the figures of the finished parts as JSON, and the
arrays of the networks in training, which are removed when a part is finished. File
names contain a hash of the settings, so other settings start from scratch.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import ExperimentError
from experiments.harness import results


def place(name: str, settings: Any) -> Path | None:
    """Returns the path prefix of a part of a study, or None if nothing is kept.

    Args:
      name: name of the part.
      settings: everything that its figures depend on; any object with a `repr`.
    """
    folder = os.environ.get("JPRUNE_RESUME_DIR")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    return Path(folder) / f"{name}-{mark}"


def once(at: Path | None, make: Callable[[], Any]) -> Any:
    """Returns the figures of an earlier run, or computes and stores them.

    Args:
      at: path of the file without its suffix, or None to store nothing.
      make: computes the figures; they must be JSON-serializable.
    """
    if at is None:
        return make()
    path = Path(f"{at}.json")
    if path.is_file():
        return json.loads(path.read_text())
    text = json.dumps(make())
    with results.replacing(path) as temporary:
        temporary.write_text(text)
    return json.loads(text)


def save(at: Path, tree: Any, done: int) -> None:
    """Stores the arrays of a tree atomically.

    Args:
      at: path of the file without its suffix.
      tree: tree of arrays.
      done: number of steps that have been done.
    """
    leaves = jax.device_get(jax.tree.leaves(tree))
    arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
    with results.replacing(Path(f"{at}.npz")) as temporary, temporary.open("wb") as out:
        np.savez(out, done=np.int64(done), **arrays)


def load(at: Path, like: Any) -> tuple[Any, int]:
    """Returns the saved tree and its number of steps, or `like` and 0.

    Args:
      at: path of the file without its suffix.
      like: tree of arrays with the structure and shapes of the saved one.

    Raises:
      ExperimentError: the saved arrays have other shapes.
    """
    path = Path(f"{at}.npz")
    if not path.is_file():
        return like, 0
    leaves, structure = jax.tree.flatten(like)
    with np.load(path) as saved:
        shapes = {k: x.shape for k, x in saved.items() if k != "done"}
        if shapes != {str(i): np.shape(leaf) for i, leaf in enumerate(leaves)}:
            raise ExperimentError(
                f"{path} holds arrays of another network; delete it to start anew"
            )
        found = [jax.numpy.asarray(saved[str(i)]) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, found), int(saved["done"])


def forget(at: Path | None) -> None:
    """Removes the arrays of a finished part: all files whose paths begin with `at`.

    Args:
      at: path prefix of the part, or None.
    """
    if at is not None:
        for path in at.parent.glob(f"{at.name}*.npz"):
            path.unlink()
