"""The manifest of a checkpoint: a list of its files with their checksums.

A manifest is JSON. It holds a SHA-256 of itself and of every other file. Errors are
`ValueError`s that name the file; `checkpoint` adds the path of the checkpoint.
"""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from jprune._core import files as files_lib

SCHEMA = 1
NAME = "manifest.json"
LARGEST = 2**28  # bytes of a manifest: those of some hundred thousand leaves
_VERSIONS = ("jprune", "jax", "numpy", "orbax-checkpoint")


def write(path: Path, body: dict[str, Any]) -> None:
    """Writes the manifest of all files in a directory, and flushes it to the disk.

    Args:
      path: directory.
      body: further entries of the manifest; plain JSON.

    Raises:
      ValueError: if the manifest has more than 2^28 bytes, which `read` refuses.
    """
    manifest = {
        "format": "jprune checkpoint",
        "schema": SCHEMA,
        "versions": {name: version(name) for name in _VERSIONS},
        **body,
        "files": {name: _file_digest(path / name) for name in files_of(path)},
    }
    text = json.dumps({"sha256": _json_digest(manifest), **manifest}, indent=1)
    if len(text) > LARGEST:  # ASCII
        raise ValueError(f"its {NAME} would have {len(text)} bytes, over {LARGEST}")
    (path / NAME).write_text(text, encoding="utf-8")
    flush(path / NAME)
    flush(path)


def read(path: Path) -> dict[str, Any]:
    """Reads the manifest of a directory.

    Args:
      path: directory.

    Returns:
      The `body` that `write` was given, with `files`, `versions` and `schema`.

    Raises:
      ValueError: if the manifest is missing, not a regular file, larger than 2^28
        bytes, damaged, not written by jprune, of another schema, or if it names files
        outside of the directory.
    """
    try:
        data = files_lib.read_regular(path / NAME, LARGEST)
    except FileNotFoundError as error:
        raise ValueError(f"it has no {NAME}; did jprune write it?") from error
    try:
        manifest = json.loads(data.decode())
    except ValueError as error:
        raise ValueError(f"its {NAME} is damaged: {error}") from error
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise ValueError(f"its {NAME} was not written by jprune")
    check_schema(manifest["schema"], SCHEMA)
    if manifest.pop("sha256", None) != _json_digest(manifest):
        raise ValueError(f"its {NAME} does not match its own checksum")
    for name in manifest["files"]:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):  # "/a" has an empty part
            raise ValueError(
                f"its {NAME} names the file {name!r}, which is not a path in it"
            )
    return manifest


def check_schema(found: Any, known: int) -> None:
    """Raises unless a file has a schema that this version reads.

    Args:
      found: schema of the file; any JSON.
      known: schema that this version reads.

    Raises:
      ValueError: if it is another one, or not an integer.
    """
    if type(found) is not int or found != known:  # True is equal to 1
        raise ValueError(f"its schema is {found!r}; this version reads {known}")


def check_files(path: Path, files: dict[str, str], folder: str) -> None:
    """Checks files against their checksums.

    Args:
      path: directory.
      files: maps names to checksums, from the manifest.
      folder: folder that may hold no other files, because its reader would take
        them for its own.

    Raises:
      ValueError: if a file is missing, damaged, not a regular file, or was not saved
        with the others; names the first one.
    """
    for name, digest in files.items():
        try:
            found = _file_digest(path / name)
        except FileNotFoundError as error:
            raise ValueError(f"its file {name} is missing") from error
        if found != digest:
            raise ValueError(f"its file {name} does not match its checksum")
    for name in files_of(path):
        if name.startswith(f"{folder}/") and name not in files:
            raise ValueError(f"its file {name} is foreign: not part of what was saved")


def files_of(path: Path) -> list[str]:
    """Returns the names of all files in a directory and its subdirectories.

    Args:
      path: directory.

    Returns:
      Paths relative to the directory, joined by `/`, sorted.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = Path(directory, "a").write_text("")
      ...     files_of(Path(directory))
      ['a']
    """
    return sorted(
        Path(parent, name).relative_to(path).as_posix()
        for parent, _, names in os.walk(path, onerror=_stop)
        for name in names
    )


def flush_all(path: Path) -> None:
    """Flushes a directory with all its files and subdirectories to the disk.

    Args:
      path: directory.
    """
    for parent, _, names in os.walk(path, onerror=_stop):
        for name in (*names, "."):
            flush(Path(parent) / name)


def flush(path: Path) -> None:
    """Flushes a file or a directory to the disk.

    Args:
      path: file or directory.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stop(error: OSError) -> None:
    raise error  # by default `os.walk` skips what it cannot read


def _file_digest(path: Path) -> str:
    with files_lib.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def version(name: str) -> str:
    """Returns the version of an installed distribution.

    Args:
      name: name of the distribution.

    Returns:
      The version, or "not installed".

    Example:
      >>> version("no-such-thing")
      'not installed'
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
