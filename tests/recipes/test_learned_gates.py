"""Masks and weights that are trained together: by hand, and on a task that is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import gates

pytestmark = pytest.mark.others_code

_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(6, 4))
X, Y = _RNG.normal(size=(8, 16, 6)), _RNG.normal(size=(8, 16, 4))
KEY = jax.random.key(0)


def _f32(x):
    return jnp.asarray(x, jnp.float32)


BATCHES = [(_f32(x), _f32(y)) for x, y in zip(X, Y, strict=True)]


def _loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(x @ params["kernel"] - y))


def _slope(z, x, y):
    return x.T @ (2 * (x @ z - y) / y.size)


def _cubic(step, begin, steps, end=1.0):
    left = 1 - min(max((step - begin) / steps, 0), 1)
    return end * (1 - left**3)


def _top(scores, kept):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


def _sigma(x):
    return 1 / (1 + np.exp(-x))


def _kept(masks):
    return sum(int(jnp.sum(m)) for m in jax.tree.leaves(masks) if m.ndim)


# ---- by hand ----


def test_movement_is_the_loop_in_float64():
    """s = -beta sum of w g, signed; the mask of the cubic schedule."""
    begin, steps = 1, 3
    method = jp.recipes.movement(
        _loss, 0.75, optax.sgd(0.1), begin=begin, steps=steps, learning_rate=0.5
    )
    state = method.init({"kernel": _f32(W)}, KEY)
    w, s, m = W.copy(), np.zeros_like(W), np.ones_like(W, bool)
    for step in range(5):
        g = _slope(w * m, X[step], Y[step])
        w, s = w - 0.1 * m * g, s - 0.5 * w * g
        m = _top(s, 24 - round(24 * _cubic(step + 1, begin, steps, 0.75)))
        state, info = method.step(state, BATCHES[step])
        np.testing.assert_array_equal(state.masks["kernel"], m)
        np.testing.assert_allclose(info.sparsity, 1 - m.mean(), atol=1e-6)
    np.testing.assert_allclose(state.aux["kernel"], s, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-6)
    assert m.sum() == 6
    assert np.any(m != _top(np.abs(w), 6)), "movement is not magnitude"
    params, masks = method.finish(state)
    np.testing.assert_array_equal(masks["kernel"], m)
    np.testing.assert_allclose(params["kernel"], w * m, rtol=1e-4, atol=1e-6)


def test_movement_that_is_finished_early_is_as_sparse_as_was_asked_for():
    method = jp.recipes.movement(_loss, 0.75, optax.sgd(0.1), steps=100)
    state, info = method.step(method.init({"kernel": _f32(W)}, KEY), BATCHES[0])
    assert float(info.sparsity) < 0.1
    assert _kept(method.finish(state)[1]) == 6


def test_soft_movement_is_the_loop_in_float64():
    steps, threshold, penalty = 4, 0.45, 400.0
    loss = lambda p, b: 30 * _loss(p, b)  # noqa: E731
    method = jp.recipes.soft_movement(
        loss, 0.5, optax.sgd(1e-3), steps=steps, threshold=threshold, penalty=penalty
    )
    state = method.init({"kernel": _f32(W)}, KEY)
    w, s, m = W.copy(), np.zeros_like(W), np.ones_like(W, bool)
    for step in range(6):
        g, p = 30 * _slope(w * m, X[step], Y[step]), _sigma(s)
        charge = penalty * _cubic(step, 0, steps)
        state, info = method.step(state, BATCHES[step])
        np.testing.assert_allclose(info.penalty, charge * p.mean(), rtol=1e-4)
        slope = w * g + charge * p * (1 - p) / s.size
        w, s = w - 1e-3 * m * g, s - 0.01 * slope
        m = _sigma(s) > threshold * _cubic(step + 1, 0, steps)
        np.testing.assert_array_equal(state.masks["kernel"], m)
    np.testing.assert_allclose(state.aux["kernel"], s, rtol=1e-4, atol=1e-6)
    assert 0 < m.sum() < 24
    np.testing.assert_array_equal(method.finish(state)[1]["kernel"], _top(s, 12))


def test_soft_thresholds_by_hand():
    """The gradients of weights and thresholds, before they are shifted."""
    params = {"a": {"kernel": _f32(W / 8)}, "b": {"kernel": _f32(W.T / 4)}}
    loss = lambda p, b: _loss(p["a"], b) + jnp.sum(p["b"]["kernel"] * 0.3)  # noqa: E731
    method = jp.recipes.soft_threshold(
        loss, 0.5, optax.sgd(0.1), steps=2, learning_rate=2.0
    )
    state = method.init(params, KEY)
    state, _ = method.step(state, BATCHES[0])
    thresholds = [_sigma(float(state.aux[k]["kernel"])) for k in "ab"]
    assert thresholds[0] == pytest.approx(thresholds[1], rel=0.05), "one to begin with"
    before = [float(state.aux[k]["kernel"]) for k in "ab"]
    weights = [np.float64(state.params[k]["kernel"]) for k in "ab"]
    z = [
        np.sign(w) * np.maximum(np.abs(w) - t, 0)
        for w, t in zip(weights, thresholds, strict=True)
    ]
    g = [_slope(z[0], X[1], Y[1]), np.full((4, 6), 0.3)]
    state, _ = method.step(state, BATCHES[1])
    moved = []
    for i, k in enumerate("ab"):
        active = z[i] != 0
        expected = weights[i] - 0.1 * active * g[i]
        np.testing.assert_allclose(
            state.params[k]["kernel"], expected, rtol=1e-4, atol=1e-6
        )
        t = thresholds[i]
        slope = -np.sum(active * np.sign(weights[i]) * g[i]) * t * (1 - t)
        moved.append(before[i] - 2.0 * slope)
    # One constant is added to both: what is learned is their difference.
    found = float(state.aux["a"]["kernel"] - state.aux["b"]["kernel"])
    assert found == pytest.approx(moved[0] - moved[1], rel=1e-3)
    assert abs(moved[0] - moved[1]) > 0.01


@pytest.mark.parametrize("begin", [0, 3])
def test_soft_thresholds_land_on_each_target(begin):
    steps, n = 6, 200 + 90
    params = {
        "a": {"kernel": _f32(_RNG.normal(size=(10, 20)) / 9)},
        "b": {"kernel": _f32(_RNG.normal(size=(9, 10)) / 50)},
    }
    loss = lambda p, x: sum(  # noqa: E731
        jnp.mean(jnp.square(w - jnp.sin(9 * w + x))) for w in jax.tree.leaves(p)
    )
    method = jp.recipes.soft_threshold(
        loss, 0.9, optax.adam(1e-3), begin=begin, steps=steps
    )
    state = method.init(params, KEY)
    assert _kept(state.masks) == n
    for step in range(begin + steps + 2):
        state, info = method.step(state, jnp.float32(step))
        target = _cubic(step + 1, begin, steps, 0.9)
        assert abs(_kept(state.masks) - (n - round(n * target))) <= 1, step
        np.testing.assert_allclose(info.sparsity, 1 - _kept(state.masks) / n, atol=1e-6)
        for k in "ab":
            above = jnp.abs(state.params[k]["kernel"]) > jax.nn.sigmoid(
                state.aux[k]["kernel"]
            )
            np.testing.assert_array_equal(above, state.masks[k]["kernel"])
    found, masks = method.finish(state)
    assert _kept(masks) == 29
    for k in "ab":  # shrunk, too
        w, t = state.params[k]["kernel"], jax.nn.sigmoid(state.aux[k]["kernel"])
        kept = np.asarray(masks[k]["kernel"])
        np.testing.assert_allclose(
            np.abs(found[k]["kernel"])[kept], (jnp.abs(w) - t)[kept], atol=1e-4
        )


@pytest.mark.parametrize("w", [3 + W, np.round(W) / 4], ids=["large", "tied"])
def test_what_thresholds_cannot_tell_apart_is_cut_in_the_end(w):
    """Sigmoids are below 1, and equal weights pass together: the count is exact."""
    method = jp.recipes.soft_threshold(_loss, 0.5, optax.set_to_zero(), steps=2)
    state = method.init({"kernel": _f32(w)}, KEY)
    for batch in BATCHES[:3]:
        state, _ = method.step(state, batch)
    found, masks = method.finish(state)
    kept = np.asarray(masks["kernel"])
    assert kept.sum() == 12
    assert np.abs(w)[kept].min() >= np.abs(w)[~kept].max()
    assert not np.any(np.asarray(found["kernel"])[~kept])


def test_l0_charges_by_hand():
    """lambda_1 (target - s) + lambda_2 (target - s)^2, on each gate alike."""
    steps = 4
    params = {"a": {"kernel": _f32(W)}, "b": {"kernel": _f32(W.T)}}
    loss = lambda p, b: _loss(p["a"], b)  # noqa: E731
    method = jp.recipes.l0(loss, 0.5, optax.sgd(0.1), steps=steps, units="output")
    state = method.init(params, KEY)
    logits, multipliers = state.aux
    assert logits["a"]["kernel"].shape == (1, 4)
    assert logits["b"]["kernel"].shape == (1, 6)
    for step in range(3):
        logits, multipliers = state.aux
        open_ = [
            _sigma(np.float64(x) - 2 / 3 * math.log(0.1 / 1.1)).ravel()
            for x in jax.tree.leaves(logits)
        ]
        gap = _cubic(step, 0, steps, 0.5) - (1 - np.concatenate(open_).mean())
        expected = (
            float(multipliers.linear) * gap + float(multipliers.quadratic) * gap**2
        )
        state, info = method.step(state, BATCHES[step])
        np.testing.assert_allclose(info.penalty, expected, rtol=1e-3, atol=1e-7)
    assert float(state.aux[1].linear) > 0, "too dense: the multiplier rises"


# ---- on a task that is known ----


def _regression(steps, batch=64, inputs=16):
    """y depends on the last quarter of the inputs."""
    x = np.random.default_rng(5).normal(size=(steps, batch, inputs))
    return _f32(x), _f32(x[..., -inputs // 4 :].sum(-1, keepdims=True))


def _train(method, steps, kernel=None):
    kernel = 0.3 * np.ones((16, 1)) if kernel is None else kernel
    state = method.init({"kernel": _f32(kernel)}, KEY)
    x, y = _regression(steps)
    infos = []
    for i in range(steps):
        state, info = method.step(state, (x[i], y[i]))
        infos.append(info)
    return state, infos


_ADAM = optax.adam(0.02)
METHODS = {
    "movement": lambda: jp.recipes.movement(_loss, 0.75, _ADAM, steps=100),
    "soft_movement": lambda: jp.recipes.soft_movement(_loss, 0.75, _ADAM, steps=100),
    "soft_threshold": lambda: jp.recipes.soft_threshold(_loss, 0.75, _ADAM, steps=100),
    "l0": lambda: jp.recipes.l0(_loss, 0.75, _ADAM, steps=200),
    "consensus": lambda: jp.recipes.consensus(_loss, 0.75, _ADAM, units="input"),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_inputs_that_matter_are_found(name):
    method = METHODS[name]()
    state, _ = _train(method, 400 if name in ("l0", "consensus") else 150)
    params, masks = method.finish(state)
    assert np.flatnonzero(masks["kernel"]).tolist() == [12, 13, 14, 15]
    np.testing.assert_allclose(params["kernel"][12:], 1, atol=0.3)


def test_l0_comes_to_its_target():
    """The expected sparsity, and gates that are open or closed."""
    state, infos = _train(METHODS["l0"](), 400)
    open_ = jax.tree.map(gates.hard_concrete_nonzero, state.aux[0])
    expected = float(gates.expected_sparsity(state.aux[0], open_))
    assert expected == pytest.approx(0.75, abs=0.03)
    assert float(infos[0].sparsity) == 0
    assert float(infos[-1].sparsity) == pytest.approx(0.75, abs=0.07)


def test_l0_keeps_gates_at_their_mean():
    method = METHODS["l0"]()
    state, _ = _train(method, 5)
    params, masks = method.finish(state)
    kept = np.asarray(masks["kernel"])
    x = np.float64(state.aux[0]["kernel"])
    mean = np.clip(_sigma(x) * 1.2 - 0.1, 0, 1)
    expected = np.float64(state.params["kernel"]) * mean * kept
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)


def test_consensus_polarizes():
    """From gates at sigmoid(2) = 0.88 to gates that are always open, or never."""
    method = METHODS["consensus"]()
    state, infos = _train(method, 400)
    p = _sigma(np.float64(state.aux["kernel"]))
    assert p.shape == (16, 1)
    assert np.mean(p * (1 - p)) < 0.03 < 0.1 < _sigma(2) * (1 - _sigma(2))
    assert np.all((p > 0.9) == (np.arange(16)[:, None] >= 12))
    assert float(infos[-1].penalty) < 0.2 * float(infos[0].penalty)
    # Without the penalty gates have no reason to close.
    idle = jp.recipes.consensus(
        lambda p, b: jnp.zeros(()), 0.0, _ADAM, polarization=0.0, units="input"
    )
    state, _ = _train(idle, 3)
    assert np.all(_sigma(np.float64(state.aux["kernel"])) > 0.85)


def test_channels_count_alike_whatever_their_size():
    """10 gates in all, 5 of which stay, though 4 stand for twice as many weights."""
    params = {"a": {"kernel": _f32(W)}, "b": {"kernel": _f32(_RNG.normal(size=(3, 6)))}}
    loss = lambda p, b: _loss(p["a"], b)  # noqa: E731
    for method in (
        jp.recipes.l0(loss, 0.5, optax.sgd(0.1), steps=3, units="output"),
        jp.recipes.consensus(loss, 0.5, optax.sgd(0.1)),
    ):
        state = method.init(params, KEY)
        for batch in BATCHES[:3]:
            state, _ = method.step(state, batch)
        _, masks = method.finish(state)
        assert [m.shape for m in jax.tree.leaves(masks)] == [(1, 4), (1, 6)]
        assert _kept(masks) == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: jp.recipes.movement(_loss, weights=_ADAM, **{"steps": 3, **o}),
        lambda **o: jp.recipes.soft_movement(_loss, weights=_ADAM, **{"steps": 3, **o}),
        lambda **o: jp.recipes.soft_threshold(
            _loss, weights=_ADAM, **{"steps": 3, **o}
        ),
        lambda **o: jp.recipes.l0(_loss, weights=_ADAM, **{"steps": 3, **o}),
    ],
    ids=["movement", "soft_movement", "soft_threshold", "l0"],
)
def test_misuse_is_refused_at_once(make):
    for sparsity in (-0.1, 1.5, float("nan")):
        with pytest.raises(jp.PruningError, match=str(sparsity)):
            make(sparsity=sparsity)
    with pytest.raises(jp.PruningError, match="steps >= 1"):
        make(sparsity=0.5, steps=0)


def test_misuse_of_one_method_only():
    for threshold in (0, 1, 1.5):
        with pytest.raises(jp.PruningError, match=r"threshold is in \(0, 1\)"):
            jp.recipes.soft_movement(_loss, 0.5, _ADAM, steps=3, threshold=threshold)
    with pytest.raises(jp.PruningError, match=r"1\.5"):
        jp.recipes.consensus(_loss, 1.5, _ADAM)
    with pytest.raises(jp.PruningError, match="rows"):
        jp.recipes.consensus(_loss, 0.5, _ADAM, units="rows")
    with pytest.raises(jp.PruningError, match="rows"):
        jp.recipes.l0(_loss, 0.5, _ADAM, steps=3, units="rows")
