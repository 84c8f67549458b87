"""The table of contents of a checkpoint: written, read, and held against the files.

It is JSON, and holds a SHA-256 of itself and of every file beside it. Errors are
`ValueError`s that name the file; `checkpoint` says of which checkpoint.
"""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
NAME = "manifest.json"
_VERSIONS = ("jprune", "jax", "numpy", "orbax-checkpoint")


def write(path: Path, body: dict[str, Any]) -> None:
    """Writes the manifest of all files in a directory, and flushes it to the disk.

    Args:
      path: the directory.
      body: what else to say; plain JSON.
    """
    manifest = {
        "format": "jprune checkpoint",
        "schema": SCHEMA,
        "versions": {name: _version(name) for name in _VERSIONS},
        **body,
        "files": {name: _file_digest(path / name) for name in files_of(path)},
    }
    text = json.dumps({"sha256": _json_digest(manifest), **manifest}, indent=1)
    (path / NAME).write_text(text, encoding="utf-8")
    flush(path / NAME)
    flush(path)


def read(path: Path) -> dict[str, Any]:
    """Returns the manifest of a directory.

    Args:
      path: the directory.

    Returns:
      What `write` was given, with `files`, `versions` and `schema`.

    Raises:
      ValueError: if there is none, or it is damaged, foreign or of another schema.
    """
    try:
        manifest = json.loads((path / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"it has no {NAME}; did jprune write it?") from error
    except ValueError as error:
        raise ValueError(f"its {NAME} is damaged: {error}") from error
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise ValueError(f"its {NAME} is not one of jprune")
    if (schema := manifest["schema"]) != SCHEMA:
        raise ValueError(f"its schema is {schema!r}; this version reads {SCHEMA}")
    if manifest.pop("sha256", None) != _json_digest(manifest):
        raise ValueError(f"its {NAME} does not match its own checksum")
    return manifest


def check_files(path: Path, files: dict[str, str], folder: str) -> None:
    """Holds files against their checksums.

    Args:
      path: the directory.
      files: name -> checksum, from the manifest.
      folder: where nothing else may lie: whoever reads it would take it for theirs.

    Raises:
      ValueError: naming the first file that is missing, damaged or foreign.
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
            raise ValueError(f"its file {name} is foreign: it was not saved with it")


def files_of(path: Path) -> list[str]:
    """Returns the names of the files in a directory and below it.

    Args:
      path: the directory.

    Returns:
      Their paths relative to it, joined by `/`.

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
    """Has the disk hold all files and directories of a directory, and itself.

    Args:
      path: the directory.
    """
    for parent, _, names in os.walk(path, onerror=_stop):
        for name in (*names, "."):
            flush(Path(parent) / name)


def flush(path: Path) -> None:
    """Has the disk hold what was written to a file or a directory.

    Args:
      path: the file or directory.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stop(error: OSError) -> None:
    raise error  # `os.walk` would pass over what it cannot read


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
