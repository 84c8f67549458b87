"""Checkpoints that are whole, verified, or refused by name.

The arrays go through Orbax. This module adds what Orbax was seen to lack: it
loads most files with a flipped bit, casts to another dtype and merges the leaves
of `{"a": {"b": x}, "a.b": y}` without a word, and refuses empty arrays and uint4.

    directory/step_00000100/manifest.json   what was saved, with checksums
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
alone. Nothing is pickled. The directory is a local one, and one process at a time
writes to it.
"""

import contextlib
import hashlib
import importlib.metadata
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
import numpy as np

from jprune import encoding, tree

SCHEMA = 1
_MANIFEST = "manifest.json"
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
      directory: a local directory, made where it does not exist. What dead saves
        left in it is removed once this one is complete.
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
        stored, two paths are the same or differ only in `.` for `/`, more than
        one process runs, or writing fails. Earlier steps are untouched then.
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
    ocp = _orbax()
    final = Path(os.path.abspath(directory)) / _step_name(step)
    with _naming(f"cannot save {final}"):
        _check_single_process()
        if os.path.lexists(final):
            raise CheckpointError("it exists, and a checkpoint is never overwritten")
        leaves, arrays = _encode_all(state)
        final.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(final) as temporary:
            _write(ocp, temporary, arrays, {"step": step, "leaves": leaves})
            os.rename(temporary, final)
    with _naming(f"saved {final}, but cannot remove what it replaces"):
        _fsync(final.parent)
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
        it was not written by `save`, or its paths, shapes or dtypes are not those
        of `like`. No file is touched, and no other step is taken instead.
      ImportError: if Orbax is not installed.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = save(directory, 100, {"w": jnp.arange(3)})
      ...     restore(directory, {"w": jnp.zeros(3, jnp.int32)})
      {'w': Array([0, 1, 2], dtype=int32)}
    """
    ocp = _orbax()
    steps = all_steps(directory)
    step = max(steps, default=None) if step is None else operator.index(step)
    if step not in steps:
        raise CheckpointError(
            f"no checkpoint of {'any step' if step is None else f'{step=}'} in "
            f"{os.path.abspath(directory)}; steps there: {_listing(steps)}"
        )
    path = Path(os.path.abspath(directory)) / _step_name(step)
    with _naming(f"cannot restore {path}"):
        _check_single_process()
        manifest = _read_manifest(path)
        if manifest["step"] != step:
            raise CheckpointError(f"it holds step {manifest['step']}")
        entries = {leaf["path"]: leaf for leaf in manifest["leaves"]}
        _check_like(entries, _named_leaves(like))
        _check_files(path, manifest["files"])
        return _decode_all(entries, _read_arrays(ocp, path, entries), like)


def all_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps that were saved in a directory, ascending.

    Saves that died are not among them. Steps damaged later are: `restore` names
    what is wrong with them, where leaving them out would go back in time unseen.

    Args:
      directory: where `save` wrote; it need not exist.

    Returns:
      The numbers of the steps.

    Example:
      >>> all_steps("/nowhere")
      []
    """
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
    found = (int(match[1]) for name in names if (match := _STEP.fullmatch(name)))
    return sorted(step for step in found if _step_name(step) in names)


def latest_step(directory: str | os.PathLike[str]) -> int | None:
    """Returns the latest step that was saved in a directory.

    Args:
      directory: where `save` wrote; it need not exist.

    Returns:
      The number of the step, or None if there is none.

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


def _encode_all(state: Any) -> tuple[list[encoding.Entry], dict[str, np.ndarray]]:
    entries, arrays = [], {}
    for path, leaf in _named_leaves(state).items():
        with _naming(f"leaf {path!r}"):
            value, entry = encoding.encode(leaf)
        entries.append({"path": path, **entry})
        if value.size:  # Orbax refuses empty arrays; the manifest says it all
            arrays[path] = value
    return entries, arrays


def _decode_all(
    entries: dict[str, encoding.Entry], arrays: dict[str, np.ndarray], like: Any
) -> Any:
    leaves = []
    for path, leaf in _named_leaves(like).items():
        with _naming(f"leaf {path!r}"):
            leaves.append(encoding.decode(entries[path], arrays[path], leaf))
    return jax.tree.structure(like).unflatten(leaves)


# ---- files ----


def _write(ocp: Any, temporary: Path, arrays: dict, manifest: dict[str, Any]) -> None:
    if arrays:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(temporary / _ARRAYS, args=ocp.args.PyTreeSave(arrays))
    files = sorted(file for file in temporary.rglob("*") if file.is_file())
    names = ("jprune", "jax", "numpy", "orbax-checkpoint")
    body = {
        "format": "jprune checkpoint",
        "schema": SCHEMA,
        "versions": {name: _version(name) for name in names},
        **manifest,
        "files": {f.relative_to(temporary).as_posix(): _file_digest(f) for f in files},
    }
    text = json.dumps({"sha256": _json_digest(body), **body}, indent=1)
    (temporary / _MANIFEST).write_text(text, encoding="utf-8")
    for parent, _, files in os.walk(temporary):
        for name in (*files, "."):
            _fsync(Path(parent) / name)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"it has no {_MANIFEST}; did jprune write it?") from error
    except ValueError as error:
        raise CheckpointError(f"its {_MANIFEST} is damaged: {error}") from error
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise CheckpointError(f"its {_MANIFEST} is not one of jprune")
    if (schema := manifest["schema"]) != SCHEMA:
        raise CheckpointError(f"its schema is {schema!r}; this version reads {SCHEMA}")
    if manifest.pop("sha256", None) != _json_digest(manifest):
        raise CheckpointError(f"its {_MANIFEST} does not match its own checksum")
    return manifest


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


def _check_files(path: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"its file {name} is missing")
        if _file_digest(path / name) != digest:
            raise CheckpointError(f"its file {name} does not match its checksum")


def _read_arrays(ocp: Any, path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    types = {name: encoding.stored_type(entry) for name, entry in entries.items()}
    empty = {name: np.empty(s, d) for name, (d, s) in types.items() if 0 in s}
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    args = {name: as_numpy for name in entries if name not in empty}
    if not args:
        return empty
    with ocp.PyTreeCheckpointer() as checkpointer:
        read = checkpointer.restore(
            path / _ARRAYS, args=ocp.args.PyTreeRestore(restore_args=args)
        )
    return read | empty


def _remove_old(directory: Path, step: int, keep: int | None) -> None:
    others = [s for s in all_steps(directory) if s != step]
    for old in others[: 0 if keep is None else max(0, len(others) - keep + 1)]:
        # Renamed first: a kill halfway through must not leave half a step.
        path = directory / _step_name(old)
        os.rename(path, _temporary_path(path))
    _fsync(directory)
    for entry in list(os.scandir(directory)):
        if _TEMPORARY.fullmatch(entry.name):
            shutil.rmtree(entry.path)


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    path = _temporary_path(final)
    path.mkdir()
    try:
        yield path
    except BaseException:  # an interrupt leaves nothing behind either
        shutil.rmtree(path, ignore_errors=True)
        raise


def _temporary_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")


def _step_name(step: int) -> str:
    return f"step_{step:08d}"


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turns whatever is raised into a `CheckpointError` that says what it was about."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, CheckpointError | ValueError)
        kind = "" if ours else f"{type(error).__name__}: "
        raise CheckpointError(f"{what}: {kind}{error}") from error


def _check_single_process() -> None:
    if jax.process_count() > 1:
        raise CheckpointError(
            f"{jax.process_count()} processes run, and states across processes are "
            "not supported yet"
        )


def _listing(names: Sequence[int] | set[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(map(str, sorted(names)[:20])) or "none") + more


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _orbax() -> Any:
    try:
        # Imported here because it takes a second, and no other module needs it.
        import orbax.checkpoint as ocp
    except ImportError as error:
        message = "Checkpoints need Orbax: pip install 'jprune[checkpoint]'"
        raise ImportError(message) from error
    return ocp
