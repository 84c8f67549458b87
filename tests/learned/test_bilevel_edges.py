"""Bi-level pruning at its edges: defaults, and trees of one entry."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune.learned import bilevel

pytestmark = pytest.mark.others_code


def test_gamma_is_one_unless_given():
    w, g = jnp.array([2.0, 5.0]), jnp.array([3.0, 3.0])
    masks = jnp.array([True, False])
    found = bilevel.implicit_gradient(w, masks, g)
    assert found.tolist() == [(2 - 3) * 3, 5 * 3]
    # That of the released code is 1e4: (w g)^2 is left out but for a ten-thousandth.
    found = bilevel.reference_gradient(w, masks, 100 * g)
    np.testing.assert_allclose(found, [600 - 36, 1500 - 225], rtol=1e-6)


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, True), (1.0, False)])
@pytest.mark.parametrize("shape", [(1, 1), (1,), ()])
def test_a_tree_of_one_entry(sparsity, kept, shape):
    """By hand: w = 2 and a loss of (m w)^2 / 2, so that g = m w."""
    method = bilevel.bip(
        lambda p, batch: jnp.sum(jnp.square(p["w"])) / 2 * batch,
        jp.keep_top(sparsity),
        lower=optax.sgd(0.0),
        upper=optax.sgd(0.0),
        where=jp.is_float,
    )
    state = method.init({"w": jnp.full(shape, 2.0)})
    state, info = method.step(state, jnp.ones(1), jnp.float32(1))
    params, masks = method.finish(state)
    assert masks["w"].shape == shape
    assert (masks["w"] == kept).all()
    assert params["w"].sum() == 2 * kept
    g = 2.0 * kept
    assert info.sparsity == 1 - kept
    assert info.churn == 0
    assert info.direct_norm == 2 * g
    assert info.implicit_norm == g * g
