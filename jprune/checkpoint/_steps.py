"""The steps in a directory: their names, the lock of their writer, and their removal.

A directory has one writer at a time. The writer holds a lock on `.jprune.lock`, which
the system releases when the writer ends or dies. The lock is `flock`'s, so it excludes
other threads as well as other processes, and on file systems that share their locks,
such as NFS, processes on other hosts.

Some file systems have no locks, and some keep them from other hosts. There, two writers
may meet. Whatever they do, a step that was saved stays whole, since a step, or a
temporary that another writer may hold, is renamed before it is removed: either the
writer has renamed it to its final name before, or its save fails. Without a lock, the
remains of interrupted saves are left in the directory, since nothing tells whether
their writer is alive.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from jprune._core import files, manifest

_LOCK = ".jprune.lock"
_STEP = re.compile(r"step_([0-9]{8,})")
_TEMPORARY = re.compile(r"\.step_[0-9]{8,}\.tmp-[0-9a-f]{32}")
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def all_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps that were saved in a directory, ascending.

    Interrupted saves are left out. Damaged steps are not: `restore` raises and names
    the damage, where leaving them out would silently go back to an older step.

    Args:
      directory: directory that `save` was given; it need not exist.

    Returns:
      A list of step numbers.

    Raises:
      CheckpointError: if it is not a directory, is a URL, or cannot be read.

    Example:
      >>> all_steps("/nowhere")
      []
    """
    directory = files.local_path(directory)
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise files.CheckpointError(f"cannot list {directory}: {error}") from error
    found = (int(match[1]) for name in names if (match := _STEP.fullmatch(name)))
    return sorted(step for step in found if step_name(step) in names)


def latest_step(directory: str | os.PathLike[str]) -> int | None:
    """Returns the latest step that was saved in a directory.

    Args:
      directory: directory that `save` was given; it need not exist.

    Returns:
      The number of the step, or None if there is none.

    Raises:
      CheckpointError: if it is not a directory, is a URL, or cannot be read.

    Example:
      >>> latest_step("/nowhere") is None
      True
    """
    return max(all_steps(directory), default=None)


def step_name(step: int) -> str:
    """Returns the name of the directory of a step.

    Args:
      step: number of the step.

    Returns:
      The name.

    Example:
      >>> step_name(100)
      'step_00000100'
    """
    return f"step_{step:08d}"


def temporary_path(final: Path) -> Path:
    """Returns a new name for a step that is being written or removed.

    Args:
      final: path of the step.

    Returns:
      A path beside it that nobody else uses.
    """
    return final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")


def present_step(directory: Path, step: int | None, steps: list[int]) -> int:
    """Returns the number of a step that is there.

    Args:
      directory: directory of the steps.
      step: number of the step; None if no step was asked for, and there is none.
      steps: the steps in the directory.

    Returns:
      The number of the step.

    Raises:
      CheckpointError: if the step is missing; lists those that are there.
    """
    if not directory.exists():
        raise files.CheckpointError("this directory does not exist")
    if step is None or not steps:
        raise files.CheckpointError("no checkpoint was saved in this directory")
    if step not in steps:
        more = f", and {len(steps) - 20} earlier ones" if len(steps) > 20 else ""
        latest = ", ".join(map(str, steps[-20:]))
        raise files.CheckpointError(
            f"it has no checkpoint of step {step}; its steps are {latest}{more}"
        )
    return step


def make_directory(directory: Path) -> None:
    """Creates a directory and its parents, and flushes their names to the disk.

    Args:
      directory: directory; it may exist.
    """
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        manifest.flush(directory.parent)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Context manager: holds the lock of a directory.

    Args:
      directory: directory of the steps; exists.

    Yields:
      True; False if the file system has no locks.

    Raises:
      CheckpointError: if another thread or process holds the lock; names it.
    """
    path = directory / _LOCK
    descriptor = _acquire(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(path, descriptor)


def remove_old(
    directory: Path, step: int, keep: int | None, *, is_locked: bool
) -> None:
    """Removes the steps that are not to be kept, and the remains of dead writers.

    Args:
      directory: directory of the steps.
      step: number of a step that is kept in any case.
      keep: number of steps to keep; None for all.
      is_locked: whether this is the only writer. If not, nothing tells whether a
        temporary has a living writer, and temporaries are left.
    """
    others = [s for s in all_steps(directory) if s != step]
    last = 0 if keep is None else max(0, len(others) - keep + 1)
    aside = [_set_aside(directory, step_name(old)) for old in others[:last]]
    manifest.flush(directory)
    if is_locked:
        names = [entry.name for entry in os.scandir(directory)]
        dead = {name for name in names if _TEMPORARY.fullmatch(name)}
        ours = {path.name for path in aside if path is not None}
        aside += [_set_aside(directory, name) for name in dead - ours]
    for path in aside:
        if path is not None:
            with contextlib.suppress(FileNotFoundError):  # another writer was faster
                shutil.rmtree(path)


def _set_aside(directory: Path, name: str) -> Path | None:
    """Renames a step or a temporary, so that no other writer can make it a step."""
    step = name.removeprefix(".").partition(".tmp-")[0]
    aside = temporary_path(directory / step)
    try:
        os.rename(directory / name, aside)
    except FileNotFoundError:  # its writer has made it a step, or removed it
        return None
    return aside


def _acquire(path: Path) -> int | None:
    try:
        # Imported here because Windows lacks it.
        import fcntl
    except ImportError:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise files.CheckpointError(
                f"{owner or 'another process'} is saving to {path.parent}, and a "
                "directory has one writer at a time: save again when it has ended, or "
                "to another directory"
            ) from error
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
                return None
            raise
        if _is_same(path, descriptor):
            with contextlib.suppress(OSError):  # a full disk; it only names the owner
                os.ftruncate(descriptor, 0)
                owner = f"process {os.getpid()} on {socket.gethostname()}"
                os.pwrite(descriptor, owner.encode(), 0)
            return descriptor
        os.close(descriptor)  # its last owner removed it before this lock


def _release(path: Path, descriptor: int) -> None:
    import fcntl

    # Removed while it is locked: whoever has opened it sees that it is gone.
    with contextlib.suppress(OSError):
        path.unlink()
    # Closing is not enough if a child that was forked meanwhile holds it, too.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
