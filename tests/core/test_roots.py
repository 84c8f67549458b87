"""Roots and their derivatives, against functions with an inverse."""

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import roots


def test_an_interval_is_halved_around_the_root():
    low, high = roots.bisect(
        lambda x: x**3 - 5, jnp.float32(1), jnp.float32(2), halvings=10
    )
    assert high - low == np.float32(2**-10)
    assert low < 5 ** (1 / 3) < high


def test_steps_are_found_to_the_last_bit():
    low, high = roots.bisect(
        lambda x: jnp.where(x > 0.3, 1.0, -1.0), jnp.float32(-1e6), jnp.float32(1e6), 60
    )
    assert high == np.nextafter(low, np.float32(1))
    assert low <= np.float32(0.3) < high


def _cube_root(y, scale=1.0):
    low, high = jnp.float32(0.1), jnp.float32(4)
    return roots.root(lambda x: scale * (x**3 - y), low, high)


def test_a_root_and_its_derivatives_in_all_modes():
    y = jnp.float32(8)
    first, second = 1 / 12, -2 / 9 * 8 ** (-5 / 3)
    np.testing.assert_allclose(_cube_root(y), 2, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(_cube_root)(y), 2, rtol=1e-6)
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(_cube_root)(y), first, rtol=1e-5)
        for again in (jax.jacfwd, jax.jacrev):
            found = again(derivative(_cube_root))(y)
            np.testing.assert_allclose(found, second, rtol=1e-5)
    many = jnp.arange(1, 30).astype(jnp.float32)
    np.testing.assert_allclose(jax.vmap(_cube_root)(many), np.cbrt(many), rtol=1e-6)
    # The scale does not move the root.
    np.testing.assert_allclose(jax.grad(_cube_root, 1)(y, 2.0), 0, atol=1e-6)


def test_where_the_slope_is_zero_so_is_the_derivative():
    def flat(y):
        return roots.root(lambda x: 0 * (x - y), jnp.float32(0), jnp.float32(1))

    value, slope = jax.value_and_grad(flat)(jnp.float32(0.5))
    assert 0 <= value <= 1
    assert slope == 0
