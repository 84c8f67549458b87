"""Scores that are ranked: the link against loops in float64, and its identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.least_squares import BATCHES, KEY, PARAMS, W, gradient, loss

import jprune as jp
from jprune import learned
from jprune.learned import effective

pytestmark = pytest.mark.others_code

S = np.random.default_rng(1).normal(size=(5, 4))


def _top(scores, kept):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


def _from_s(params, key):
    del key
    return jax.tree.map(lambda w: jnp.asarray(S, jnp.float32), params)


def _run(method, steps=5, weights=0.1, scores=1.0):
    loop = learned.learn_masks(
        loss, method, weights=optax.sgd(weights), scores=optax.sgd(scores)
    )
    state = loop.init(PARAMS, KEY)
    for batch in BATCHES[:steps]:
        state, _ = loop.step(state, batch)
    return state, loop.finish(state)


RULES = {  # what is ranked, the sign of z, and ds of w g
    "score_masked": (effective.score_masked, lambda s: s, 1, lambda s: 1),
    "size_masked": (effective.size_masked, np.abs, 1, np.sign),
    "sign_masked": (effective.sign_masked, np.abs, np.sign, lambda s: 1),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_loop_is_the_one_in_float64(rule):
    """m = the best half, z = R(w, m, s), and a penalty 0.02 |s|^2 on the scores."""
    masked, ranked, flip, back = RULES[rule]
    pruner = jp.keep_top(0.5)
    if rule != "score_masked":
        pruner = optax.chain(jp.score_by_magnitude(), pruner)
    method = learned.score_ranked(
        pruner,
        init=_from_s,
        masked=masked,
        penalty=lambda params, s, step: 0.02 * jnp.sum(s["kernel"] ** 2),
    )
    w, s = W.copy(), S.copy()
    first = _top(ranked(s), 10)
    for step in range(5):
        sign = flip(s) if callable(flip) else flip
        m = _top(ranked(s), 10)
        g = gradient(w * sign * m, step)
        w, s = w - 0.1 * m * sign * g, s - 1.0 * (back(s) * w * g + 0.04 * s)
    state, (params, masks) = _run(method)
    m = _top(ranked(s), 10)
    assert np.any(m != first)
    np.testing.assert_allclose(state.aux["kernel"], s, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(masks["kernel"], m)
    sign = flip(s) if callable(flip) else flip
    np.testing.assert_allclose(params["kernel"], w * sign * m, rtol=1e-4, atol=1e-5)


def test_nothing_pruned_is_dense_training():
    """At sparsity 0 the weights step along the dense gradient, the scores along w g."""
    state, (params, masks) = _run(learned.score_ranked(jp.keep_top(0.0)))
    w, s = PARAMS["kernel"], jnp.zeros((5, 4))
    for batch in BATCHES:
        g = jax.grad(loss)({"kernel": w}, batch)["kernel"]
        w, s = w - 0.1 * g, s - w * g
    assert bool(masks["kernel"].all())
    np.testing.assert_allclose(params["kernel"], w, rtol=1e-6)
    np.testing.assert_allclose(state.aux["kernel"], s, rtol=1e-5, atol=1e-6)


def test_finish_is_by_its_own_pruner():
    method = learned.score_ranked(
        jp.keep_top(0.25), init=_from_s, final=jp.keep_top(0.75)
    )
    state, (params, masks) = _run(method, steps=1)
    s = np.asarray(state.aux["kernel"])
    np.testing.assert_array_equal(state.masks["kernel"], _top(s, 15))
    np.testing.assert_array_equal(masks["kernel"], _top(s, 5))
    np.testing.assert_array_equal(
        params["kernel"], np.where(_top(s, 5), state.params["kernel"], 0)
    )


def test_a_pruner_that_pools_masks_channels():
    """The scores of a channel still move one by one, by w g."""
    pooled = optax.chain(jp.pool_over_axes(jnp.sum, keep="output"), jp.keep_top(0.5))
    state, (_, masks) = _run(learned.score_ranked(pooled, init=_from_s), steps=1)
    m = _top(S.sum(0, keepdims=True), 2)
    s = S - W * gradient(W * m, 0)
    np.testing.assert_allclose(state.aux["kernel"], s, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(masks["kernel"], _top(s.sum(0, keepdims=True), 2))


def test_piggyback_in_a_few_lines():
    """A method that is no recipe: frozen weights, and scores against a fixed threshold.

    Mallya et al., Piggyback: Adapting a Single Network to Multiple Tasks by Learning to
    Mask Weights, 2018, arXiv:1801.06519: scores start at 1e-2, the threshold is 5e-3.
    """
    ones = lambda params, key: jax.tree.map(lambda w: 0.01 + 0 * w, params)  # noqa: E731
    method = learned.learn_masks(
        loss,
        learned.score_ranked(jp.keep_above(5e-3), init=ones),
        weights=optax.set_to_zero(),
        scores=optax.sgd(0.02),
    )
    state, s = method.init(PARAMS, KEY), np.full(W.shape, 0.01)
    for step, batch in enumerate(BATCHES):
        s = s - 0.02 * W * gradient(W * (s > 5e-3), step)
        state, info = method.step(state, batch)
        np.testing.assert_allclose(info.sparsity, np.mean(s <= 5e-3), atol=1e-6)
    assert 0 < np.sum(s > 5e-3) < s.size
    np.testing.assert_array_equal(method.finish(state)[1]["kernel"], s > 5e-3)


# ---- swaps ----


def test_a_share_of_one_ranks_anew_and_a_share_of_none_never_changes():
    """Counts of each leaf stay those of the first masks."""
    ranked = learned.score_ranked(jp.keep_top(0.4), init=_from_s)
    free, _ = _run(learned.swapped(ranked, optax.constant_schedule(1.0)))
    plain, _ = _run(ranked)
    np.testing.assert_array_equal(free.masks["kernel"], plain.masks["kernel"])
    assert np.any(np.asarray(free.masks["kernel"]) != _top(S, 12))
    fixed, _ = _run(learned.swapped(ranked, optax.constant_schedule(0.0)))
    np.testing.assert_array_equal(fixed.masks["kernel"], _top(S, 12))


def test_the_share_is_that_of_the_step():
    """By hand: of the swaps that are possible after a step, half are made."""
    ranked = learned.score_ranked(jp.keep_top(0.5), init=_from_s)
    share = lambda step: jnp.asarray([9.0, 0.0, 0.5])[step]  # noqa: E731
    method = learned.swapped(ranked, share)
    one, _ = _run(method, steps=1, scores=8.0)
    np.testing.assert_array_equal(one.masks["kernel"], _top(S, 10))
    two, _ = _run(method, steps=2, scores=8.0)
    s = np.asarray(two.aux["kernel"])
    possible = np.sum(_top(s, 10) & ~_top(S, 10))
    made = np.sum(np.asarray(two.masks["kernel"]) & ~_top(S, 10))
    assert possible > 1
    assert made == -(-possible // 2)


def test_swaps_of_channels_are_refused():
    """A mask of one entry for each column, and scores for each weight."""
    columns = optax.chain(jp.pool_over_axes(jnp.sum, keep="output"), jp.keep_top(0.5))
    ranked = learned.score_ranked(columns, init=_from_s)
    method = learned.swapped(ranked, optax.constant_schedule(1.0))
    with pytest.raises(jp.PruningError, match=r"'kernel' has a mask of shape \(1, 4\)"):
        _run(method, steps=0)


# ---- the old name ----


def test_the_old_score_masked_of_trees_works_for_one_release():
    with pytest.warns(DeprecationWarning, match=r"score_ranked\(pruner\)\.effective"):
        old = learned.score_masked
    masks = {"kernel": jnp.asarray(S > 0)}
    z, pullback = jax.vjp(lambda w, s: old(w, s, masks, None), PARAMS, PARAMS)
    np.testing.assert_array_equal(z["kernel"], np.float32(W) * (S > 0))
    to_w, to_s = pullback(PARAMS)
    np.testing.assert_array_equal(to_w["kernel"], np.float32(W) * (S > 0))
    np.testing.assert_allclose(to_s["kernel"], W * W, rtol=1e-6)
    with pytest.raises(AttributeError, match="no attribute 'never_was'"):
        learned.never_was  # noqa: B018
