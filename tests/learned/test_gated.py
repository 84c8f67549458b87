"""Gates: the link against formulas in float64, and its identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.least_squares import BATCHES, KEY, PARAMS, W, gradient, loss

import jprune as jp
from jprune import gates, learned
from jprune.learned import controllers

pytestmark = pytest.mark.others_code

V = np.random.default_rng(1).normal(size=(4, 3))


def _sigma(x):
    return 1 / (1 + np.exp(-x))


def _certain(logits, key):
    """A gate without noise: sigmoid(a)."""
    del key
    return jax.nn.sigmoid(logits)


def _run(method, steps=3, scores=2.0, params=PARAMS):
    loop = learned.learn_masks(
        loss, method, weights=optax.sgd(0.1), scores=optax.sgd(scores)
    )
    state = loop.init(params, KEY)
    for batch in BATCHES[:steps]:
        state, info = loop.step(state, batch)
    return state, info, loop.finish(state)


def test_with_all_gates_open_it_is_dense_training():
    """And gates that do not depend on their logits do not move."""
    opened = learned.gated(lambda logits, key: jnp.ones_like(logits), logit=1.0)
    state, _, (params, masks) = _run(opened)
    tx = optax.sgd(0.1)

    @jax.jit
    def dense(params, batch):
        updates, _ = tx.update(jax.grad(loss)(params, batch), tx.init(params))
        return optax.apply_updates(params, updates)

    expected = PARAMS
    for batch in BATCHES[:3]:
        expected = dense(expected, batch)
    np.testing.assert_allclose(
        params["kernel"], expected["kernel"], rtol=1e-6, atol=1e-7
    )
    np.testing.assert_array_equal(state.aux["kernel"], np.ones(W.shape))
    assert bool(masks["kernel"].all())


@pytest.mark.parametrize(
    ("units", "over"), [(None, ()), ("output", (0,)), ("input", (1,))]
)
def test_logits_follow_w_g_times_the_slope_of_their_gate(units, over):
    """Of a channel's gate it is the sum over the channel; by hand in float64."""
    state, _, (params, masks) = _run(
        learned.gated(_certain, jax.nn.sigmoid, logit=-0.5, units=units)
    )
    shape = [1 if i in over else n for i, n in enumerate(W.shape)]
    w, a = W.copy(), np.full(shape, -0.5)
    for step in range(3):
        c = _sigma(a)
        g = gradient(w * c, step)
        slope = np.sum(w * g, axis=over, keepdims=True) if over else w * g
        w, a = w - 0.1 * c * g, a - 2.0 * slope * c * (1 - c)
    np.testing.assert_allclose(state.aux["kernel"], a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["kernel"], w * _sigma(a), rtol=1e-4, atol=1e-5)
    assert masks["kernel"].shape == tuple(shape)
    assert bool(masks["kernel"].all()), "a sigmoid is never zero"


def test_gates_in_force_are_those_whose_value_is_positive():
    """Hard-concrete means: sigmoid(a) 1.2 - 0.1 > 0. Binary gates: a > 0."""
    params = {"kernel": jnp.ones((1, 5))}
    logits = {"kernel": jnp.float32([[-9.0, -2.5, -2.3, 0.5, 9.0]])}
    hard = learned.gated(gates.hard_concrete, gates.hard_concrete_mean, logit=0.0)
    binary = learned.gated(gates.hard_concrete, logit=0.0)
    for method, expected in ((hard, [0, 0, 1, 1, 1]), (binary, [0, 0, 0, 1, 1])):
        masks = method.masks(params, logits, None, 0)
        np.testing.assert_array_equal(masks["kernel"][0], expected)


@pytest.mark.parametrize("mean", [gates.hard_concrete_mean, None])
def test_finish_keeps_the_best_logits_at_their_value(mean):
    params = {"kernel": jnp.float32([[2.0, 3.0, 5.0]]), "second": jnp.float32([[7.0]])}
    logits = {"kernel": jnp.float32([[-3.0, 0.5, 2.0]]), "second": jnp.float32([[1.0]])}
    method = learned.gated(
        gates.hard_concrete, mean, logit=0.0, final=jp.keep_top(0.5, scope="global")
    )
    z, masks = method.finish(params, logits, None, 0)
    assert masks["kernel"].tolist() == [[False, False, True]]
    assert masks["second"].tolist() == [[True]]
    value = lambda a: 1 if mean is None else np.clip(1.2 * _sigma(a) - 0.1, 0, 1)  # noqa: E731
    assert float(z["kernel"][0, 2]) == pytest.approx(5 * value(2.0))
    assert float(z["second"][0, 0]) == pytest.approx(7 * value(1.0))


def test_each_leaf_and_each_step_has_noise_of_its_own():
    params = {"a": {"kernel": jnp.ones((1, 64))}, "b": {"kernel": jnp.ones((1, 64))}}
    method = learned.gated(lambda a, key: jax.random.uniform(key, a.shape), logit=0.0)
    logits = method.init(params, KEY)
    drawn = [
        np.asarray(z["kernel"][0])
        for key in jax.random.split(KEY, 2)
        for z in method.effective(params, logits, None, key).values()
    ]
    assert len({tuple(z) for z in drawn}) == 4
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(4, 1)]).max() < 0.5


# ---- the Lagrangian ----


def _open(params, logits):
    """The expected sparsity of gates that are open with probability sigmoid(a)."""
    del params
    return gates.expected_sparsity(logits, jax.tree.map(jax.nn.sigmoid, logits))


def test_a_constrained_method_by_hand():
    """L + lambda_1 d + lambda_2 d^2, d = target - s: down for gates, up for lambdas."""
    price = lambda params, logits, step: 0.3 * jnp.sum(logits["kernel"])  # noqa: E731
    method = learned.constrained(
        learned.gated(_certain, logit=0.5, penalty=price),
        _open,
        lambda step: jnp.float32([0.5, 0.75, 1.0])[step],
    )
    state, info, _ = _run(method, scores=2.0)
    w, a, one, two = W.copy(), np.full(W.shape, 0.5), 0.0, 0.0
    for step, target in enumerate([0.5, 0.75, 1.0]):
        c = _sigma(a)
        g, gap = gradient(w * c, step), target - (1 - c.mean())
        penalty = 0.3 * a.sum() + one * gap + two * gap**2
        # ds/da = -c (1 - c) / n, so the gap's derivative is its negative.
        slope = (one + 2 * two * gap) * c * (1 - c) / a.size
        w, a = w - 0.1 * c * g, a - 2.0 * (w * g * c * (1 - c) + 0.3 + slope)
        one, two = one + 2.0 * gap, two + 2.0 * gap**2
    logits, multipliers = state.aux
    np.testing.assert_allclose(info.penalty, penalty, rtol=1e-4)
    np.testing.assert_allclose(logits["kernel"], a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([*multipliers], [one, two], rtol=1e-4)


def test_a_constraint_leaves_the_rest_of_a_method_as_it_is():
    """Projections, masks, weights and `finish` are the method's own."""
    plain = learned.thresholded(0.5, final=0.75)
    bound = learned.constrained(plain, lambda p, s: jnp.zeros(()), 0.0)
    params = {"a": {"kernel": PARAMS["kernel"]}, "b": {"kernel": jnp.float32(V)}}
    aux = plain.settle(params, plain.init(params, KEY), 0)
    pair = bound.settle(params, bound.init(params, KEY), 0)
    assert pair == (aux, controllers.init_multipliers())
    masks = plain.masks(params, aux, None, 0)
    for own, other in (
        (masks, bound.masks(params, pair, None, 0)),
        (
            plain.effective(params, aux, masks, KEY),
            bound.effective(params, pair, masks, KEY),
        ),
        (plain.finish(params, aux, masks, 0), bound.finish(params, pair, masks, 0)),
    ):
        for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_target_outside_its_range_is_refused_at_once():
    with pytest.raises(jp.PruningError, match=r"1\.5"):
        learned.constrained(learned.gated(_certain, logit=0.0), _open, 1.5)
