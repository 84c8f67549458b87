"""How one leaf is stored: any array to a plain array and its description, and back.

A boolean array becomes bits, a typed PRNG key its key data, one-byte floats and
sub-byte integers their raw bytes, a Python number an array without axes. The
description says what was made of what, and holds a SHA-256 of the result.
`checkpoint` keeps these in its manifest.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def encode(leaf: Any) -> tuple[np.ndarray, Entry]:
    """Returns a leaf as a plain array, with its description.

    Args:
      leaf: an array or a Python number.

    Returns:
      An array of a NumPy dtype or bfloat16, and the description that `decode`
      needs.

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
    value = np.asarray(leaf)
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
    return value, entry | {"stored_shape": list(value.shape), "sha256": _digest(value)}


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
    found = (stored.dtype.name, list(stored.shape), _digest(stored))
    if found != (*stored_type(entry), entry["sha256"]):
        raise ValueError(
            f"it does not match its checksum: read was {found}, stored had been "
            f"{(*stored_type(entry), entry['sha256'])}"
        )
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


def _on_devices(entry: Entry, value: np.ndarray, like: Any) -> jax.Array:
    array = jax.device_put(value)
    if array.dtype != value.dtype:
        raise ValueError(
            f"JAX would cast {value.dtype} to {array.dtype}; set jax_enable_x64"
        )
    if "prng" in entry:
        array = jax.random.wrap_key_data(array, impl=entry["prng"])
    elif entry.get("weak"):
        # A strong type in its stead would promote what it meets, say a bfloat16
        # weight to float32, and the run would go on differently.
        array = jnp.full(array.shape, value.dtype.type(0).item()).at[...].set(array)
    # An array that was not committed to its device must not become so.
    sharding: Any = like.sharding if getattr(like, "committed", True) else None
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        # What `jax.eval_shape` says names no devices: `jax.set_mesh` has to.
        sharding = sharding.spec
    return array if sharding is None else jax.device_put(array, sharding)


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _digest(value: np.ndarray) -> str:
    # The bytes in row-major order, little-endian: JAX runs on no other machines.
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()
