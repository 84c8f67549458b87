"""Learned thresholds: the link against formulas in float64, and its identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import learned

pytestmark = pytest.mark.others_code

_RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(_RNG.normal(size=(6, 4)) / 5, jnp.float32)},
    "b": {"kernel": jnp.asarray(_RNG.normal(size=(3, 5)) / 20, jnp.float32)},
}
G = jax.tree.map(lambda w: np.float64(_RNG.normal(size=w.shape)), PARAMS)
KEY = jax.random.key(0)


def _sigma(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def _kept(masks):
    return sum(int(m.sum()) for m in jax.tree.leaves(masks))


def _thresholds(a, b):
    return {"a": {"kernel": jnp.float32(a)}, "b": {"kernel": jnp.float32(b)}}


def test_at_threshold_zero_it_is_the_identity():
    """To the last bit, and its gradient is that of the dense network."""
    method, s = learned.thresholded(0.0), _thresholds(-np.inf, -200.0)
    shrink = lambda params: method.effective(params, s, None, None)  # noqa: E731
    z, pullback = jax.vjp(shrink, PARAMS)
    grads = jax.tree.map(jnp.float32, G)
    for found, expected in ((z, PARAMS), (pullback(grads)[0], grads)):
        for k in "ab":
            np.testing.assert_array_equal(found[k]["kernel"], expected[k]["kernel"])


def test_values_and_gradients_by_hand():
    """sign(w) relu(|w| - sigmoid(s)), one s for each leaf."""
    method, levels = learned.thresholded(0.5), (-2.0, -3.0)
    z, pullback = jax.vjp(
        lambda params, s: method.effective(params, s, None, None),
        PARAMS,
        _thresholds(*levels),
    )
    to_w, to_s = pullback(jax.tree.map(jnp.float32, G))
    masks = method.masks(PARAMS, _thresholds(*levels), None, 0)
    for k, level in zip("ab", levels, strict=True):
        w, g, t = np.float64(PARAMS[k]["kernel"]), G[k]["kernel"], _sigma(level)
        passes = np.abs(w) > t
        assert 0 < passes.sum() < passes.size
        shrunk = np.sign(w) * np.maximum(np.abs(w) - t, 0)
        np.testing.assert_allclose(z[k]["kernel"], shrunk, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(masks[k]["kernel"], passes)
        np.testing.assert_allclose(to_w[k]["kernel"], passes * g, rtol=1e-6)
        slope = -t * (1 - t) * np.sum(passes * np.sign(w) * g)
        np.testing.assert_allclose(to_s[k]["kernel"], slope, rtol=1e-4)


def test_the_projection_meets_the_sparsity_and_keeps_differences():
    """39 weights: one constant is added to both thresholds."""
    for sparsity in (0.0, 0.3, 0.9, 1.0):
        method = learned.thresholded(sparsity)
        s = method.settle(PARAMS, _thresholds(1.0, -1.5), 0)
        assert _kept(method.masks(PARAMS, s, None, 0)) == 39 - round(39 * sparsity)
        apart = float(s["a"]["kernel"] - s["b"]["kernel"])
        assert apart == pytest.approx(2.5, abs=1e-4)


def test_a_schedule_sees_the_step_and_finish_has_its_own_sparsity():
    climb = lambda step: jnp.float32([0.0, 0.25, 0.5])[step]  # noqa: E731
    loss = lambda p, x: sum(  # noqa: E731
        jnp.sum(jnp.square(w - x)) for w in jax.tree.leaves(p)
    )
    kept = {}
    for final in (None, 0.75):
        method = learned.learn_masks(
            loss,
            learned.thresholded(climb, final=final),
            weights=optax.sgd(1e-3),
            scores=optax.sgd(1e-3),
        )
        state = method.init(PARAMS, KEY)
        kept[final] = [_kept(state.masks)]
        for x in (0.1, -0.2):
            state, _ = method.step(state, jnp.float32(x))
            kept[final].append(_kept(state.masks))
        kept[final].append(_kept(method.finish(state)[1]))
    counts = [39 - round(39 * s) for s in (0.0, 0.25, 0.5, 0.75)]
    assert kept == {None: [*counts[:3], counts[2]], 0.75: counts}


@pytest.mark.parametrize("wrong", [{"sparsity": 1.5}, {"sparsity": 0.5, "final": -0.1}])
def test_misuse_is_refused_at_once(wrong):
    with pytest.raises(jp.PruningError, match=r"1\.5|-0\.1"):
        learned.thresholded(**wrong)
