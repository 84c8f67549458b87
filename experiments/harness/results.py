"""The JSON record that every study and benchmark writes."""

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments import ExperimentError

# Required keys of a record, with their types.
RECORD: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "title": str,
    "date": str,
    "seconds": float,
    "seeds": list,
    "settings": dict,
    "versions": dict,
    "device": dict,
    "figures": dict,
    "tables": dict,
    "claims": list,
}
CLAIM: dict[str, type | tuple[type, ...]] = {
    "claim": str,
    "source": str,
    "published": (int, float, type(None)),
    "target": str,
    "ours": (int, float),
    "spread": (int, float, type(None)),
    "holds": bool,
}
TABLE: dict[str, type | tuple[type, ...]] = {
    "columns": (list, tuple),
    "rows": (list, tuple),
    "caption": str,
}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the figures depend on."""
    import jprune

    packages = ("jax", "jaxlib", "optax", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found, "jprune": jprune.__version__}


def device() -> dict[str, Any]:
    """Returns platform, kind and number of the devices, and the number of CPU cores."""
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "cpu_cores": os.cpu_count(),
    }


def now() -> str:
    """Returns the current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def prepare(directory: Path) -> None:
    """Checks, before a long run, that results can be written to the directory.

    Raises:
      ExperimentError: the directory cannot be created or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ExperimentError(
            f"cannot write results to {directory}: {error.strerror}"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, which replaces `path` if the block succeeds."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(path.stat().st_mode if path.exists() else 0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a record atomically: readers see the old file or the new one.

    Raises:
      ValueError: the record lacks a key, or has a value that JSON cannot represent,
        such as NaN.
    """
    complaint = complaint_about(record)
    if complaint:
        raise ValueError(f"record for {path.name}: {complaint}")
    text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Reads and validates a record.

    Raises:
      ExperimentError: the file is missing, is not JSON or is not a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExperimentError(f"results file {path} is missing") from error
    except (OSError, ValueError) as error:
        raise ExperimentError(f"results file {path} is broken: {error}") from error
    complaint = complaint_about(record)
    if complaint:
        raise ExperimentError(f"results file {path} is broken: {complaint}")
    return record


def read_all(directory: Path) -> list[dict[str, Any]]:
    """Returns all records of a directory, sorted by file name."""
    if not directory.is_dir():
        raise ExperimentError(f"results directory {directory} is not a directory")
    return [read(path) for path in sorted(directory.glob("*.json"))]


def complaint_about(record: Any) -> str | None:
    """Returns a description of what is wrong with a record, or None."""
    complaint = _mismatch(record, RECORD, "the record")
    if complaint:
        return complaint
    for i, claim in enumerate(record["claims"]):
        complaint = complaint or _mismatch(claim, CLAIM, f"claim {i}")
    for name, table in record["tables"].items():
        complaint = complaint or _mismatch(table, TABLE, f"table {name!r}")
    return complaint


def _mismatch(value: Any, schema: dict[str, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where} is not an object"
    for key, kind in schema.items():
        if key not in value:
            return f"{where} lacks {key!r}"
        if not isinstance(value[key], kind):
            return f"{where} has a {type(value[key]).__name__} for {key!r}"
    return None
