"""Pruned weights in one safetensors file: packed and verified, or dense.

    save_packed, load_packed    a tree of packed weights, exact to the bit
    save_dense                  masked weights under their paths, for any other tool

safetensors verifies only that the sizes in a file are consistent: a flipped bit among
the values loads without an error. So the metadata of a packed file lists the path,
format, shape and dtype of each weight, and a SHA-256 of each array and of the list
itself. All of it is checked before anything is returned. Arrays are encoded as in
checkpoints: one-byte types that NumPy lacks are stored as bytes, so that no reader
casts them.

A file is written under a temporary name, flushed to the disk, and renamed, even if the
process is interrupted meanwhile. One process writes, and needs to hold whole arrays.
"""

import dataclasses
import functools
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base, encoding, files, manifest, tensors
from jprune.checkpoint import CheckpointError
from jprune.formats import _consistency, _packed

SCHEMA = 1
_VERSIONS = ("jprune", "jax", "safetensors")
_TEXT, _DIGEST = "jprune", "jprune.sha256"  # in the metadata
_KINDS: dict[str, Callable[..., _packed.Packed]] = {
    kind.__name__: kind
    for kind in (_packed.Dense, _packed.BitMask, _packed.NOfM, _packed.Blocks)
}
_EXCHANGED = {*tensors.STORED, "float8_e4m3fn", "float8_e5m2"}


def save_packed(
    path: str | os.PathLike[str], packed: Any, *, overwrite: bool = False
) -> Path:
    """Writes a tree of packed weights to one safetensors file.

    Args:
      path: file; its directory has to exist.
      packed: tree of packed weights, as from `pack_tree`.
      overwrite: replace an existing file, in one step: at any time either the old or
        the new file is there.

    Returns:
      The path of the file.

    Raises:
      CheckpointError: if the file exists and `overwrite` is False, the path is a URL, a
        leaf is not a packed weight, two paths are equal or differ only in `.` for `/`,
        or writing fails. An existing file is not changed.
      ImportError: if safetensors is not installed.

    Example:
      >>> from jprune import formats
      >>> import tempfile, jax.numpy as jnp
      >>> weight, mask = jnp.arange(3.0), jnp.array([True, False, True])
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = Path(directory, "model.safetensors")
      ...     _ = save_packed(path, {"w": formats.pack_bits(weight, mask)})
      ...     load_packed(path)["w"].unpack()[0]
      Array([0., 0., 2.], dtype=float32)
    """
    numpy_files = tensors.library().numpy
    final = files.local_path(path)
    with files.naming(f"cannot save {final}"):
        _check_free(final, overwrite)
        arrays, leaves = {}, []
        for name, leaf in _named(packed, _packed.is_packed).items():
            with files.naming(f"leaf {name!r}"):
                fields, entry = _encode(leaf)
            arrays |= {f"{name}/{field}": value for field, value in fields.items()}
            leaves.append({"path": name, **entry})
        text = json.dumps(
            {
                "schema": SCHEMA,
                "versions": {name: manifest.version(name) for name in _VERSIONS},
                "leaves": leaves,
            }
        )
        metadata = {_TEXT: text, _DIGEST: _sha256(text.encode())}
        save_to = functools.partial(numpy_files.save_file, arrays, metadata=metadata)
        files.uninterrupted(lambda: _place(final, overwrite, save_to))
    return final


def load_packed(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Loads the packed weights of a file, and verifies them.

    Args:
      path: file that `save_packed` wrote.
      like: params with the structure of the saved tree, or the result of
        `jax.eval_shape` for them; None for a dict.

    Returns:
      The packed weights, with the structure of `like`, or a dict from paths to packed
      weights. Uncommitted, on the default device.

    Raises:
      CheckpointError: if there is no such file, it is not a regular file, it is
        truncated or damaged, its parts contradict each other, `save_packed` did not
        write it, a later version did, or its paths, shapes or dtypes differ from those
        of `like`.
      ImportError: if safetensors is not installed.

    Example:
      >>> from jprune import formats
      >>> import tempfile, jax.numpy as jnp
      >>> params, packed = jnp.ones((2, 2)), formats.pack_dense(jnp.ones((2, 2)), True)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = save_packed(Path(directory, "model"), {"a": {"w": packed}})
      ...     load_packed(path, like={"a": {"w": params}})["a"]["w"].values.tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    safetensors = tensors.library()
    path = files.local_path(path)
    with files.naming(f"cannot load {path}"):
        data = files.read_regular(path)
        try:
            stored = dict(safetensors.deserialize(data))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"damaged, or not safetensors: {error}") from error
        entries = {leaf["path"]: leaf for leaf in _read_manifest(data)["leaves"]}
        del data  # `deserialize` copied it
        listed = {
            f"{name}/{field}"
            for name, leaf in entries.items()
            for field in leaf["fields"]
        }
        if stored.keys() != listed:
            raise CheckpointError(
                f"arrays that its manifest lacks: {sorted(stored.keys() - listed)}; "
                f"arrays that it lacks: {sorted(listed - stored.keys())}"
            )
        wanted = None if like is None else _named(like)
        if wanted is not None:
            _check_like(entries, wanted)
        found = {}
        for name, entry in entries.items():
            with files.naming(f"leaf {name!r}"):
                views = {f: stored.pop(f"{name}/{f}") for f in entry["fields"]}
                found[name] = _decode(entry, views)
    if wanted is None:
        return found
    return jax.tree.structure(like).unflatten(found[name] for name in wanted)


def save_dense(
    path: str | os.PathLike[str],
    params: base.Params,
    masks: base.Masks | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes masked weights to one safetensors file that any tool can load.

    The file holds one tensor per leaf, under its path, with its shape and dtype, and no
    checksums.

    Args:
      path: file; its directory has to exist.
      params: any pytree of arrays.
      masks: masks of the params; None if the params are masked already.
      overwrite: replace an existing file, in one step.

    Returns:
      The path of the file.

    Raises:
      CheckpointError: as `save_packed`; or if safetensors has no name for the dtype of
        a leaf.
      PruningError: if the masks do not fit the params.
      ImportError: if safetensors is not installed.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from safetensors.numpy import load_file
      >>> params, masks = {"a": {"w": jnp.ones(2)}}, {"a": {"w": jnp.arange(2) > 0}}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     load_file(save_dense(Path(directory, "model"), params, masks))
      {'a/w': array([0., 1.], dtype=float32)}
    """
    numpy_files = tensors.library().numpy
    final = files.local_path(path)
    if masks is not None:
        params = masks_lib.apply(params, masks)
    with files.naming(f"cannot save {final}"):
        _check_free(final, overwrite)
        arrays = {}
        for name, leaf in _named(params).items():
            with files.naming(f"leaf {name!r}"):
                arrays[name] = _exchangeable(name, leaf)
        save_to = functools.partial(numpy_files.save_file, arrays)
        files.uninterrupted(lambda: _place(final, overwrite, save_to))
    return final


# ---- leaves ----


def _named(packed: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    return files.named_leaves(packed, tree.leaf_path, is_leaf)


def _encode(leaf: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not _packed.is_packed(leaf):
        raise ValueError(f"it is a {type(leaf).__name__}, not a packed weight")
    arrays, entries, static = {}, {}, {}
    for field in dataclasses.fields(leaf):
        value = getattr(leaf, field.name)
        if field.metadata.get("static"):
            static[field.name] = value
            continue
        arrays[field.name], entries[field.name] = tensors.encode(value)
    described = {"shape": list(leaf.shape), "dtype": leaf.values.dtype.name}
    kind = type(leaf).__name__
    return arrays, {**described, "format": kind, "static": static, "fields": entries}


def _decode(entry: dict[str, Any], views: dict[str, Any]) -> _packed.Packed:
    arrays = {}
    for field, array in entry["fields"].items():
        with files.naming(f"array {field!r}"):
            arrays[field] = tensors.decode(
                array, views[field]["data"], tensors.struct(array)
            )
    static = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry["static"].items()
    }
    packed = _KINDS[entry["format"]](**arrays, **static)
    _consistency.check(packed, entry["shape"], entry["dtype"])
    return packed


def _exchangeable(name: str, leaf: Any) -> np.ndarray:
    tensors.check_name(name)
    dtype = encoding.describe(leaf)["dtype"]
    if dtype not in _EXCHANGED:
        raise ValueError(f"safetensors has no name for the type {dtype}")
    return np.asarray(leaf, order="C")


# ---- the manifest ----


def _read_manifest(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if not {_TEXT, _DIGEST} <= metadata.keys():
        raise CheckpointError("it has no manifest; did save_packed write it?")
    text = metadata[_TEXT]
    try:
        found = json.loads(text)
        schema = found["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"its manifest is damaged: {error!r}") from error
    manifest.check_schema(schema, SCHEMA)
    if _sha256(text.encode()) != metadata[_DIGEST]:
        raise CheckpointError("its manifest does not match its own checksum")
    return found


def _check_like(entries: dict[str, Any], wanted: dict[str, Any]) -> None:
    if entries.keys() != wanted.keys():
        raise CheckpointError(
            f"leaves of `like` that it lacks: {sorted(wanted.keys() - entries)}; "
            f"leaves that `like` lacks: {sorted(entries.keys() - wanted)}"
        )
    for name, leaf in wanted.items():
        with files.naming(f"leaf {name!r}"):
            expected = encoding.describe(leaf)
        found = {key: entries[name][key] for key in expected}
        if found != expected:
            raise CheckpointError(
                f"leaf {name!r} is {found}, but in `like` it is {expected}"
            )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- files ----


def _check_free(final: Path, overwrite: bool) -> None:
    if os.path.lexists(final) and not overwrite:
        raise CheckpointError("it exists; pass overwrite=True to replace it")


def _place(final: Path, overwrite: bool, save_to: Callable[[Path], None]) -> None:
    """Saves to a temporary file, and renames it."""
    temporary = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")
    try:
        temporary.touch(exist_ok=False)
        kept = final if overwrite and final.is_file() else temporary
        mode = stat.S_IMODE(kept.stat().st_mode)
        save_to(temporary)
        # safetensors creates files that only their owner can read.
        temporary.chmod(mode)
        manifest.flush(temporary)
        if overwrite:
            os.replace(temporary, final)
        else:
            _put(temporary, final)
        manifest.flush(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _put(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)  # fails if the file exists by now
    except FileExistsError as error:
        raise CheckpointError("another process created it meanwhile") from error
    except OSError:  # a file system without links
        _check_free(final, overwrite=False)
        os.replace(temporary, final)
