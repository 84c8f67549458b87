"""The gradient at effective weights against formulas and differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import links
from jprune.learned import effective

_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(6, 4))
G = _RNG.normal(size=(6, 4))
M = _RNG.random(size=(6, 4)) < 0.5
S = _RNG.normal(size=(6, 4))


def _sigma(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def _f32(tree):
    return jax.tree.map(
        lambda x: jnp.asarray(x, bool if np.asarray(x).dtype == bool else jnp.float32),
        tree,
    )


def _pull(reparameterize, inputs, g=G):
    z, pullback = jax.vjp(reparameterize, *_f32(inputs))
    return z, pullback(jnp.asarray(g, jnp.float32))


# Each R: its inputs, its value, and the gradients of those inputs that have any.
_THRESHOLD = -0.5  # sigmoid: 0.38
_SIGN = np.where(S < 0, -1.0, 1.0)
_PASSES = np.abs(W) > _sigma(_THRESHOLD)
_GATES = _sigma(S)
_CHANNELS = _GATES[:1]
FORMULAS = {
    "masked": (effective.masked, (W, M), W * M, {0: M * G}),
    "soft_masked": (
        effective.soft_masked,
        (W, _GATES),
        W * _GATES,
        {0: _GATES * G, 1: W * G},
    ),
    "soft_masked, channels": (
        effective.soft_masked,
        (W, _CHANNELS),
        W * _CHANNELS,
        {0: _CHANNELS * G, 1: (W * G).sum(0, keepdims=True)},
    ),
    "score_masked": (effective.score_masked, (W, M, S), W * M, {0: M * G, 2: W * G}),
    "size_masked": (
        effective.size_masked,
        (W, M, S),
        W * M,
        {0: M * G, 2: _SIGN * W * G},
    ),
    "sign_masked": (
        effective.sign_masked,
        (W, M, S),
        W * M * _SIGN,
        {0: M * _SIGN * G, 2: W * G},
    ),
    "soft_thresholded": (
        effective.soft_thresholded,
        (W, np.float64(_THRESHOLD)),
        np.sign(W) * np.maximum(np.abs(W) - _sigma(_THRESHOLD), 0),
        {
            0: _PASSES * G,
            1: -(_PASSES * np.sign(W) * G).sum()
            * _sigma(_THRESHOLD)
            * (1 - _sigma(_THRESHOLD)),
        },
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients_are_those_of_the_formulas(name):
    reparameterize, inputs, value, slopes = FORMULAS[name]
    z, found = _pull(reparameterize, inputs)
    np.testing.assert_allclose(z, value, rtol=1e-5, atol=1e-6)
    for i, expected in slopes.items():
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)
    masks = [i for i, x in enumerate(inputs) if np.asarray(x).dtype == bool]
    assert sorted([*slopes, *masks]) == list(range(len(inputs)))


# The same in NumPy, where it is smooth: differences know nothing of the formulas.
SMOOTH = {
    "masked": lambda w, m: w * m,
    "soft_masked": lambda w, p: w * p,
    "soft_thresholded": lambda w, s: np.sign(w) * np.maximum(np.abs(w) - _sigma(s), 0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_differences(name):
    reparameterize, inputs, _, slopes = FORMULAS[name]
    _, found = _pull(reparameterize, inputs)
    for i in slopes:
        expected = np.zeros(np.shape(inputs[i]))
        for at in np.ndindex(expected.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [np.array(x) for x in inputs]
                moved[i][at] += step
                ends.append((G * SMOOTH[name](*moved)).sum())
            expected[at] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_a_sign_has_two_values():
    """A score of zero keeps the weight as it is: the mask alone hides."""
    w, m = jnp.float32([2.0, 2.0]), jnp.array([True, False])
    z = effective.sign_masked(w, m, jnp.float32([0.0, 0.0]))
    assert z.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_keep_their_type_and_scores_theirs(name, dtype):
    reparameterize, (w, *rest), value, slopes = FORMULAS[name]
    rest = _f32(rest)
    z, pullback = jax.vjp(reparameterize, jnp.asarray(w, dtype), *rest)
    assert z.dtype == dtype
    np.testing.assert_allclose(z.astype(jnp.float32), value, rtol=0.05, atol=0.02)
    found = pullback(jnp.asarray(G, dtype))
    for i in slopes:
        assert found[i].dtype == (dtype if i == 0 else jnp.float32)


@pytest.mark.parametrize(
    ("reparameterize", "scale"),
    [
        (effective.soft_masked, 1.0),
        (effective.soft_thresholded, -_sigma(-3) * (1 - _sigma(-3))),
    ],
)
def test_gradients_of_what_many_weights_share_are_summed_in_float32(
    reparameterize, scale
):
    """5000 is no number of bfloat16's."""
    w = jnp.ones((5000, 1), jnp.bfloat16)
    s = jnp.full((1, 1), -3, jnp.float32)
    _, pullback = jax.vjp(reparameterize, w, s)
    found = pullback(jnp.ones_like(w))[1]
    np.testing.assert_allclose(float(found[0, 0]), 5000 * scale, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_masked_is_zero_whatever_it_was(bad):
    w, m, s = jnp.float32([bad, 1.0]), jnp.array([False, True]), jnp.ones(2)
    for z in (
        effective.masked(w, m),
        effective.score_masked(w, m, s),
        effective.sign_masked(w, m, s),
        effective.size_masked(w, m, s),
    ):
        assert z.tolist() == [0.0, 1.0]


# ---- a network ----

X, Y = _RNG.normal(size=(32, 6)), _RNG.normal(size=(32, 3))
V = _RNG.normal(size=(4, 3))
PARAMS = _f32({"kernel": W, "out": V})
MASKS = {"kernel": jnp.asarray(M), "out": jnp.ones((), bool)}


def _loss(z, x=X, y=Y):
    hidden = jnp.tanh(jnp.asarray(x, jnp.float32) @ z["kernel"])
    return jnp.mean(jnp.square(hidden @ z["out"] - jnp.asarray(y, jnp.float32)))


def _by_hand(w, v):
    """The loss and its gradients, by the chain rule in float64."""
    hidden = np.tanh(X @ w)
    wrong = hidden @ v - Y
    slope = 2 * wrong / wrong.size
    back = slope @ v.T * (1 - hidden**2)
    return np.mean(wrong**2), X.T @ back, hidden.T @ slope


def _masked(params, masks):
    return jax.tree.map(effective.masked, params, masks)


def test_the_gradient_is_that_at_the_effective_weights():
    found = effective.gradient_at_effective(_loss, _masked, (PARAMS, MASKS))
    value, g, back = _by_hand(W * M, V)
    np.testing.assert_allclose(found.value, value, rtol=1e-5)
    np.testing.assert_array_equal(found.weights["kernel"], np.float32(W * M))
    np.testing.assert_allclose(found.grads["kernel"], g, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.grads["out"], back, rtol=1e-4, atol=1e-6)
    assert np.any(np.asarray(found.grads["kernel"])[~M] != 0), "dense"
    to_params, _ = found.pullback(found.grads)
    np.testing.assert_allclose(to_params["kernel"], M * g, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        to_params["kernel"], effective.masked_gradient(found.grads, MASKS)["kernel"]
    )


def test_the_mask_gradient_is_that_of_differences():
    """Of a mask that is a real number, in float64, on pruned weights too."""
    found = effective.gradient_at_effective(_loss, _masked, (PARAMS, MASKS))
    slopes = effective.mask_gradient(PARAMS, found.grads)["kernel"]
    expected = np.zeros(M.shape)
    for at in np.ndindex(M.shape):
        up, down = M.astype(float), M.astype(float)
        up[at] += 1e-6
        down[at] -= 1e-6
        expected[at] = (_by_hand(W * up, V)[0] - _by_hand(W * down, V)[0]) / 2e-6
    np.testing.assert_allclose(slopes, expected, rtol=1e-3, atol=1e-5)


def test_criteria_are_the_same_numbers():
    """SNIP is the mask gradient at mask one, a gate's it at any; movement its sum."""
    ones = jax.tree.map(lambda w: jnp.ones(w.shape, bool), PARAMS)
    dense = effective.gradient_at_effective(_loss, _masked, (PARAMS, ones))
    snip = links.score_by_taylor()
    np.testing.assert_array_equal(
        jnp.abs(effective.mask_gradient(PARAMS, dense.grads)["kernel"]),
        snip.update(dense.grads, snip.init(PARAMS), PARAMS)[0]["kernel"],
    )
    sparse = effective.gradient_at_effective(_loss, _masked, (PARAMS, MASKS))
    gate = links.score_by_gate()
    np.testing.assert_array_equal(
        effective.mask_gradient(PARAMS, sparse.grads)["kernel"],
        gate.update(sparse.grads, gate.init(PARAMS), PARAMS)[0]["kernel"],
    )
    growth = links.score_by_gradient()
    np.testing.assert_allclose(
        growth.update(sparse.grads, growth.init(PARAMS), PARAMS)[0]["kernel"],
        np.abs(_by_hand(W * M, V)[1]),
        rtol=1e-4,
        atol=1e-6,
    )
    movement = links.score_by_movement()
    params, state = PARAMS, movement.init(PARAMS)
    total = np.zeros(W.shape)
    for _ in range(3):
        found = effective.gradient_at_effective(_loss, _masked, (params, MASKS))
        total -= np.asarray(effective.mask_gradient(params, found.grads)["kernel"])
        moved, state = movement.update(found.grads, state, params)
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, found.grads)
    np.testing.assert_allclose(moved["kernel"], total, rtol=1e-5, atol=1e-7)


def test_the_network_runs_once():
    """Whatever is asked of one batch: weights, masks, scores, hypergradient."""
    calls = []

    def loss(z):
        calls.append(None)
        return _loss(z)

    def everything(params, s):
        reparameterize = lambda w, s: {  # noqa: E731
            **w,
            "kernel": effective.score_masked(w["kernel"], MASKS["kernel"], s),
        }
        found = effective.gradient_at_effective(loss, reparameterize, (params, s))
        return (
            found.value,
            found.pullback(found.grads),
            effective.masked_gradient(found.grads, MASKS),
            effective.mask_gradient(params, found.grads),
        )

    text = str(jax.make_jaxpr(everything)(PARAMS, jnp.ones(W.shape)))
    assert len(calls) == 1
    assert text.count("= tanh") == 1
    assert text.count("= dot_general") == 5, "two forward, three backward"


def test_aux_and_arguments_pass_through():
    loss = lambda z, x, y: (_loss(z, x, y), {"seen": jnp.sum(x)})  # noqa: E731
    x = jnp.asarray(X, jnp.float32)
    found = effective.gradient_at_effective(
        loss, _masked, (PARAMS, MASKS), x, Y, has_aux=True
    )
    np.testing.assert_allclose(found.aux["seen"], X.sum(), rtol=1e-4)
    plain = effective.gradient_at_effective(_loss, _masked, (PARAMS, MASKS))
    assert plain.aux is None
    np.testing.assert_array_equal(plain.grads["kernel"], found.grads["kernel"])


def test_hidden_leaves_stay_hidden():
    """`mask_gradient` on a tree in which what is never pruned is hidden."""
    hidden = {"kernel": PARAMS["kernel"], "out": optax.MaskedNode()}
    found = effective.mask_gradient(hidden, hidden)
    assert found["out"] == optax.MaskedNode()
    np.testing.assert_allclose(found["kernel"], W**2, rtol=1e-5)
