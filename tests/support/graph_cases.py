"""What tests of graph rules share: float64 for each test, and random arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
_RNG = np.random.default_rng(0)

near = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def double():
    """Computes in float64; imported by a module, it holds for all of its tests."""
    with X64(True):
        yield


def normal(*shape):
    """Random numbers, small enough for exponentials."""
    return jnp.asarray(_RNG.normal(size=shape) / 2)
