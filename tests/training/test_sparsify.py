"""The training wrappers: when they act, and that what they do is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

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


def _recorder(size=40):
    """A pruner that writes down the clock at each refresh and prunes nothing."""

    def init(params):
        return jnp.zeros(size, jnp.int32)

    def update(updates, state, params=None, *, step, **extra):
        masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
        return masks, state.at[step].add(1)

    return jp.Pruner(init, update)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ({"every": 10, "begin": 10, "end": 25}, [10, 20, 25]),
        ({"every": 10, "begin": 5, "end": 25}, [5, 15, 25]),
        ({"every": 3, "begin": 2}, [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]),
        ({"end": 0}, [0]),
        ({"begin": 7, "end": 7}, [7]),
        ({"every": 100, "begin": 3, "end": 9}, [3, 9]),
        ({"every": 4, "begin": 40}, []),
        ({"every": None}, []),
        ({}, list(range(30))),
    ],
)
def test_refreshes_happen_exactly_at_the_events(events, expected):
    tx = jp.sparsify(optax.sgd(0.1), _recorder(), **events)
    params = _params()
    grads = _grads(0, params)

    def step(carry, _):
        updates, state = tx.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    start = (params, tx.init(params))
    (_, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=30))(start)
    assert np.flatnonzero(state.pruner).tolist() == expected
    assert int(state.pruner.max(initial=0)) <= 1
    assert int(state.count) == 30
    carry = start  # and without jit, where no branch is traced
    for _ in range(6):
        carry, _ = step(carry, None)
    early = [t for t in expected if t < 6]
    assert np.flatnonzero(carry[1].pruner).tolist() == early


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_the_last_event_lands_on_the_target(scope):
    pruner = jp.recipes.gradual_magnitude(0.8, begin=10, steps=15, scope=scope)
    tx = jp.sparsify(optax.adam(1e-2), pruner, every=10, begin=10, end=25)
    params, found = _params(), []
    for _, state in _train(tx, params, 30):
        found.append(float(jp.sparsity(params, jp.masks_of(state))))
    n = 8 * 6 + 6 * 5
    at_20 = 0.8 * (1 - (1 / 3) ** 3)
    expected = [0] * 20 + [round(n * at_20) / n] * 5 + [round(n * 0.8) / n] * 5
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_masked_training_is_what_a_loop_by_hand_does():
    begin, rate, decay, momentum = 3, 0.05, 0.1, 0.9
    tx = jp.sparsify(
        optax.chain(
            optax.add_decayed_weights(decay), optax.trace(momentum), optax.scale(-rate)
        ),
        jp.recipes.magnitude(0.5),
        begin=begin,
        end=begin,
        where=jp.matching(".*"),
    )
    start = {"kernel": _normal(4, 6)}
    w = np.asarray(start["kernel"], np.float64)
    mask, velocity = np.ones(w.shape, bool), np.zeros(w.shape)
    for t, (params, _) in enumerate(_train(tx, start, 9)):
        if t == begin:
            mask = np.abs(w) > np.sort(np.abs(w).ravel())[w.size // 2 - 1]
        g = np.asarray(_grads(t, start)["kernel"], np.float64)
        velocity = momentum * velocity + np.where(mask, g, 0) + decay * w
        w = np.where(mask, w - rate * velocity, 0)
        np.testing.assert_allclose(params["kernel"], w, atol=1e-5)
        np.testing.assert_array_equal(params["kernel"] == 0, ~mask)


@pytest.mark.parametrize(
    "inner",
    [
        optax.adamw(1e-2, weight_decay=0.1),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-2)),
    ],
    ids=["adamw", "sgd", "lion"],
)
def test_moments_of_what_was_never_trained_stay_zero(inner):
    tx = jp.sparsify(inner, jp.recipes.magnitude(0.7), end=0)
    params = _params()
    *_, (params, state) = _train(tx, params, 5)
    masks, moments = jp.masks_of(state), 0
    for key in ("first", "second"):
        gone = ~np.asarray(masks[key]["kernel"])
        assert gone.sum() == round(0.7 * gone.size)
        assert not np.asarray(params[key]["kernel"])[gone].any()
        assert np.asarray(params[key]["kernel"])[~gone].all()
        for leaf in jax.tree.leaves(state.inner):
            if leaf.shape == gone.shape:
                moments += 1
                assert not np.asarray(leaf)[gone].any()
                assert np.asarray(leaf)[~gone].any()
    assert moments >= 2
    assert masks["first"]["bias"].shape == ()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_exact_zeros_in_spite_of_momentum_and_decay(dtype):
    # Pruned late, when the moments are not zero, and in turn at other places.
    random = jp.score_by_random(jax.random.key(0), redraw=True)
    pruner = optax.chain(random, jp.keep_top(0.5))
    tx = jp.sparsify(
        optax.adamw(1e-2, eps=1e-4, weight_decay=0.3),
        pruner,
        every=3,
        begin=4,
        end=13,
    )
    for t, (params, state) in enumerate(_train(tx, _params(dtype), 16)):
        masks = jp.masks_of(state)
        for w, m in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
            assert w.dtype == dtype
            assert not np.any(np.where(m, 0, w))
        assert (float(jp.sparsity(params, masks)) == 0.5) == (t >= 4)


def test_wide_updates_of_narrow_weights_and_the_reverse():
    for weight, update in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)):
        cast = functools.partial(jax.tree.map, lambda g, to=update: g.astype(to))
        inner = optax.stateless(lambda g, _, cast=cast: cast(g))
        tx = jp.sparsify(inner, jp.recipes.magnitude(0.5), end=0)
        params = {"kernel": _normal(16, 16, dtype=weight) * 3}
        updates, state = tx.update(params, tx.init(params), params)
        assert updates["kernel"].dtype == jnp.float32
        moved = optax.apply_updates(params, updates)["kernel"]
        assert moved.dtype == weight
        np.testing.assert_array_equal(moved == 0, ~jp.masks_of(state)["kernel"])


def test_sparsity_zero_is_the_optimizer_alone():
    inner = optax.adamw(1e-2)
    tx = jp.sparsify(inner, jp.recipes.magnitude(0.0), every=2)
    params = alone = _params()
    state, inner_state = tx.init(params), inner.init(params)
    for t in range(4):  # without jit, which may round either in its own way
        updates, state = tx.update(_grads(t, params), state, params)
        params = optax.apply_updates(params, updates)
        updates, inner_state = inner.update(_grads(t, alone), inner_state, alone)
        alone = optax.apply_updates(alone, updates)
        for a, b in zip(
            jax.tree.leaves((params, state.inner)),
            jax.tree.leaves((alone, inner_state)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_track_sees_every_step():
    tx = jp.sparsify(
        optax.sgd(0.1),
        jp.keep_top(0.5),
        track=jp.score_by_movement(),
        every=4,
        begin=6,
        end=6,
    )
    params = _params()
    key, total, before = "second", 0.0, params
    for t, (after, state) in enumerate(_train(tx, params, 9)):
        w = np.asarray(before[key]["kernel"], np.float64)
        total = total - w * np.asarray(_grads(t, params)[key]["kernel"], np.float64)
        found = state.track.total[key]["kernel"]
        np.testing.assert_allclose(found, total, atol=1e-4)
        if t == 6:
            expected = total > np.sort(total.ravel())[14]
        if t >= 6:
            np.testing.assert_array_equal(state.masks[key]["kernel"], expected)
        before = after


def test_a_refresh_from_outside_equals_one_inside():
    pruner = jp.recipes.gradual_magnitude(0.8, begin=2, steps=4)
    inside = jp.sparsify(optax.adamw(1e-2), pruner, every=2, begin=2, end=6)
    outside = jp.sparsify(optax.adamw(1e-2), pruner, every=None)
    refresh = jax.jit(functools.partial(jp.refresh, pruner))
    update = jax.jit(outside.update)
    params = _params()
    state = outside.init(params)
    for t, (expected, inner_state) in enumerate(_train(inside, params, 9)):
        grads = _grads(t, params)
        if t in (2, 4, 6):
            params, state = refresh(state, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for a, b in zip(
            jax.tree.leaves((params, state.masks)),
            jax.tree.leaves((expected, inner_state.masks)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=0)
    assert float(jp.sparsity(params, jp.masks_of(state))) == np.float32(62 / 78)


@pytest.mark.parametrize("packed", [False, True])
def test_a_refresh_from_outside_of_a_state_in_boxes(packed):
    """Flax NNX keeps params in one kind of Variable, and the state in another."""
    pruner = optax.chain(jp.score_by_magnitude(), optax.ema(0.5), jp.keep_top(0.5))
    where = jp.matching(".*kernel", among=jp.is_float)
    tx = jp.sparsify(optax.adam(0.1), pruner, every=None, where=where, packed=packed)
    model = nnx.Linear(6, 4, use_bias=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def refresh(model, optimizer):
        given = optimizer.opt_state, nnx.state(model, nnx.Param)
        params, opt_state = jp.refresh(pruner, *given, where=where)
        nnx.update(model, params)
        nnx.update(optimizer.opt_state, nnx.state(opt_state))

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.sum(jnp.square(model(jnp.ones((2, 6)))))  # noqa: E731
        optimizer.update(model, nnx.grad(loss)(model))

    step(model, optimizer)
    weights = np.abs(np.asarray(model.kernel[...]))
    refresh(model, optimizer)
    expected = weights > np.sort(weights.ravel())[11]
    for _ in range(2):
        np.testing.assert_array_equal(model.kernel[...] != 0, expected)
        masks = jp.masks_of(optimizer.opt_state, nnx.state(model, nnx.Param))
        np.testing.assert_array_equal(jax.tree.leaves(masks)[0], expected)
        step(model, optimizer)
    smoothed = next(x for x in jax.tree.leaves(optimizer.opt_state.pruner) if x.ndim)
    np.testing.assert_allclose(smoothed, weights / 2, rtol=1e-6)


def test_a_refresh_with_another_pruner_is_refused():
    tx = jp.sparsify(optax.sgd(0.1), jp.recipes.magnitude(0.5), every=None)
    params = _params()
    for other in (jp.recipes.random_erk(0.5, jax.random.key(0)), _channels()):
        with pytest.raises(jp.PruningError, match="same pruner and where= to refresh"):
            jp.refresh(other, tx.init(params), params)


def _channels():
    pool = jp.pool_over_axes(jp.l2_norm, keep="output")
    return optax.chain(jp.score_by_magnitude(), pool, jp.keep_top(0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tx, p: jp.sparsify(tx, p, every=0), "got 0"),
        (lambda tx, p: jp.sparsify(tx, p, begin=-1), "got -1 and None"),
        (lambda tx, p: jp.sparsify(tx, p, begin=5, end=4), "got 5 and 4"),
        (lambda tx, p: jp.rewind(tx, to=-1, every=2), "got to=-1 and begin=1"),
        (lambda tx, p: jp.rewind(tx, to=5, every=2, begin=4), "got to=5 and begin=4"),
        (lambda tx, p: jp.rewind(tx, to=1, every=2, end=2), "got 3 and 2"),
    ],
)
def test_events_out_of_order_are_refused(make, message):
    with pytest.raises(jp.PruningError, match=message):
        make(optax.sgd(0.1), jp.recipes.magnitude(0.5))


def test_what_is_tracked_is_what_can_be_pruned():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    pruner = jp.keep_top(0.5)
    tx = jp.sparsify(optax.sgd(0.1), pruner, track=jp.score_by_movement())
    state = tx.init(params)
    assert jp.leaf_paths(state.track.total) == ["kernel"]
    _, state = tx.update(params, state, params)
    assert state.track.total["kernel"].tolist() == [[-1, -1], [-1, -1]]
    assert jp.masks_of(state)["kernel"].tolist() == [[True, True], [False, False]]
