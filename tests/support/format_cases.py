"""What the tests of packed weights share: types, masks, models and the oracle."""

import math

import jax.numpy as jnp
import numpy as np

from jprune import formats
from support.exact import DTYPES

WIDE = {"int64", "uint64", "float64", "complex128"}  # what JAX casts unless told
NARROW = {"int2", "uint2"}  # what JAX 0.7 cannot move
TYPES = [dtype for dtype in DTYPES if dtype.name not in WIDE | NARROW]


def zeroed(w, m):
    """The oracle: bytes that are zero where the mask is False."""
    raw = np.array(w, order="C").reshape(-1).view(np.uint8)
    raw = raw.reshape(w.size, w.dtype.itemsize)
    raw[~np.broadcast_to(m, w.shape).ravel()] = 0
    return raw.reshape(-1).view(w.dtype).reshape(w.shape)


def random_mask(rng, shape, density):
    """Of that many True, so that few shapes are compiled."""
    size = math.prod(shape)
    return rng.permutation(np.arange(size) < density * size).reshape(shape)


def model():
    """Leaves for every format, and some that fit none."""
    rng = np.random.default_rng(0)
    params = {
        "pattern": {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16)},
        "blocks": {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)},
        "bits": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32)},
        "channels": {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float16)},
        "norm": {"scale": jnp.ones(8), "steps": jnp.asarray(3, jnp.int32)},
        "empty": jnp.zeros((0, 4)),
        "lost": jnp.ones(100),
    }
    kept = rng.random((4, 4, 8)).argsort(1).argsort(1) < 1
    masks = {
        "pattern": {"kernel": jnp.asarray(kept.reshape(16, 8))},
        "blocks": {"kernel": jnp.asarray(np.kron(np.eye(4, 2), np.ones((4, 4))) > 0)},
        "bits": {"kernel": jnp.asarray(rng.random((3, 3, 4, 8)) < 0.2)},
        "channels": {"kernel": jnp.asarray(np.arange(8) < 3)[None]},
        "norm": {"scale": jnp.ones((), bool), "steps": jnp.ones((), bool)},
        "empty": jnp.ones((0, 4), bool),
        "lost": jnp.zeros(100, bool),
    }
    params["bits"]["kernel"] = params["bits"]["kernel"].at[0].set(0.0)
    return params, masks


RULES = (
    ("pattern/.*", formats.pack_n_of_m(1, 4)),
    ("blocks/.*", formats.pack_blocks(4, 4)),
    (".*", formats.pack_bits),
)
