"""Checkpoints that are complete and verified, or raise.

Orbax writes and reads the arrays. This module guards against what Orbax was observed to
do: it loads most files with a flipped bit, casts to another dtype and merges the leaves
of `{"a": {"b": x}, "a.b": y}` without an error, and rejects empty arrays and uint4.

    directory/step_00000100/manifest.json   leaves and files, with their checksums
    directory/step_00000100/arrays/         one flat Orbax checkpoint: path -> array

A step is written under a temporary name, flushed to the disk, and renamed. So a
directory called `step_...` is complete, whenever the process or the machine dies. It is
written to its end even if the process is interrupted, since Orbax's writes cannot be
stopped. The
manifest holds a checksum of itself, of every file and of every leaf. Files are verified
before Orbax reads them, since a flipped bit in a shape can make a reader allocate all
memory. Leaves are verified afterwards, since a reader may fail on intact files.
Checksums are SHA-256, not CRC-32: both cost little next to compression and writing, and
equal digests show that two runs hold the same leaf. They protect from accidents, not
from forgery.

Masks are stored as bits (see `_core.encoding` for the types), and empty arrays in the
manifest only. Nothing is pickled.

With several processes, all of them save and restore together: each calls the same
function with its part of the same state. Each process writes its shards; then the first
one writes the manifest. Each reads and verifies the whole checkpoint. An error on one
process is raised on all, though Orbax may make the others wait for some minutes. The
directory is local, or shared by all processes. One run at a time writes to it: see
`_steps` for the lock that ensures this.
"""

import contextlib
import json
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jprune import tree
from jprune._core import encoding, files, manifest, processes
from jprune._core.files import CheckpointError
from jprune.checkpoint import _orbax, _steps

_ARRAYS = "arrays"


def save(
    directory: str | os.PathLike[str], step: int, state: Any, *, keep: int | None = 3
) -> Path:
    """Saves a state as `directory/step_########` through Orbax, whole or not at all.

    The directory has one writer at a time: a save to a directory that another thread or
    process is saving to is refused. On file systems without locks it may not be
    refused; the steps that were saved stay whole there, too.

    A save that is interrupted, for example by `KeyboardInterrupt`, is completed before
    the interrupt is raised.

    Args:
      directory: local directory, or one that all processes share; created if it does
        not exist. Remains of interrupted saves are removed from it when this save is
        complete.
      step: number of the step, >= 0. An existing step is not overwritten.
      state: any pytree of arrays and Python numbers, such as a tuple of params and
        optimizer state. Its structure is not stored: `restore` takes it from `like`,
        so that no code is loaded from files.
      keep: number of steps to keep, >= 1: this one and the latest others. None keeps
        all.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: if `step` or `keep` is out of range.
      CheckpointError: if the step exists, the directory is a URL or has another writer,
        a leaf cannot be stored, two paths are equal or differ only in `.` for `/`,
        writing fails, or any of this happens on another process. Earlier steps are not
        changed.
      ImportError: if Orbax is not installed.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save(directory, 100, {"w": jnp.ones(3), "mask": jnp.ones(3, bool)}).name
      'step_00000100'
    """
    step = operator.index(step)
    if step < 0 or (keep is not None and keep < 1):
        raise ValueError(
            f"step is >= 0, and keep is >= 1 or None; got {step=}, {keep=}."
        )
    _orbax.need_orbax()
    final = files.local_path(directory) / _steps.step_name(step)
    with files.naming(f"cannot save {final}"):
        with processes.agreement():
            _check_new(final)
            named = files.named_leaves(state, tree.leaf_path)
            _check_leaves(named)
        _check_same("the step", str(step))
        entries, arrays = _encode_all(named)
    body = {"step": step, "leaves": entries}
    files.uninterrupted(lambda: _write(final, body, arrays, keep))
    return final


def restore(
    directory: str | os.PathLike[str], like: Any, *, step: int | None = None
) -> Any:
    """Restores the state of a step, verified bit for bit.

    Args:
      directory: directory that `save` was given.
      like: pytree with the structure, shapes and dtypes of the state: a state, or the
        result of `jax.eval_shape`. Where its leaves are arrays committed to devices, or
        `jax.ShapeDtypeStruct`s with shardings, so are the restored ones; NumPy arrays
        and Python numbers are restored as such.
      step: number of the step; None for the latest.

    Returns:
      The saved state, with the structure of `like`. Dtypes are never cast, and weak
      types are restored as they were saved.

    Raises:
      CheckpointError: if there is no such checkpoint, a file is damaged, a file that
        was not saved is among its arrays, `save` did not write it, or its paths,
        shapes or dtypes differ from those of `like`, on this process or another. No
        file is changed, and no other step is restored instead.
      ImportError: if Orbax is not installed.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = save(directory, 100, {"w": jnp.arange(3)})
      ...     restore(directory, {"w": jnp.zeros(3, jnp.int32)})
      {'w': Array([0, 1, 2], dtype=int32)}
    """
    _orbax.need_orbax()
    directory = files.local_path(directory)
    with files.naming(f"cannot restore from {directory}"):
        with processes.agreement():
            steps = _steps.all_steps(directory)
        step = max(steps, default=None) if step is None else operator.index(step)
        _check_same("the step", str(step))
        with processes.agreement():
            step = _steps.present_step(directory, step, steps)
    path = directory / _steps.step_name(step)
    with files.naming(f"cannot restore {path}"), processes.agreement():
        contents = manifest.read(path)
        if contents["step"] != step:
            raise CheckpointError(f"it holds step {contents['step']}")
        entries = {leaf["path"]: leaf for leaf in contents["leaves"]}
        wanted = files.named_leaves(like, tree.leaf_path)
        _check_like(entries, wanted)
        manifest.check_files(path, contents["files"], _ARRAYS)
        leaves = _decode_all(path / _ARRAYS, entries, wanted)
        return jax.tree.structure(like).unflatten(leaves)


# ---- leaves ----


def _check_leaves(named: dict[str, Any]) -> None:
    """Raises errors that can be foreseen, while no process waits for this one."""
    for path, leaf in named.items():
        with files.naming(f"leaf {path!r}"):
            encoding.describe(leaf)
            if isinstance(leaf, jax.core.Tracer):
                raise ValueError("it is a Tracer: save outside of jit")
            if isinstance(leaf, jax.Array) and leaf.is_deleted():
                raise ValueError("it is an array that has been deleted")


def _encode_all(
    named: dict[str, Any],
) -> tuple[list[encoding.Entry], dict[str, Any]]:
    _check_same("the leaves", json.dumps([*named]))
    entries, arrays = [], {}
    for path, leaf in named.items():
        with files.naming(f"leaf {path!r}"):
            value, entry = encoding.encode(leaf)
        entries.append({"path": path, **entry})
        if value.size:  # Orbax rejects empty arrays; the manifest describes them fully
            arrays[path] = value
    every = [json.loads(text) for text in processes.exchange(json.dumps(entries))]
    return [_join(leaf) for leaf in zip(*every, strict=True)], arrays


def _decode_all(
    path: Path, entries: dict[str, encoding.Entry], like: dict[str, Any]
) -> list[Any]:
    types = {name: encoding.stored_type(entries[name]) for name in like}
    leaves = {}
    for name, stored in _orbax.read(path, types):
        with files.naming(f"leaf {name!r}"):
            leaves[name] = encoding.decode(entries[name], stored, like[name])
    return [leaves[name] for name in like]


def _join(entries: Sequence[encoding.Entry]) -> encoding.Entry:
    with files.naming(f"leaf {entries[0]['path']!r}"):
        return encoding.join(entries)


def _check_same(what: str, text: str) -> None:
    every = processes.exchange(text)
    if len(set(every)) > 1:
        said = "; ".join(f"on process {i} {text[:200]}" for i, text in enumerate(every))
        raise CheckpointError(f"{what} must be the same on all processes; got {said}")


def _check_like(entries: dict[str, Any], wanted: dict[str, Any]) -> None:
    if entries.keys() != wanted.keys():
        raise CheckpointError(
            f"leaves of `like` that it lacks: {_listing(wanted.keys() - entries)}; "
            f"leaves of it that `like` lacks: {_listing(entries.keys() - wanted)}"
        )
    for path, leaf in wanted.items():
        with files.naming(f"leaf {path!r}"):
            expected = encoding.describe(leaf)
        found = {key: entries[path][key] for key in expected}
        if found != expected:
            raise CheckpointError(
                f"leaf {path!r} is {found}, but in `like` it is {expected}"
            )


# ---- files ----


def _write(
    final: Path, body: dict[str, Any], arrays: dict[str, Any], keep: int | None
) -> None:
    with contextlib.ExitStack() as stack:
        is_locked = False
        with files.naming(f"cannot save {final}"):
            with processes.agreement():
                if processes.is_first():
                    _steps.make_directory(final.parent)
                    is_locked = stack.enter_context(_steps.locked(final.parent))
                    _check_new(final)
            with _temporary(final) as temporary:
                with processes.agreement():
                    # Open, so that no other directory gets its inode.
                    made = os.open(temporary, os.O_RDONLY)
                    stack.callback(os.close, made)
                    _orbax.write(temporary / _ARRAYS, arrays)
                    manifest.flush_all(temporary)
                with processes.agreement():
                    if processes.is_first():
                        manifest.write(temporary, body)
                        # Orbax creates directories anew that were removed meanwhile.
                        if not os.path.samestat(os.fstat(made), temporary.stat()):
                            raise CheckpointError("another writer removed its files")
                        os.rename(temporary, final)
        what = f"saved {final}, but cannot remove older steps"
        with files.naming(what), processes.agreement():
            if processes.is_first():
                manifest.flush(final.parent)
                _steps.remove_old(final.parent, body["step"], keep, is_locked=is_locked)


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    name = processes.exchange(_steps.temporary_path(final).name)[0]
    path = final.with_name(name)
    try:
        with processes.agreement():
            if processes.is_first():
                path.mkdir()
        with processes.agreement():
            if not path.is_dir():
                raise CheckpointError(f"not all processes see {path.parent}")
        yield path
    except BaseException:
        if processes.is_first():
            files.remove_directory(path)
        raise


def _check_new(final: Path) -> None:
    if os.path.lexists(final):
        raise CheckpointError("it exists, and checkpoints are not overwritten")


def _listing(names: set[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(sorted(names)[:20]) or "none") + more
