"""Files that are read and written as a whole.

Only local, regular files are opened, and what is being written is written to its end:
an interrupt is raised afterwards.
"""

import concurrent.futures
import contextlib
import io
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

T = TypeVar("T")
# `pathlib` turns `gs://` into `gs:/`. One letter is a drive, not a scheme.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_PATIENCE = 5.0  # seconds for which writes go on after one of them has failed


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or trusted; names path and leaf."""


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Context manager: converts errors to `CheckpointError`s that begin with `what`.

    Args:
      what: what was being done, or the leaf that it was done to.

    Yields:
      None.

    Raises:
      CheckpointError: if the block raises any `Exception`.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, CheckpointError | ValueError)
        kind = "" if ours else f"{type(error).__name__}: "
        raise CheckpointError(f"{what}: {kind}{error}") from error


def local_path(path: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a local file or directory.

    Args:
      path: path, relative to the working directory or absolute.

    Returns:
      The absolute path.

    Raises:
      CheckpointError: if the path is a URL.

    Example:
      >>> local_path("/tmp/../steps").as_posix()
      '/steps'
    """
    text = os.fsdecode(path)
    if _URL.match(text):
        raise CheckpointError(
            f"{text!r} is a URL, and only local files are written and read: save to a "
            "local directory and copy it, for example with `gcloud storage cp -r`"
        )
    return Path(os.path.abspath(text))


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file, or a link to one, for reading.

    Args:
      path: file.

    Returns:
      The open file.

    Raises:
      ValueError: if it is a directory, a FIFO, a socket or a device. Reading these
        might never end.
      OSError: if it cannot be opened.
    """
    _check_regular(path, os.stat(path).st_mode)
    # It may be another file by now, and opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except ValueError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Reads a regular file.

    Args:
      path: file.
      limit: largest number of bytes to read; None for any.

    Returns:
      The contents of the file.

    Raises:
      ValueError: if it is not a regular file, or larger than `limit`.
      OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ValueError(f"{path.name} has {size} bytes; at most {limit} are read")
        return file.read(size)


def uninterrupted(act: Callable[[], T]) -> T:
    """Runs a function to its end, even if the calling thread is interrupted.

    Python runs the handlers of signals in the main thread, so the function runs in a
    thread of its own. If the calling thread is interrupted, for example by
    `KeyboardInterrupt`, the interrupt is raised when the function has ended. A second
    interrupt is raised at once; the function still ends, before Python exits.

    Args:
      act: function without arguments. JAX's context managers of the calling thread,
        such as `jax.set_mesh`, do not apply to it.

    Returns:
      What the function returns; what it raises is raised.

    Example:
      >>> uninterrupted(lambda: 1 + 1)
      2
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if outcome.set_running_or_notify_cancel():
            try:
                outcome.set_result(act())
            except BaseException as error:
                outcome.set_exception(error)

    thread = threading.Thread(target=run, name="jprune.uninterrupted")
    try:
        thread.start()
        return outcome.result()
    finally:
        # An interrupt may come before the thread runs: then it does nothing.
        if not outcome.cancel():
            concurrent.futures.wait([outcome])
            thread.join()


def named_leaves(
    state: Any,
    path_of: Callable[[Any], str],
    is_leaf: Callable[[Any], bool] | None = None,
) -> dict[str, Any]:
    """Returns the leaves of a tree by the names that they have in a file.

    Orbax, PyTorch and most tables of parameters join names with `.`: two leaves whose
    paths differ only in `.` for `/` are one leaf to them.

    Args:
      state: any pytree.
      path_of: function from a key path to a path, `jprune.tree.leaf_path`.
      is_leaf: as in `jax.tree.leaves`.

    Returns:
      Path -> leaf, in tree order.

    Raises:
      CheckpointError: if two names are the same; gives the keys of both leaves.

    Example:
      >>> path_of = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
      >>> named_leaves({"a": [1.0, 2.0]}, path_of)
      {'a/0': 1.0, 'a/1': 2.0}
    """
    named: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for keys, leaf in jax.tree.leaves_with_path(state, is_leaf=is_leaf):
        path, origin = path_of(keys), "".join(map(str, keys))
        alias = path.replace(".", "/")
        if alias in origins:
            raise CheckpointError(
                f"the paths of the leaves {origins[alias]} and {origin} collide: "
                f"both are {alias!r} where names are joined with `.`"
            )
        origins[alias], named[path] = origin, leaf
    return named


def remove_directory(path: Path) -> None:
    """Removes a directory to which a failed writer may still be writing.

    Orbax raises the first error while its other writes go on, and they create the
    directory again. So this function looks again a moment later, for some seconds.

    Args:
      path: directory; it need not exist. What cannot be removed is left.
    """
    deadline = time.monotonic() + _PATIENCE
    while os.path.lexists(path) and time.monotonic() < deadline:
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{path.name} is {kind}, not a regular file")
