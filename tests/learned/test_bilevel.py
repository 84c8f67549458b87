"""Bi-level pruning against a loop in float64, and the identities that it obeys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import ridge

import jprune as jp
from jprune.learned import bilevel

pytestmark = pytest.mark.others_code

# ---- the hypergradient ----


def _at_the_solution(gamma):
    w = ridge.solve(ridge.MASK, gamma)
    return w, ridge.gradient(ridge.MASK * w)


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_at_the_lower_solution_it_is_twice_the_direct_gradient(gamma):
    """There m g = -gamma w: the implicit term adds no direction."""
    w, g = _at_the_solution(gamma)
    found = bilevel.implicit_gradient(
        ridge.f32(w), ridge.MASK > 0, ridge.f32(g), gamma=gamma
    )
    np.testing.assert_allclose(found, 2 * w * g, rtol=1e-6, atol=1e-12)
    direct = bilevel.direct_gradient(ridge.f32(w), None, ridge.f32(g))
    np.testing.assert_allclose(found, 2 * direct, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 7.0])
def test_the_implicit_term_is_a_bonus_for_what_is_kept(gamma):
    """-(1/gamma) m g^2; zero where pruned. Descent raises scores by it."""
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 5, 3))
    m = rng.random(size=(5, 3)) < 0.5
    for mask in (m, m[:1]):  # of single weights, and of channels
        found = bilevel.implicit_gradient(
            ridge.f32(w), jnp.asarray(mask), ridge.f32(g), gamma=gamma
        )
        term = np.float64(found) - w * g
        kept = np.broadcast_to(mask, w.shape)
        np.testing.assert_allclose(
            term[kept], -np.square(g[kept]) / gamma, rtol=1e-5, atol=1e-6 / gamma
        )
        np.testing.assert_allclose(np.float64(found)[~kept], (w * g)[~kept], rtol=1e-6)


def test_the_reference_formula():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 5, 3))
    found = bilevel.reference_gradient(ridge.f32(w), None, ridge.f32(g), gamma=2.0)
    np.testing.assert_allclose(found, w * g - (w * g) ** 2 / 2, rtol=1e-5, atol=1e-6)
    usual = bilevel.reference_gradient(ridge.f32(w), None, ridge.f32(g))
    np.testing.assert_allclose(usual, w * g, rtol=1e-3)


def test_hypergradients_are_in_float32():
    """Products of float16 numbers leave float16."""
    w, m = {"w": jnp.float16([1e-4])}, {"w": jnp.zeros(1, bool)}
    for rule in (
        bilevel.implicit_gradient,
        bilevel.direct_gradient,
        bilevel.reference_gradient,
    ):
        found = rule(w, m, w)["w"]
        np.testing.assert_allclose(found, np.float64(w["w"]) ** 2, rtol=1e-6)
        assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("gamma", "cosine", "least_ratio", "most_ratio"),
    # Measured: cosines 0.945, 0.955, 0.994, 0.9988, 0.99995; ratios 3.0, 3.3, 2.6,
    # 1.7, 1.14.
    [
        (1e-3, 0.94, 2, 4),
        (1e-2, 0.95, 2, 4),
        (0.1, 0.99, 2, 3),
        (1.0, 0.998, 1.4, 2),
        (10.0, 0.9999, 1.1, 1.2),
    ],
)
def test_the_closed_form_points_where_the_exact_gradient_does(
    gamma, cosine, least_ratio, most_ratio
):
    """What the Hessian is worth: little of the direction, and half of the length."""
    w, g = _at_the_solution(gamma)
    exact = ridge.exact_gradient(w, ridge.MASK, gamma)
    closed = bilevel.implicit_gradient(
        ridge.f32(w), ridge.MASK > 0, ridge.f32(g), gamma=gamma
    )
    ratio = np.linalg.norm(closed) / np.linalg.norm(exact)
    assert closed @ exact > cosine * np.linalg.norm(closed) * np.linalg.norm(exact)
    assert least_ratio < ratio < most_ratio


# ---- the loop ----

ALPHA, BETA, STEPS = 0.05, 0.4, 4
_RNG = np.random.default_rng(3)
W, BIAS = _RNG.normal(size=(6, 4)), _RNG.normal(size=4)
X, Y = _RNG.normal(size=(40, 8, 6)), _RNG.normal(size=(40, 8, 4))
PARAMS = {"kernel": ridge.f32(W), "bias": ridge.f32(BIAS)}


def _loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(x @ params["kernel"] + params["bias"] - y))


def _batches(step, lower):
    """Those of a step, as rows of X and Y: `lower` of them and one."""
    first = step * (lower + 1)
    return list(range(first, first + lower)), first + lower


def _stack(rows):
    return ridge.f32(X[rows]), ridge.f32(Y[rows])


def _slopes(z, bias, row):
    wrong = X[row] @ z + bias - Y[row]
    slope = 2 * wrong / wrong.size
    return np.mean(wrong**2), X[row].T @ slope, slope.sum(0)


def _top(scores, kept):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


RULES = {
    "implicit": (
        functools.partial(bilevel.implicit_gradient, gamma=0.3),
        lambda w, m, g: (w - m * g / 0.3) * g,
    ),
    "direct": (bilevel.direct_gradient, lambda w, m, g: w * g),
    "reference": (
        functools.partial(bilevel.reference_gradient, gamma=5.0),
        lambda w, m, g: w * g - (w * g) ** 2 / 5,
    ),
}
PRUNERS = {
    "weights": (jp.keep_top(0.5, scope="global"), lambda s: _top(s, 12)),
    "columns": (
        optax.chain(jp.pool_over_axes(jnp.sum, keep="output"), jp.keep_top(0.5)),
        lambda s: _top(s.sum(0, keepdims=True), 2),
    ),
    "rows": (
        optax.chain(jp.pool_over_axes(jnp.sum, keep="input"), jp.keep_top(0.5)),
        lambda s: _top(s.sum(1, keepdims=True), 3),
    ),
}


def _by_hand(rule, project, lower, tied):
    # Scores that start close together, where weights are not their own.
    w, bias, s = W.copy(), BIAS.copy(), np.abs(W) * (1 if tied else 0.1)
    m = project(s)
    infos = []
    for step in range(STEPS):
        rows, row = _batches(step, lower)
        losses = []
        for r in rows:
            value, g, slope = _slopes(m * w, bias, r)
            w, bias = w - ALPHA * m * g, bias - ALPHA * slope
            losses.append(value)
        value, g, _ = _slopes(m * w, bias, row)
        total = rule(w, m, g)
        norms = np.linalg.norm(w * g), np.linalg.norm(total - w * g)
        if tied:
            w = w - BETA * total * np.sign(w)
            s = np.abs(w)
        else:
            s = s - BETA * total
        before, m = m, project(s)
        infos.append((losses, value, 1 - m.mean(), np.mean(before != m), *norms))
    return w, bias, s, m, infos


@pytest.mark.parametrize(
    ("rule", "pruner", "lower", "tied"),
    [
        ("implicit", "weights", 1, False),
        ("implicit", "weights", 3, False),
        ("implicit", "weights", 0, False),
        ("direct", "columns", 2, False),
        ("implicit", "rows", 2, False),
        ("implicit", "weights", 2, True),
        ("direct", "weights", 2, False),
        ("reference", "weights", 2, True),
    ],
)
def test_the_loop_is_the_one_in_float64(rule, pruner, lower, tied):
    method = bilevel.bip(
        _loss,
        PRUNERS[pruner][0],
        lower=optax.sgd(ALPHA),
        upper=optax.sgd(BETA),
        hypergradient=RULES[rule][0],
        tied=tied,
    )
    w, bias, s, m, expected = _by_hand(RULES[rule][1], PRUNERS[pruner][1], lower, tied)
    state = method.init(PARAMS)
    if not tied:
        np.testing.assert_array_equal(state.scores["kernel"], np.float32(np.abs(W)))
        start = jax.tree.map(lambda w: 0.1 * jnp.abs(w), PARAMS)
        state = method.init(PARAMS, None, start)
    for step in range(STEPS):
        rows, row = _batches(step, lower)
        state, info = method.step(state, _stack(rows), _stack(row))
        for found, value in zip(info, expected[step], strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
    assert max(churn for _, _, _, churn, _, _ in expected) > 0
    assert int(state.count) == STEPS
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["bias"], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.masks["kernel"], m)
    if tied:
        assert state.scores is None
    else:
        assert state.scores["bias"] == optax.MaskedNode()
        np.testing.assert_allclose(state.scores["kernel"], s, rtol=1e-4, atol=1e-5)
    params, masks = method.finish(state)
    np.testing.assert_array_equal(masks["kernel"], m)
    np.testing.assert_allclose(params["kernel"], m * w, rtol=1e-4, atol=1e-5)
    assert masks["bias"].shape == ()


def test_norms_of_large_leaves_are_right():
    """A sum of 2^24 equal numbers, one after another in float32, is off by much."""
    loss = lambda p, x: jnp.sum(p["kernel"]) * x  # noqa: E731
    params = {"kernel": jnp.full((4096, 4096), 0.1)}
    method = bilevel.bip(
        loss, jp.keep_top(1.0), lower=optax.sgd(0.1), upper=optax.sgd(0.1)
    )
    _, info = method.step(method.init(params), jnp.zeros(0), jnp.float32(1))
    np.testing.assert_allclose(info.direct_norm, 409.6, rtol=1e-4)
    assert float(info.sparsity) == 1


@pytest.mark.parametrize("lower", [1, 3])
def test_with_a_frozen_upper_level_it_is_masked_training(lower):
    """By `sparsify` from the same masks, with momentum, Adam and weight decay."""
    steps, pruner = 4, jp.recipes.magnitude(0.5)
    adam = optax.adamw(0.05, weight_decay=0.1)
    method = bilevel.bip(_loss, pruner, lower=adam, upper=optax.set_to_zero())
    state = method.init(PARAMS)
    for step in range(steps):
        rows, row = _batches(step, lower)
        state, info = method.step(state, _stack(rows), _stack(row))
        assert float(info.churn) == 0

    params, masks = jp.prune(PARAMS, pruner)
    tx = jp.sparsify(adam, pruner, end=0)
    memory = tx.init(params)
    for step in range(steps):
        for row in _batches(step, lower)[0]:
            grads = jax.grad(_loss)(params, _stack(row))
            updates, memory = tx.update(grads, memory, params)
            params = optax.apply_updates(params, updates)
    found, found_masks = method.finish(state)
    np.testing.assert_array_equal(found_masks["kernel"], masks["kernel"])
    np.testing.assert_allclose(found["kernel"], params["kernel"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["bias"], params["bias"], rtol=1e-5, atol=1e-6)


def test_the_model_goes_from_batch_to_batch_of_the_lower_level():
    """As batch statistics: the upper level reads them, and leaves them."""

    def loss(params, model, batch):
        x, _ = batch
        seen = {"mean": 0.5 * model["mean"] + 0.5 * x.mean(0), "n": model["n"] + 1}
        return _loss(params, (x - model["mean"], batch[1])), seen

    method = bilevel.bip(
        loss, jp.keep_top(0.5), lower=optax.sgd(0.01), upper=optax.sgd(0.1)
    )
    model = {"mean": jnp.zeros(6), "n": jnp.int32(0)}
    state, mean = method.init(PARAMS, model), np.zeros(6)
    for step in range(2):
        rows, row = _batches(step, 3)
        expected = mean
        for r in rows:
            mean = 0.5 * mean + 0.5 * X[r].mean(0)
        state, info = method.step(state, _stack(rows), _stack(row))
        assert int(state.model["n"]) == 3 * (step + 1)
        np.testing.assert_allclose(state.model["mean"], mean, rtol=1e-4, atol=1e-6)
    assert int(model["n"]) == 0, "the caller's model is the caller's"
    assert np.any(expected != mean)
    assert info.lower_loss.shape == (3,)


def test_scores_of_ones_own():
    """To start from, and of kernels only; the highest are kept."""
    method = bilevel.bip(
        _loss, jp.keep_top(0.5), lower=optax.sgd(0.1), upper=optax.sgd(0.1)
    )
    scores = {"kernel": -jnp.abs(PARAMS["kernel"]), "bias": jnp.zeros(4)}
    state = method.init(PARAMS, None, scores)
    np.testing.assert_array_equal(state.masks["kernel"], _top(-np.abs(W), 12))
    misfit = {**scores, "kernel": jnp.zeros((6, 3))}
    with pytest.raises(jp.PruningError, match=r"'kernel' has shape \(6, 3\)"):
        method.init(PARAMS, None, misfit)
    tied = bilevel.bip(
        _loss, jp.keep_top(0.5), lower=optax.sgd(0.1), upper=optax.sgd(0.1), tied=True
    )
    with pytest.raises(jp.PruningError, match="tied"):
        tied.init(PARAMS, None, scores)


@pytest.mark.parametrize("trace", [lambda f: f, jax.jit])
def test_optimizers_that_keep_the_params(trace):
    """Prodigy's state has the very array that it is given: it is not donated twice."""
    tx = optax.contrib.prodigy(0.1)
    method = bilevel.bip(_loss, jp.keep_top(0.5), lower=tx, upper=optax.sgd(0.1))
    state, _ = method.step(trace(method.init)(PARAMS), _stack([0]), _stack(1))
    np.testing.assert_array_equal(state.lower.params0["kernel"], PARAMS["kernel"])


def test_an_n_of_m_pattern():
    """Any pruner of scores is a projection."""
    method = bilevel.bip(
        _loss, jp.keep_n_of_m(1, 3), lower=optax.sgd(0.1), upper=optax.sgd(1.0)
    )
    state = method.init(PARAMS)
    for step in range(3):
        rows, row = _batches(step, 1)
        state, _ = method.step(state, _stack(rows), _stack(row))
    mask = np.asarray(state.masks["kernel"])
    assert np.all(mask.reshape(2, 3, 4).sum(1) == 1)


def test_a_schedule_sees_the_step():
    schedule = lambda step: jnp.asarray([0.9, 0.0, 0.25, 0.5])[step]  # noqa: E731
    method = bilevel.bip(
        _loss, jp.keep_top(schedule), lower=optax.sgd(0.1), upper=optax.sgd(0.1)
    )
    state, found = method.init(PARAMS), []
    assert float(jp.sparsity(PARAMS, state.masks)) == pytest.approx(22 / 24)
    for step in range(3):
        rows, row = _batches(step, 1)
        state, info = method.step(state, _stack(rows), _stack(row))
        found.append(float(info.sparsity))
    assert found == [0.0, 0.25, 0.5]


# ---- the recipe ----


def test_the_recipe_learns_which_weights_matter():
    """y depends on 3 of 30 inputs, whose weights start out the smallest."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 128, 30))
    y = x[..., :3].sum(-1, keepdims=True)
    weight = np.where(np.arange(30) < 3, 0.05, 0.1)[:, None]
    params = {"kernel": ridge.f32(weight), "bias": jnp.zeros(1)}
    x, y = ridge.f32(x), ridge.f32(y)
    assert not np.any(jp.prune(params, jp.recipes.magnitude(0.9))[1]["kernel"][:3])
    for preset in ("paper", "reference"):
        method = jp.recipes.bip(_loss, 0.9, steps=60, preset=preset)
        state = method.init(params)
        for i in range(0, 120, 2):
            lower = x[i : i + 1], y[i : i + 1]
            state, _ = method.step(state, lower, (x[i + 1], y[i + 1]))
        found, masks = method.finish(state)
        assert np.flatnonzero(masks["kernel"]).tolist() == [0, 1, 2], preset
        np.testing.assert_allclose(found["kernel"][:3], 1, atol=0.4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sparsity": 1.5}, "1.5"),
        ({"preset": "code"}, "code"),
        ({"units": "rows"}, "rows"),
    ],
)
def test_misuse_is_refused_at_once(wrong, message):
    with pytest.raises(jp.PruningError, match=message):
        jp.recipes.bip(_loss, **{"sparsity": 0.5, "steps": 3, **wrong})
