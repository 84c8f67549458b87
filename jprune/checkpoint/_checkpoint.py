"""Checkpoints that are whole, verified, or refused by name.

The arrays go through Orbax. This module adds what Orbax was seen to lack: it
loads most files with a flipped bit, casts to another dtype and merges the leaves
of `{"a": {"b": x}, "a.b": y}` without a word, and refuses empty arrays and uint4.

    directory/step_00000100/manifest.json   what was saved, with checksums (`manifest`)
    directory/step_00000100/arrays/         one flat Orbax checkpoint: path -> array

A step is written under a temporary name, flushed to the disk, and renamed: a
directory called `step_...` is complete, whenever the process or the machine
dies. The manifest holds a checksum of itself, of every file and of every leaf.
Files are verified before Orbax reads a byte of them, since a flipped bit in a
shape can make a reader allocate the whole memory; leaves are verified after it,
since a reader can be wrong about intact files. Checksums are SHA-256 rather than
CRC-32: either costs little beside compressing and writing, and equal digests show
that two runs hold the same leaf. They guard against accidents, not against forgery.

Masks are stored as bits (`encoding` has the types), empty arrays in the manifest
alone. Nothing is pickled.

Many processes save and restore together: every one of them calls the same function
with its part of the same state. Each writes its shards, and the first one the
manifest, after all have finished; each reads and verifies all of it. What fails on
one fails on all, though Orbax may let the others wait for some minutes first. The
directory is a local one, or one that all see, and one run at a time writes to it.
"""

import contextlib
import json
import operator
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jprune import tree
from jprune._core import encoding, manifest, processes
from jprune.checkpoint import _orbax

_ARRAYS = "arrays"
_STEP = re.compile(r"step_([0-9]{8,})")
_TEMPORARY = re.compile(r"\.step_[0-9]{8,}\.tmp-[0-9a-f]{32}")  # what may be swept


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or read and trusted; names path and leaf."""


def save(
    directory: str | os.PathLike[str], step: int, state: Any, *, keep: int | None = 3
) -> Path:
    """Saves a state as `directory/step_########`, whole or not at all.

    Args:
      directory: a local directory, or one that all processes see; made where it
        does not exist. What dead saves left in it is removed once this one is
        complete.
      step: the number of the step, >= 0; a step that exists is not overwritten.
      state: any pytree of arrays and Python numbers, such as a tuple of params and
        optimizer state. Its structure is not stored: `restore` takes it from
        `like`, so no code is ever loaded from a file.
      keep: how many steps to keep, >= 1: this one and the latest others; None
        keeps all.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: if `step` or `keep` is out of range.
      CheckpointError: if the step exists, a leaf is not an array that can be
        stored, two paths are the same or differ only in `.` for `/`, writing fails,
        or any of this on another process. Earlier steps are untouched then.
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
        raise ValueError(f"Want step >= 0 and keep >= 1 or None, got {step=}, {keep=}.")
    _orbax.need_orbax()
    final = Path(os.path.abspath(directory)) / _step_name(step)
    with _naming(f"cannot save {final}"):
        with processes.agreement():
            if os.path.lexists(final):
                raise CheckpointError(
                    "it exists, and a checkpoint is never overwritten"
                )
            named = _named_leaves(state)
            _check_leaves(named)
        _check_same("the step", str(step))
        entries, arrays = _encode_all(named)
        with _temporary(final) as temporary:
            with processes.agreement():
                _orbax.write(temporary / _ARRAYS, arrays)
                manifest.flush_all(temporary)
            with processes.agreement():
                if processes.is_first():
                    manifest.write(temporary, {"step": step, "leaves": entries})
                    os.rename(temporary, final)
    what = f"saved {final}, but cannot remove what it replaces"
    with _naming(what), processes.agreement():
        if processes.is_first():
            manifest.flush(final.parent)
            _remove_old(final.parent, step, keep)
    return final


def restore(
    directory: str | os.PathLike[str], like: Any, *, step: int | None = None
) -> Any:
    """Returns the state of a step, verified to the last bit.

    Args:
      directory: where `save` wrote.
      like: a pytree of the state's structure, shapes and dtypes: a state, or what
        `jax.eval_shape` says of it. Where its leaves are arrays committed to
        devices, or `jax.ShapeDtypeStruct`s with a sharding, so is the result;
        NumPy arrays and Python numbers come back as such.
      step: which step; the latest if None.

    Returns:
      The saved state in the structure of `like`. Dtypes are never cast, and weak
      types are as they were saved.

    Raises:
      CheckpointError: if there is no such checkpoint, it is damaged in any file,
        a foreign file lies among its arrays, it was not written by `save`, or its
        paths, shapes or dtypes are not those of `like`, on this process or another.
        No file is touched, and no other step is taken instead.
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
    directory = Path(os.path.abspath(directory))
    with _naming(f"cannot restore from {directory}"):
        with processes.agreement():
            steps = all_steps(directory)
        step = max(steps, default=None) if step is None else operator.index(step)
        _check_same("the step", str(step))
        with processes.agreement():
            if step not in steps:
                raise CheckpointError(
                    f"no checkpoint of {'any step' if step is None else f'{step=}'} is "
                    f"there, but these steps: {_listing(steps)}"
                )
    path = directory / _step_name(step)
    with _naming(f"cannot restore {path}"), processes.agreement():
        contents = manifest.read(path)
        if contents["step"] != step:
            raise CheckpointError(f"it holds step {contents['step']}")
        entries = {leaf["path"]: leaf for leaf in contents["leaves"]}
        wanted = _named_leaves(like)
        _check_like(entries, wanted)
        manifest.check_files(path, contents["files"], _ARRAYS)
        leaves = _decode_all(path / _ARRAYS, entries, wanted)
        return jax.tree.structure(like).unflatten(leaves)


def all_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps that were saved in a directory, ascending.

    Saves that died are not among them. Steps damaged later are: `restore` names
    what is wrong with them, where leaving them out would go back in time unseen.

    Args:
      directory: where `save` wrote; it need not exist.

    Returns:
      The numbers of the steps.

    Raises:
      CheckpointError: if it is not a directory, or not to be read.

    Example:
      >>> all_steps("/nowhere")
      []
    """
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot look into {directory}: {error}") from error
    found = (int(match[1]) for name in names if (match := _STEP.fullmatch(name)))
    return sorted(step for step in found if _step_name(step) in names)


def latest_step(directory: str | os.PathLike[str]) -> int | None:
    """Returns the latest step that was saved in a directory.

    Args:
      directory: where `save` wrote; it need not exist.

    Returns:
      The number of the step, or None if there is none.

    Raises:
      CheckpointError: if it is not a directory, or not to be read.

    Example:
      >>> latest_step("/nowhere") is None
      True
    """
    return max(all_steps(directory), default=None)


# ---- leaves ----


def _named_leaves(state: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for keys, leaf in jax.tree.leaves_with_path(state):
        path, origin = tree.leaf_path(keys), "".join(map(str, keys))
        # `.` joins names in Orbax, in PyTorch and in most tables of parameters:
        # two leaves that differ by it alone are one leaf to somebody.
        alias = path.replace(".", "/")
        if alias in origins:
            raise CheckpointError(
                f"the paths of the leaves {origins[alias]} and {origin} collide: "
                f"both are {alias!r} where `.` joins names"
            )
        origins[alias], named[path] = origin, leaf
    return named


def _check_leaves(named: dict[str, Any]) -> None:
    """Raises what can be foreseen, while no process waits for this one."""
    for path, leaf in named.items():
        with _naming(f"leaf {path!r}"):
            encoding.describe(leaf)
            if isinstance(leaf, jax.core.Tracer):
                raise ValueError("it is a Tracer: saving happens outside of jit")
            if isinstance(leaf, jax.Array) and leaf.is_deleted():
                raise ValueError("it is an array that has been deleted")


def _encode_all(
    named: dict[str, Any],
) -> tuple[list[encoding.Entry], dict[str, Any]]:
    _check_same("the leaves", json.dumps([*named]))
    entries, arrays = [], {}
    for path, leaf in named.items():
        with _naming(f"leaf {path!r}"):
            value, entry = encoding.encode(leaf)
        entries.append({"path": path, **entry})
        if value.size:  # Orbax refuses empty arrays; the manifest says it all
            arrays[path] = value
    every = [json.loads(text) for text in processes.exchange(json.dumps(entries))]
    return [_join(leaf) for leaf in zip(*every, strict=True)], arrays


def _decode_all(
    path: Path, entries: dict[str, encoding.Entry], like: dict[str, Any]
) -> list[Any]:
    types = {name: encoding.stored_type(entries[name]) for name in like}
    leaves = {}
    for name, stored in _orbax.read(path, types):
        with _naming(f"leaf {name!r}"):
            leaves[name] = encoding.decode(entries[name], stored, like[name])
    return [leaves[name] for name in like]


def _join(entries: Sequence[encoding.Entry]) -> encoding.Entry:
    with _naming(f"leaf {entries[0]['path']!r}"):
        return encoding.join(entries)


def _check_same(what: str, text: str) -> None:
    every = processes.exchange(text)
    if len(set(every)) > 1:
        said = "; ".join(f"on process {i} {text[:200]}" for i, text in enumerate(every))
        raise CheckpointError(f"{what} must be the same on all processes: {said}")


def _check_like(entries: dict[str, Any], wanted: dict[str, Any]) -> None:
    if entries.keys() != wanted.keys():
        raise CheckpointError(
            f"leaves of `like` that it lacks: {_listing(wanted.keys() - entries)}; "
            f"leaves that `like` lacks: {_listing(entries.keys() - wanted)}"
        )
    for path, leaf in wanted.items():
        with _naming(f"leaf {path!r}"):
            expected = encoding.describe(leaf)
        found = {key: entries[path][key] for key in expected}
        if found != expected:
            raise CheckpointError(f"leaf {path!r} is {found}, in `like` {expected}")


# ---- files ----


def _remove_old(directory: Path, step: int, keep: int | None) -> None:
    others = [s for s in all_steps(directory) if s != step]
    for old in others[: 0 if keep is None else max(0, len(others) - keep + 1)]:
        # Renamed first: a kill halfway through must not leave half a step.
        path = directory / _step_name(old)
        os.rename(path, _temporary_path(path))
    manifest.flush(directory)
    for entry in list(os.scandir(directory)):
        if _TEMPORARY.fullmatch(entry.name):
            shutil.rmtree(entry.path)


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    name = processes.exchange(_temporary_path(final).name)[0]
    path = final.with_name(name)
    try:
        with processes.agreement():
            if processes.is_first():
                _make(final.parent)
                path.mkdir()
        with processes.agreement():
            if not path.is_dir():
                raise CheckpointError(f"{path.parent} is not one that all see")
        yield path
    except BaseException:  # an interrupt leaves nothing behind either
        if processes.is_first():
            shutil.rmtree(path, ignore_errors=True)
        raise


def _make(directory: Path) -> None:
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        manifest.flush(directory.parent)


def _temporary_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")


def _step_name(step: int) -> str:
    return f"step_{step:08d}"


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turns whatever is raised into a `CheckpointError` that says what it was about."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, CheckpointError | ValueError)
        kind = "" if ours else f"{type(error).__name__}: "
        raise CheckpointError(f"{what}: {kind}{error}") from error


def _listing(names: Sequence[int] | set[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(map(str, sorted(names)[:20])) or "none") + more
