"""Equality to the bit, of arrays, of trees and of directories."""

import hashlib
import math

import jax
import ml_dtypes
import numpy as np

NUMPY_TYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 "
NUMPY_TYPES += "float64 complex64 complex128"
ML_TYPES = "bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3 float8_e8m0fnu int4 uint4 "
ML_TYPES += "int2 uint2 float4_e2m1fn"
DTYPES = [np.dtype(name) for name in NUMPY_TYPES.split()]
DTYPES += [np.dtype(getattr(ml_dtypes, name)) for name in ML_TYPES.split()]
BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2, "bool": 1}


def random_bits(rng, dtype, shape):
    """Any bits that are a value: all NaNs, infinities and subnormals among them."""
    size = math.prod(shape) * dtype.itemsize
    raw = rng.integers(0, 2 ** BITS.get(dtype.name, 8), size, dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


def bits(leaf):
    """A leaf's type, and its bits: what equality of floats does not see."""
    if type(leaf) in (bool, int, float, complex):
        return type(leaf), np.asarray(leaf).tobytes()
    weak = getattr(leaf, "weak_type", None)
    described = (leaf.dtype, leaf.shape, weak, isinstance(leaf, jax.Array))
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return *described, np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert bits(a) == bits(b), path


def files_of(directory):
    """What must not change when nothing may be touched."""
    return {
        path.relative_to(directory): path.is_file()
        and (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }


def assert_rows_close(found, expected, tolerance):
    """Rows of floats agree, by the scale of each row.

    Sums of other lengths round otherwise on each kind of processor, and by the size
    of what is summed: an entry near 0 in a row of tens is not good to its own digits.
    """
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    scale = np.abs(expected).max(-1, keepdims=True) + np.zeros_like(expected)
    np.testing.assert_array_less(np.abs(found - expected), tolerance * scale + 1e-30)
