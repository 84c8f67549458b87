"""Rewinding: what survives a round goes back to where it was, bit by bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp

pytestmark = pytest.mark.others_code


def _normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _params(dtype=jnp.float32):
    return {
        "first": {"kernel": _normal(8, 6, dtype=dtype), "bias": jnp.ones(6, dtype)},
        "second": {"kernel": _normal(6, 5, seed=1, dtype=dtype)},
    }


def _grads(t, params):
    return jax.tree.map(lambda w: _normal(*w.shape, seed=7 + t, dtype=w.dtype), params)


def _train(tx, params, steps, grads=_grads):
    """An ordinary loop; yields what stands after each step."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(steps):
        params, state = step(params, state, grads(t, params))
        yield params, state


def _ulp(x, y):
    """The distance of float32 neighbours at the larger of two numbers."""
    return np.spacing(np.maximum(np.abs(x), np.abs(y)).astype(np.float32))


def test_rewinding_lands_on_the_anchor_and_turns_the_clock_back():
    seen = {}
    rate = optax.piecewise_constant_schedule(0.1, {4: 0.1})
    inner = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(rate))
    tx = jp.rewind(inner, to=2, every=5, begin=8, end=15)
    params = _params()
    before = params
    for t, (after, state) in enumerate(_train(tx, params, 17)):
        adam, schedule = state.inner
        if t == 1:
            anchor, moments = after, adam
        if t in (8, 13, 15):  # 8, 13, and the end
            for a, w, b in zip(
                *map(jax.tree.leaves, (anchor, before, after)), strict=True
            ):
                assert np.all(np.abs(np.asarray(a) - b) <= _ulp(a, w))
            for a, b in zip(*map(jax.tree.leaves, (moments, adam)), strict=True):
                np.testing.assert_array_equal(a, b)
            assert int(adam.count) == int(schedule.count) == 2
        seen[t] = int(schedule.count)
        before = after
    clock = [1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6, 2, 3, 2, 3]
    assert list(seen.values()) == clock
    assert int(state.count) == 17


def test_rewinding_within_sparsify_keeps_the_mask_of_the_trained_weights():
    rounds = {"every": 4, "begin": 4, "end": 8}
    sparsity = jp.geometric(1 - 0.8**2, begin=4, steps=8, rounds=2)
    pruner = jp.recipes.magnitude(sparsity, scope="global")
    tx = jp.sparsify(jp.rewind(optax.sgd(0.3), to=1, **rounds), pruner, **rounds)
    params = before = _params()
    n = 8 * 6 + 6 * 5
    for t, (after, state) in enumerate(_train(tx, params, 10)):
        if t == 0:
            anchor = after
        masks = jp.masks_of(state)
        if t in (4, 8):
            kept = n - round(n * (1 - 0.8 ** (1 if t == 4 else 2)))
            scores = np.concatenate(
                [np.abs(np.ravel(before[k]["kernel"])) for k in ("first", "second")]
            )
            cut = np.sort(scores)[-kept]
            for key in ("first", "second"):
                a, w, b = (
                    np.asarray(p[key]["kernel"]) for p in (anchor, before, after)
                )
                np.testing.assert_array_equal(masks[key]["kernel"], np.abs(w) >= cut)
                expected = np.where(np.abs(w) >= cut, a, 0)
                assert np.all(np.abs(b - expected) <= _ulp(a, w))
                assert not b[np.abs(w) < cut].any()
        before = after


@pytest.mark.parametrize("weight", [jnp.bfloat16, jnp.float32])
def test_rewinding_with_gradients_of_another_type_and_donated_buffers(weight):
    inner = optax.sgd(0.5, momentum=0.9, accumulator_dtype=jnp.float32)
    tx = jp.rewind(inner, to=0, every=3)
    params = {"kernel": _normal(5, 5, dtype=weight)}
    start = np.asarray(params["kernel"], np.float32)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        grads = jax.tree.map(lambda w: w.astype(jnp.float32), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(7):
        params, state = step(params, state)
        found = np.asarray(params["kernel"], np.float32)
        assert np.allclose(found, start, rtol=1e-6) == (t in (3, 6))
    assert params["kernel"].dtype == weight
