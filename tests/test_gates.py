"""Straight-through: exact values, the derivative of the soft argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_values_are_exact_in_every_type(dtype):
    soft = jnp.asarray(np.linspace(-3000, 3000, 4001), dtype)
    hard = soft > 0
    found = jp.straight_through(hard, soft)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), hard)
    if dtype != jnp.float32:  # what it is there to avoid
        common = soft + (hard.astype(dtype) - soft)
        assert np.any(np.asarray(common, np.float32) != np.asarray(hard))


def test_first_derivatives_in_both_modes():
    w = jnp.array([2.0, -3.0, 5.0])

    def loss(s):
        return jnp.sum(w * jp.straight_through(s > 0, jnp.square(s)))

    s = jnp.array([0.5, -1.0, 2.0])
    assert loss(s) == 2 + 5
    np.testing.assert_allclose(jax.grad(loss)(s), 2 * s * w)
    value, tangent = jax.jvp(loss, (s,), (jnp.array([1.0, 0.0, -1.0]),))
    assert value == 7
    assert tangent == 2 * 0.5 * 2 - 2 * 2 * 5
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(s), 2 * s * w)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(s[None])[0], 2 * s * w)


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_in_all_orders_of_modes(outer, inner):
    def loss(s):
        return jnp.sum(jp.straight_through(s > 0, s**3)) * s[0]

    # The gate is h = [s > 0] with gradient 3 s^2, so by the product rule the
    # gradient is 3 s^2 s_0 + h_total e_0.
    s = jnp.array([0.5, -2.0])
    gradient = [3 * 0.5**2 * 0.5 + 1, 3 * 4 * 0.5]
    np.testing.assert_allclose(inner(loss)(s), gradient)
    # Once more, where the derivative of h_total is again 3 s^2.
    hessian = [[6 * 0.5 * 0.5 + 2 * 3 * 0.25, 3 * 4], [3 * 4, 6 * -2 * 0.5]]
    np.testing.assert_allclose(outer(inner(loss))(s), hessian, rtol=1e-6)


def test_no_derivative_flows_through_the_hard_argument():
    def loss(hard, soft):
        return jnp.sum(jp.straight_through(hard, soft) ** 2)

    hard, soft = jnp.array([2.0, 3.0]), jnp.array([0.1, 0.2])
    by_hard, by_soft = jax.grad(loss, argnums=(0, 1))(hard, soft)
    np.testing.assert_array_equal(by_hard, [0, 0])
    np.testing.assert_array_equal(by_soft, [4, 6])
