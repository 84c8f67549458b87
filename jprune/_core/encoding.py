"""Encoding of one leaf for storage: any array to a plain array and an entry, and back.

Boolean arrays are stored as bits, typed PRNG keys as their key data, one-byte floats
and sub-byte integers as raw bytes, Python numbers as arrays without axes. All other
arrays are stored unchanged, so an array on many devices is not gathered. The entry
describes the encoding, and holds a SHA-256 of the stored array, or one for each shard
where no single process holds the whole array. Checkpoints keep the entries in their
manifest.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import processes

Entry = dict[str, Any]  # describes a stored leaf; plain JSON
_PYTHON_NUMBERS = (bool, int, float, complex)
# The types that Orbax stores bit for bit. It refuses uint4, uint2 and float8_e4m3, so
# all one-byte types that NumPy lacks are stored as bytes.
_AS_IS = {
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}


def describe(leaf: Any) -> Entry:
    """Returns the dtype and shape of a leaf, in the form that entries have.

    Args:
      leaf: array, `jax.ShapeDtypeStruct` or Python number.

    Returns:
      A dict with the keys `dtype` and `shape`.

    Raises:
      ValueError: if the leaf is none of these.

    Example:
      >>> describe(np.zeros((2, 3), np.float16))
      {'dtype': 'float16', 'shape': [2, 3]}
      >>> describe(0.5)
      {'dtype': 'Python float', 'shape': []}
    """
    if type(leaf) in _PYTHON_NUMBERS:
        return {"dtype": f"Python {type(leaf).__name__}", "shape": []}
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise ValueError(f"it is a {type(leaf).__name__}, not an array")
    return {"dtype": leaf.dtype.name, "shape": list(leaf.shape)}


def encode(leaf: Any) -> tuple[np.ndarray | jax.Array, Entry]:
    """Encodes a leaf as a plain array and its entry.

    Args:
      leaf: array or Python number. For an array that is sharded over processes,
        every process has to call this function.

    Returns:
      An array of a NumPy dtype or bfloat16, and the entry that `decode` needs. A JAX
      array of such a type is returned unchanged.

    Raises:
      ValueError: if the leaf is not an array, or an array of objects, strings or
        records.

    Example:
      >>> stored, entry = encode(np.array([True, False, True]))
      >>> stored, entry["stored"]
      (array([160], dtype=uint8), 'bits')
    """
    entry = describe(leaf)
    if _is_key(leaf):
        entry["prng"] = jax.random.key_impl(leaf)
        if not isinstance(entry["prng"], str):
            raise ValueError(f"its PRNG, {entry['prng']}, is not registered by a name")
        leaf = jax.random.key_data(leaf)
    elif getattr(leaf, "weak_type", False):
        entry["weak"] = True
    value: Any = leaf if _goes_as_it_is(leaf) else _on_host(leaf)
    if value.dtype.byteorder == ">":
        value = value.astype(value.dtype.newbyteorder("="))
    if value.dtype == bool:
        value, entry["stored"] = np.packbits(value), "bits"
    elif value.dtype.name in _AS_IS:
        entry["stored"] = value.dtype.name
    elif value.dtype.isbuiltin == 2 and value.dtype.itemsize == 1:
        value, entry["stored"] = value.view(np.uint8), "bytes"
    else:
        raise ValueError(f"arrays of {value.dtype} cannot be stored")
    return value, entry | {"stored_shape": list(value.shape), "sha256": _digests(value)}


def stored_type(entry: Entry) -> tuple[str, list[int]]:
    """Returns the dtype and shape of the stored array.

    Args:
      entry: entry of a leaf, from `encode`.

    Returns:
      The name of the dtype, and the shape.
    """
    dtype = "uint8" if entry["stored"] in ("bits", "bytes") else entry["stored"]
    return dtype, entry["stored_shape"]


def decode(entry: Entry, stored: np.ndarray, like: Any) -> Any:
    """Decodes a stored leaf to the kind of leaf that `like` is.

    Args:
      entry: entry of the leaf, from `encode`.
      stored: the array that was read.
      like: leaf with the same dtype and shape. For a JAX array or a
        `jax.ShapeDtypeStruct` the result is a JAX array, with the sharding that
        `like` is committed to, if any; for a NumPy array or a number it is a NumPy
        array or a number.

    Returns:
      The leaf, with the bits and the weak type that it had.

    Raises:
      ValueError: if the array does not match its checksum, or JAX would cast it.

    Example:
      >>> decode(encode(np.array([True, False]))[1], np.uint8([128]), np.zeros(2, bool))
      array([ True, False])
    """
    _check(entry, stored)
    if entry["stored"] == "bits":
        size = int(np.prod(entry["shape"], dtype=np.int64))
        stored = np.unpackbits(stored, count=size).view(bool).reshape(entry["shape"])
    elif entry["stored"] == "bytes":
        stored = stored.view(like.dtype)
    if type(like) in _PYTHON_NUMBERS:
        return stored.item()
    if isinstance(like, np.ndarray | np.generic):
        return stored if isinstance(like, np.ndarray) else stored[()]
    return _on_devices(entry, stored, like)


def join(entries: Sequence[Entry]) -> Entry:
    """Joins the entries of one leaf from all processes.

    Args:
      entries: the entry that `encode` returned on each process.

    Returns:
      The common entry, with the checksums of the shards of all processes.

    Raises:
      ValueError: if the leaf differs between processes, or shards are missing.

    Example:
      >>> boxes = [{"0:2": "ab"}, {"2:3": "cd"}]
      >>> join([{"stored_shape": [3], "sha256": box} for box in boxes])
      {'stored_shape': [3], 'sha256': {'0:2': 'ab', '2:3': 'cd'}}
    """
    first, *others = entries
    if isinstance(first["sha256"], dict):
        try:
            digests = {k: v for entry in entries for k, v in entry["sha256"].items()}
        except AttributeError as error:
            raise ValueError("only some of the processes hold shards of it") from error
        covered = sum(math.prod(_lengths(box)) for box in digests)
        if covered != math.prod(first["stored_shape"]):
            raise ValueError(f"shards are missing; found: {', '.join(digests)}")
        first = {**first, "sha256": digests}
        others = [{**entry, "sha256": digests} for entry in others]
    if any(entry != first for entry in others):
        raise ValueError("it differs between the processes, but is not sharded")
    return first


def _check(entry: Entry, stored: np.ndarray) -> None:
    found = (stored.dtype.name, list(stored.shape))
    if found == stored_type(entry):
        digests = entry["sha256"]
        if not isinstance(digests, dict):
            digests = {_box((slice(None),) * stored.ndim, stored.shape): digests}
        wrong = [box for box in digests if _digest(stored[_index(box)]) != digests[box]]
        if not wrong:
            return
        found = (*found, f"other values at [{', '.join(wrong)}]")
    raise ValueError(
        f"it does not match its checksum: found {found}, but stored was "
        f"{stored_type(entry)}"
    )


def _on_devices(entry: Entry, value: np.ndarray, like: Any) -> jax.Array:
    # An uncommitted array has to stay uncommitted.
    sharding: Any = like.sharding if getattr(like, "committed", True) else None
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        # A result of `jax.eval_shape` names no devices; `jax.set_mesh` does.
        sharding = sharding.spec
    array = _put(value, None if "prng" in entry or "weak" in entry else sharding)
    if array.dtype != value.dtype:
        raise ValueError(
            f"JAX would cast {value.dtype} to {array.dtype}; set jax_enable_x64"
        )
    if "prng" in entry:
        array = jax.random.wrap_key_data(array, impl=entry["prng"])
    elif "weak" in entry:
        # A strong type would promote other operands, for example a bfloat16 weight to
        # float32, and the restored run would differ.
        array = jnp.full(array.shape, value.dtype.type(0).item()).at[...].set(array)
    else:
        return array
    return _put(array, sharding)


def _put(value: Any, sharding: Any) -> jax.Array:
    if sharding is None:
        return jax.device_put(value)
    if (
        isinstance(sharding, jax.sharding.PartitionSpec)
        or sharding.is_fully_addressable
    ):
        return jax.device_put(value, sharding)  # shard by shard
    if isinstance(value, jax.Array):  # a PRNG key or a weak type, unknown to NumPy
        return jax.jit(lambda x: x, out_shardings=sharding)(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])


def _on_host(leaf: Any) -> np.ndarray:
    """Returns the values of a leaf without caching a copy in the leaf."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if not processes.is_here(leaf):
        return processes.gathered(leaf)
    if leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
    # A JAX array caches the copy that `np.asarray` makes, for as long as it lives.
    device, *others = leaf.sharding.device_set
    is_view = device.platform == "cpu" and not others
    return np.asarray(leaf if is_view else leaf.copy())


def _goes_as_it_is(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or leaf.dtype.name not in _AS_IS:
        return False
    # Orbax treats a JAX array of one process as a shard of an array of all processes.
    return jax.process_count() == 1 or not leaf.is_fully_addressable


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _digests(value: np.ndarray | jax.Array) -> str | dict[str, str]:
    if not isinstance(value, jax.Array) or processes.is_here(value):
        return _digest(_on_host(value))
    return {
        _box(shard.index, value.shape): _digest(_on_host(shard.data))
        for shard in value.addressable_shards
        if shard.replica_id == 0
    }


def _digest(value: np.ndarray) -> str:
    # Bytes in row-major order, little-endian: JAX runs on no big-endian machines.
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    ranges = (part.indices(n) for part, n in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop, _ in ranges)


def _index(box: str) -> tuple[slice, ...]:
    bounds = (part.split(":") for part in box.split(",") if part)
    return tuple(slice(int(start), int(stop)) for start, stop in bounds)


def _lengths(box: str) -> list[int]:
    return [part.stop - part.start for part in _index(box)]
