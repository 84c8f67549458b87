"""The loop that trains masks against a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import learned
from jprune.learned import Reparameterization, effective, learn_masks

pytestmark = pytest.mark.others_code

_RNG = np.random.default_rng(0)
W, BIAS = _RNG.normal(size=(5, 3)), _RNG.normal(size=3)
AUX = _RNG.normal(size=(5, 3))
X, Y = _RNG.normal(size=(6, 8, 5)), _RNG.normal(size=(6, 8, 3))
PARAMS = {
    "kernel": jnp.asarray(W, jnp.float32),
    "bias": jnp.asarray(BIAS, jnp.float32),
}
BATCHES = [
    (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    for x, y in zip(X, Y, strict=True)
]
KEY = jax.random.key(0)


def _loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(x @ params["kernel"] + params["bias"] - y))


def _sigma(x):
    return 1 / (1 + np.exp(-x))


def _soft(**changes):
    """Weights times sigmoids, which are charged; what is above 1/2 is kept."""

    def charge(params, aux, step):
        del params
        total = sum(jnp.sum(jax.nn.sigmoid(s)) for s in jax.tree.leaves(aux))
        return jnp.float32(0.01) * (step.astype(jnp.float32) + 1) * total

    def finish(params, aux, masks, step):
        del step
        z = jax.tree.map(lambda w, s: w * jax.nn.sigmoid(s), params, aux)
        return z, masks

    method = Reparameterization(
        init=lambda params, key: jax.tree.map(
            lambda w: jnp.asarray(AUX, jnp.float32), params
        ),
        masks=lambda params, aux, before, step: jax.tree.map(lambda s: s > 0, aux),
        effective=lambda params, aux, masks, key: jax.tree.map(
            lambda w, s: w * jax.nn.sigmoid(s), params, aux
        ),
        finish=finish,
        penalty=charge,
        settle=lambda params, aux, step: jax.tree.map(
            lambda s: jnp.clip(s, -1, 1), aux
        ),
    )
    return method._replace(**changes)


def test_the_loop_is_the_one_in_float64():
    """Both gradients through R, the penalty's, the projection, and the masks."""
    method = learn_masks(
        _loss, _soft(), weights=optax.sgd(0.1), scores=optax.sgd(2.0, momentum=0.5)
    )
    state = method.init(PARAMS, KEY)
    w, bias, s = W.copy(), BIAS.copy(), np.clip(AUX, -1, 1)
    trace = np.zeros_like(s)
    np.testing.assert_array_equal(state.masks["kernel"], s > 0)
    for step, (x, y, batch) in enumerate(zip(X, Y, BATCHES, strict=True)):
        state, info = method.step(state, batch)
        p = _sigma(s)
        wrong = x @ (w * p) + bias - y
        slope = 2 * wrong / wrong.size
        g = x.T @ slope
        np.testing.assert_allclose(info.loss, np.mean(wrong**2), rtol=1e-5)
        np.testing.assert_allclose(info.penalty, 0.01 * (step + 1) * p.sum(), rtol=1e-5)
        to_s = g * w * p * (1 - p) + 0.01 * (step + 1) * p * (1 - p)
        w, bias = w - 0.1 * g * p, bias - 0.1 * slope.sum(0)
        trace = to_s + 0.5 * trace
        s = np.clip(s - 2.0 * trace, -1, 1)
        np.testing.assert_allclose(info.sparsity, np.mean(s <= 0), atol=1e-6)
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["bias"], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.aux["kernel"], s, rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(s) == 1), "the projection has something to do"
    assert np.any((s > 0) != (AUX > 0)), "and a mask has changed"
    params, masks = method.finish(state)
    np.testing.assert_array_equal(masks["kernel"], s > 0)
    np.testing.assert_allclose(
        params["kernel"], np.where(s > 0, w * _sigma(s), 0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-4, atol=1e-5)


def test_masks_follow_from_those_before():
    """A method that prunes one weight a step, the first that is left."""

    def masks(params, aux, before, step):
        del params, step
        if before is None:
            return jax.tree.map(lambda s: jnp.ones(s.shape, bool), aux)
        first = lambda m: jnp.cumsum(m.ravel()).reshape(m.shape) > 1  # noqa: E731
        return jax.tree.map(lambda m: m & first(m), before)

    def through(params, aux, masks, key):
        del aux, key
        return jax.tree.map(effective.masked, params, masks)

    method = learn_masks(
        _loss,
        _soft(masks=masks, effective=through),
        weights=optax.sgd(0.1),
        scores=optax.set_to_zero(),
    )
    state = method.init(PARAMS, KEY)
    for i, batch in enumerate(BATCHES[:3]):
        used = np.arange(15).reshape(5, 3) >= i
        x, y = batch
        wrong = (
            x @ (np.asarray(state.params["kernel"]) * used) + state.params["bias"] - y
        )
        state, info = method.step(state, batch)
        np.testing.assert_allclose(info.loss, np.mean(wrong**2), rtol=1e-5)
    np.testing.assert_array_equal(state.masks["kernel"].ravel(), np.arange(15) >= 3)


def test_each_step_has_noise_of_its_own():
    def noise(params, aux, masks, key):
        del aux, masks
        return jax.tree.map(lambda w: w * 0 + jax.random.uniform(key), params)

    method = learn_masks(
        lambda params, batch: params["kernel"][0, 0],
        _soft(effective=noise),
        weights=optax.sgd(0.1),
        scores=optax.sgd(0.1),
    )
    seen = []
    for key in (KEY, jax.random.key(1), KEY):
        state = method.init(PARAMS, key)
        for _ in range(3):
            state, info = method.step(state, BATCHES[0])
            seen.append(float(info.loss))
    assert len(set(seen[:6])) == 6
    assert seen[6:] == seen[:3]


def test_the_model_goes_from_batch_to_batch():
    def loss(params, model, batch):
        return _loss(params, batch) + model["n"], {"n": model["n"] + 1}

    method = learn_masks(loss, _soft(), weights=optax.sgd(0.1), scores=optax.sgd(0.1))
    model = {"n": jnp.float32(0)}
    state = method.init(PARAMS, KEY, model)
    values = []
    for _ in range(3):
        state, info = method.step(state, BATCHES[0])
        values.append(float(info.loss))
    assert float(state.model["n"]) == 3
    assert values[2] > values[1] > values[0] > 0
    assert float(model["n"]) == 0


def test_frozen_weights_stay_as_they_are():
    method = learn_masks(
        _loss, _soft(), weights=optax.set_to_zero(), scores=optax.sgd(1.0)
    )
    state = method.init(PARAMS, KEY)
    for batch in BATCHES:
        state, _ = method.step(state, batch)
    for name, w in PARAMS.items():
        np.testing.assert_array_equal(state.params[name], w)
    assert np.any(np.asarray(state.aux["kernel"]) != np.clip(AUX, -1, 1))


def test_where_says_what_has_scores():
    where = jp.matching("bias")
    method = learn_masks(
        _loss,
        _soft(init=lambda params, key: jax.tree.map(jnp.ones_like, params)),
        weights=optax.sgd(0.1),
        scores=optax.adam(0.1),
        where=where,
    )
    state = method.init(PARAMS, KEY)
    assert state.aux["kernel"] == optax.MaskedNode()
    state, _ = method.step(state, BATCHES[0])
    _, masks = method.finish(state)
    assert masks["bias"].shape == (3,)
    assert masks["kernel"].shape == ()
    lost = learn_masks(
        _loss,
        _soft(),
        weights=optax.sgd(0.1),
        scores=optax.sgd(0.1),
        where=jp.matching("kernels"),
    )
    with pytest.raises(jp.PruningError, match="'kernels' matches no leaf"):
        lost.init(PARAMS, KEY)


def test_masks_that_do_not_fit_are_refused_at_init():
    wrong = _soft(masks=lambda p, aux, m, t: jax.tree.map(lambda s: s[:2] > 0, aux))
    method = learn_masks(_loss, wrong, weights=optax.sgd(1.0), scores=optax.sgd(1.0))
    with pytest.raises(jp.PruningError, match=r"'kernel' has shape \(2, 3\)"):
        method.init(PARAMS, KEY)


def test_optimizers_that_keep_the_params():
    """Prodigy's state has the very array that it is given: it is not donated twice."""
    tx = optax.contrib.prodigy(0.1)
    method = learn_masks(_loss, _soft(), weights=tx, scores=optax.sgd(0.1))
    state, _ = method.step(method.init(PARAMS, KEY), BATCHES[0])
    np.testing.assert_array_equal(state.weights.params0["kernel"], PARAMS["kernel"])


def test_a_reparameterization_needs_no_penalty_and_no_projection():
    plain = _soft()
    method = learn_masks(
        _loss,
        Reparameterization(plain.init, plain.masks, plain.effective, plain.finish),
        weights=optax.sgd(0.1),
        scores=optax.sgd(0.1),
    )
    state, info = method.step(method.init(PARAMS, KEY), BATCHES[0])
    assert float(info.penalty) == 0
    assert isinstance(state, learned.LearnedState)
    assert np.max(np.abs(state.aux["kernel"])) > 1
