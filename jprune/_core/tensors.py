"""Arrays as tensors of a safetensors file, exact to the bit.

safetensors has no complex numbers, and other readers would cast types that NumPy lacks:
these arrays are stored as their bytes, and the entry of each array says which.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import encoding

# Types of all versions of safetensors that NumPy, with JAX's types, has as well.
STORED = {
    *("bool", "uint8", "int8", "uint16", "int16", "float16", "bfloat16"),
    *("uint32", "int32", "float32", "uint64", "int64", "float64"),
}


def library() -> Any:
    """Imports `safetensors`, with its module `numpy`.

    Returns:
      The package.

    Raises:
      ImportError: if it is not installed; says how to install it.
    """
    try:
        # Imported here because it is optional.
        import safetensors.numpy
    except ImportError as error:
        message = "Export needs safetensors: pip install 'jprune[export]'"
        raise ImportError(message) from error
    return safetensors


def check_name(name: str) -> None:
    """Raises if a tensor cannot have a name.

    Args:
      name: path of a leaf.

    Raises:
      ValueError: if safetensors reserves it.
    """
    if name == "__metadata__":
        raise ValueError("safetensors reserves this name; rename the leaf")


def encode(leaf: Any) -> tuple[np.ndarray, encoding.Entry]:
    """Encodes an array as a tensor and its entry.

    Args:
      leaf: array or Python number.

    Returns:
      The tensor, in row-major order on the host, and the entry that `decode` needs.

    Raises:
      ValueError: if `encoding.encode` cannot encode the leaf.

    Example:
      >>> tensor, entry = encode(np.ones(2, np.complex64))
      >>> tensor.dtype, tensor.size, entry["stored"]
      (dtype('uint8'), 16, 'complex64')
    """
    stored, entry = encoding.encode(leaf)
    stored = np.asarray(stored, order="C")
    raw = stored.dtype.name not in STORED
    return (stored.reshape(-1).view(np.uint8) if raw else stored), entry


def struct(entry: encoding.Entry) -> jax.ShapeDtypeStruct:
    """Returns the type that an encoded array has in JAX.

    Args:
      entry: entry of the array, from `encode`.

    Returns:
      Its shape and dtype.

    Example:
      >>> struct(encode(np.ones(2, bool))[1])
      ShapeDtypeStruct(shape=(2,), dtype=bool)
    """
    if "prng" in entry:
        dtype = jax.eval_shape(lambda: jax.random.key(0, impl=entry["prng"])).dtype
    else:
        dtype = jnp.dtype(entry["dtype"])
    return jax.ShapeDtypeStruct(entry["shape"], dtype)


def decode(entry: encoding.Entry, data: Any, like: Any) -> Any:
    """Decodes a tensor.

    Args:
      entry: entry of the array, from `encode`.
      data: bytes of the tensor.
      like: as in `encoding.decode`; `struct(entry)` for an array on the default device.

    Returns:
      The array.

    Raises:
      ValueError: if the array does not match its checksum, or JAX would cast it.

    Example:
      >>> tensor, entry = encode(np.ones(2, bool))
      >>> decode(entry, tensor.tobytes(), struct(entry))
      Array([ True,  True], dtype=bool)
    """
    dtype, shape = encoding.stored_type(entry)
    value = np.frombuffer(data, jnp.dtype(dtype)).reshape(shape)
    return encoding.decode(entry, value, like)
