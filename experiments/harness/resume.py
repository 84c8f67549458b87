"""What a long study leaves behind, so that it goes on where it was stopped.

With JPRUNE_RESUME_DIR set, the figures of what is finished lie there as JSON, and the
arrays of what is being trained, which are removed when it is finished. Names carry a
mark of the settings: other settings start anew.
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
    """Returns what the paths of a part of a study begin with, or None for nowhere.

    Args:
      name: Of the part.
      settings: All that its figures depend on; anything with a `repr`.
    """
    folder = os.environ.get("JPRUNE_RESUME_DIR")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    return Path(folder) / f"{name}-{mark}"


def once(at: Path | None, make: Callable[[], Any]) -> Any:
    """Returns figures from an earlier run if there are any, else makes and keeps them.

    Args:
      at: The file without its suffix, or None to keep nothing.
      make: Returns what JSON can hold.
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
    """Keeps the arrays of a tree after `done` steps, in one piece.

    Args:
      at: The file without its suffix.
      tree: Of arrays.
      done: Steps.
    """
    leaves = jax.device_get(jax.tree.leaves(tree))
    arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
    with results.replacing(Path(f"{at}.npz")) as temporary, temporary.open("wb") as out:
        np.savez(out, done=np.int64(done), **arrays)


def load(at: Path, like: Any) -> tuple[Any, int]:
    """Returns the tree that was saved and its steps, or `like` and 0.

    Args:
      at: The file without its suffix.
      like: A tree of arrays with the same structure and shapes.

    Raises:
      ExperimentError: What was saved is of other shapes.
    """
    path = Path(f"{at}.npz")
    if not path.is_file():
        return like, 0
    leaves, structure = jax.tree.flatten(like)
    with np.load(path) as saved:
        shapes = {k: x.shape for k, x in saved.items() if k != "done"}
        if shapes != {str(i): np.shape(leaf) for i, leaf in enumerate(leaves)}:
            raise ExperimentError(f"{path} is of another network; remove it")
        found = [jax.numpy.asarray(saved[str(i)]) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, found), int(saved["done"])


def forget(at: Path | None) -> None:
    """Removes the arrays of a part that is finished, `at` and all that begin with it.

    Args:
      at: What their paths begin with, or None.
    """
    if at is not None:
        for path in at.parent.glob(f"{at.name}*.npz"):
            path.unlink()
