"""How one leaf is stored: any array to a plain array and its description, and back.

A boolean array becomes bits, a typed PRNG key its key data, one-byte floats and
sub-byte integers their raw bytes, a Python number an array without axes; any other
array goes as it is, so that one on many devices is never gathered. The description
says what was made of what, and holds a SHA-256 of the result, or of each of its
boxes where no single process holds it all. `checkpoint` keeps these in its manifest.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import processes

Entry = dict[str, Any]  # the description of a leaf; plain JSON
_PYTHON_NUMBERS = (bool, int, float, complex)
# What Orbax stores bit for bit. It refuses uint4, uint2 and float8_e4m3, so all
# types of one byte that are not NumPy's own go as their bytes.
_AS_IS = {
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}


def describe(leaf: Any) -> Entry:
    """Returns the dtype and shape that a saved leaf and a wanted one must share.

    Args:
      leaf: an array, a `jax.ShapeDtypeStruct` or a Python number.

    Returns:
      The names `dtype` and `shape`.

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
    """Returns a leaf as a plain array, with its description.

    Args:
      leaf: an array or a Python number. Where the leaf is spread over processes,
        every one of them has to call this.

    Returns:
      An array of a NumPy dtype or bfloat16, and the description that `decode`
      needs. It is the leaf itself where that is a JAX array of such a type.

    Raises:
      ValueError: if the leaf is not an array, or one of objects, text or records.

    Example:
      >>> stored, entry = encode(np.array([True, False, True]))
      >>> stored, entry["stored"]
      (array([160], dtype=uint8), 'bits')
    """
    entry = describe(leaf)
    if _is_key(leaf):
        entry["prng"] = jax.random.key_impl(leaf)
        if not isinstance(entry["prng"], str):
            raise ValueError(f"the PRNG {entry['prng']} has no name to find it by")
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
    """Returns the dtype and shape of what was stored.

    Args:
      entry: the description of a leaf.

    Returns:
      The dtype's name and the shape.
    """
    dtype = "uint8" if entry["stored"] in ("bits", "bytes") else entry["stored"]
    return dtype, entry["stored_shape"]


def decode(entry: Entry, stored: np.ndarray, like: Any) -> Any:
    """Returns the leaf that was stored, as what `like` is.

    Args:
      entry: its description.
      stored: what was read.
      like: a leaf with this description. A JAX array or a `jax.ShapeDtypeStruct`
        makes a JAX array, with its sharding if it is committed to one; a NumPy
        array or a number makes one of these.

    Returns:
      The leaf, with the bits and the weak type that it had.

    Raises:
      ValueError: if what was read is not what was stored, or JAX would cast it.

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
    """Returns the one description of a leaf that every process described.

    Args:
      entries: what `encode` returned on each process.

    Returns:
      The description, with the checksums of the boxes of all processes.

    Raises:
      ValueError: if the leaf is not one and the same on all of them.

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
            raise ValueError("it is spread over some of the processes only") from error
        covered = sum(math.prod(_lengths(box)) for box in digests)
        if covered != math.prod(first["stored_shape"]):
            raise ValueError(f"its shards are not all there: {', '.join(digests)}")
        first = {**first, "sha256": digests}
        others = [{**entry, "sha256": digests} for entry in others]
    if any(entry != first for entry in others):
        raise ValueError("it differs between the processes, and no sharding says how")
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
        f"it does not match its checksum: read was {found}, stored had been "
        f"{stored_type(entry)}"
    )


def _on_devices(entry: Entry, value: np.ndarray, like: Any) -> jax.Array:
    # An array that was not committed to its device must not become so.
    sharding: Any = like.sharding if getattr(like, "committed", True) else None
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        # What `jax.eval_shape` says names no devices: `jax.set_mesh` has to.
        sharding = sharding.spec
    array = _put(value, None if "prng" in entry or "weak" in entry else sharding)
    if array.dtype != value.dtype:
        raise ValueError(
            f"JAX would cast {value.dtype} to {array.dtype}; set jax_enable_x64"
        )
    if "prng" in entry:
        array = jax.random.wrap_key_data(array, impl=entry["prng"])
    elif "weak" in entry:
        # A strong type in its stead would promote what it meets, say a bfloat16
        # weight to float32, and the run would go on differently.
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
        return jax.device_put(value, sharding)  # straight to the devices, in parts
    if isinstance(value, jax.Array):  # one of a type that NumPy has no name for
        return jax.jit(lambda x: x, out_shardings=sharding)(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])


def _on_host(leaf: Any) -> np.ndarray:
    """Returns the values of a leaf, and leaves no copy of them in it."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if not processes.is_here(leaf):
        return processes.gathered(leaf)
    if leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
    # A JAX array keeps what `np.asarray` had to copy for as long as it lives.
    device, *others = leaf.sharding.device_set
    is_view = device.platform == "cpu" and not others
    return np.asarray(leaf if is_view else leaf.copy())


def _goes_as_it_is(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or leaf.dtype.name not in _AS_IS:
        return False
    # Orbax takes a JAX array of one process among many for a part of another.
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
    # The bytes in row-major order, little-endian: JAX runs on no other machines.
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
