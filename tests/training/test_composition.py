"""One pruner under every way that Optax and JAX have of running an optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jprune as jp
from jprune import testing
from jprune.testing import _pruners

pytestmark = pytest.mark.others_code

SPARSITY = 0.75


@pytest.fixture
def params():
    return testing.example_params()


def _loss(params, x):
    """A loss with a gradient everywhere, different at each step."""
    return sum(
        jnp.sum(jnp.square(w - x).astype(jnp.float32)) for w in jax.tree.leaves(params)
    )


def _train(tx, params, steps=6):
    @jax.jit
    def step(params, state, x):
        updates, state = tx.update(jax.grad(_loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for i in range(steps):
        params, state = step(params, state, jnp.sin(jnp.float32(i)))
    return params, state


def _tx(every=2, **kwargs):
    return jp.sparsify(
        optax.adamw(1e-2), jp.recipes.magnitude(SPARSITY), every=every, **kwargs
    )


def _zeros(params):
    """Path -> fraction of exact zeros."""
    return {
        path: float(jnp.mean(w == 0))
        for path, w in zip(jp.leaf_paths(params), jax.tree.leaves(params), strict=True)
    }


KERNELS = {"blocks/0/kernel", "blocks/1/kernel", "conv/kernel", "query/kernel"}


def _check(params, state, sparsity=SPARSITY, kernels=KERNELS):
    zeros = _zeros(params)
    for path, fraction in zeros.items():
        if path in kernels:
            assert fraction == pytest.approx(sparsity, abs=0.01), path
        else:
            assert fraction < 0.02, path
    masks = jp.masks_of(state)
    jp.masks.check(params, masks)
    for w, m in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        assert not np.any(np.asarray(w)[np.broadcast_to(~np.asarray(m), w.shape)])


def test_alone(params):
    _check(*_train(_tx(), params))


def test_in_a_chain(params):
    # What comes after sparsify in a chain scales its -w too, so it goes last.
    tx = optax.chain(optax.clip_by_global_norm(1.0), _tx())
    _check(*_train(tx, params))


def test_partition_of_optimizers(params):
    """Different rules for different layers, some of them dense."""
    tx = optax.partition(
        {
            "conv": jp.sparsify(optax.adamw(1e-2), jp.recipes.magnitude(0.5)),
            "dense": jp.sparsify(optax.sgd(1e-2), jp.recipes.magnitude(0.9)),
            "rest": optax.adam(1e-2),
        },
        lambda tree: jp.label(
            tree, [("conv/.*", "conv"), ("blocks/.*", "dense"), (".*", "rest")]
        ),
    )
    trained, state = _train(tx, params)
    zeros = _zeros(trained)
    assert zeros["conv/kernel"] == pytest.approx(0.5, abs=0.01)
    assert zeros["blocks/0/kernel"] == pytest.approx(0.9, abs=0.01)
    assert zeros["query/kernel"] == 0
    assert jp.masks_of(state)["query"]["kernel"].shape == ()


@pytest.mark.parametrize("packed", [False, True])
def test_masks_of_a_partition_keep_what_other_optimizers_train(params, packed):
    """A False there would wipe those leaves where the masks are applied again."""
    tx = optax.partition(
        {
            "sparse": jp.sparsify(optax.sgd(1e-2), _half_of_all(), packed=packed),
            "dense": optax.adam(1e-2),
        },
        lambda tree: jp.label(tree, [("conv/.*", "sparse"), (".*", "dense")]),
    )
    trained, state = _train(tx, params)
    masks = jp.masks_of(state, params)
    for path, mask in jp.tree.by_path(masks).items():
        if path != "conv/kernel":
            assert mask.shape == () and bool(mask), path  # noqa: PT018
    again = jp.tree.by_path(jp.masks.apply(trained, masks))
    for path, w in jp.tree.by_path(trained).items():
        np.testing.assert_array_equal(again[path], w)
    assert jp.sparsity(params, masks) == 0.5


def _half_of_all():
    return optax.chain(jp.score_by_magnitude(), jp.keep_top(0.5, scope="global"))


def test_random_masks_are_drawn_once(params):
    """Refreshed at every step, they are the masks of the first refresh."""
    kernels = [p for p in jp.leaf_paths(params) if p in KERNELS]
    size = sum(jp.tree.by_path(params)[path].size for path in kernels)
    params = jax.tree.map(lambda w: jnp.where(w == 0, 1.0, w), params)
    pruner = jp.recipes.random_erk(0.75, jax.random.key(0))
    tx = jp.sparsify(optax.adamw(1e-2, weight_decay=0.1), pruner)
    first = jp.prune(params, pruner)[1]
    trained, state = _train(tx, params)
    for a, b in zip(
        jax.tree.leaves(first), jax.tree.leaves(jp.masks_of(state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    left = sum(np.count_nonzero(jp.tree.by_path(trained)[path]) for path in kernels)
    assert left == size - round(size * 0.75)


def test_random_masks_of_a_rising_schedule_are_nested():
    params = {"a": jnp.ones((30, 40)), "b": jnp.ones((50, 20))}
    for scope in ("leaf", "global"):
        pruner = optax.chain(
            jp.score_by_random(jax.random.key(0)),
            jp.keep_top(jp.cubic(0.9, begin=0, steps=4), scope=scope),
        )
        update, state = jax.jit(pruner.update), pruner.init(params)
        before = jax.tree.map(lambda w: np.ones(w.shape, bool), params)
        for step in range(6):
            masks, state = update(None, state, params, step=jnp.int32(step))
            for key in params:
                assert not np.any(masks[key] & ~before[key])
            before = masks
        assert sum(int(m.sum()) for m in masks.values()) == 220


def test_partition_of_pruners(params):
    """Different rules for different layers inside one sparsify."""
    pruner = optax.partition(
        {"conv": jp.recipes.n_of_m(2, 4), "rest": jp.recipes.magnitude(0.9)},
        lambda tree: jp.label(tree, [("conv/.*", "conv"), (".*", "rest")]),
    )
    trained, state = _train(jp.sparsify(optax.adamw(1e-2), pruner), params)
    zeros = _zeros(trained)
    assert zeros["conv/kernel"] == 0.5
    assert zeros["query/kernel"] == pytest.approx(0.9, abs=0.01)
    assert zeros["conv/bias"] == 0
    jp.masks.check(trained, jp.masks_of(state))


def test_multi_steps(params):
    tx = optax.MultiSteps(_tx(), every_k_schedule=2)
    trained, state = _train(tx, params, steps=8)
    _check(trained, state)


def test_accumulated_steps_equal_one_large_step(params):
    """Two half batches through MultiSteps give the masks of the whole batch."""
    grads = [_pruners.random_like(params, seed) for seed in (1, 2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    snip = jp.sparsify(optax.sgd(0.1), jp.recipes.snip(SPARSITY), end=0)
    _, whole = snip.update(mean, snip.init(params), params)
    tx = optax.MultiSteps(snip, every_k_schedule=2)
    state = tx.init(params)
    for g in grads:
        _, state = tx.update(g, state, params)
    for a, b in zip(
        jax.tree.leaves(jp.masks_of(whole)),
        jax.tree.leaves(jp.masks_of(state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_inject_hyperparams_into_the_pruner(params):
    """A sparsity in the state can be changed between steps without a new trace."""
    pruner = optax.inject_hyperparams(jp.recipes.magnitude)(sparsity=0.5)
    tx = jp.sparsify(optax.adamw(1e-2), pruner)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        grads = jax.grad(_loss)(params, jnp.float32(0.3))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    trained, state = step(params, state)
    assert _zeros(trained)["conv/kernel"] == pytest.approx(0.5, abs=0.01)
    state.pruner.hyperparams["sparsity"] = jnp.asarray(0.9, jnp.float32)
    trained, state = step(trained, state)
    assert _zeros(trained)["conv/kernel"] == pytest.approx(0.9, abs=0.01)
    assert len(traces) == 1


def test_inject_hyperparams_into_the_optimizer(params):
    tx = optax.inject_hyperparams(
        lambda learning_rate: jp.sparsify(
            optax.adamw(learning_rate), jp.recipes.magnitude(SPARSITY)
        )
    )(learning_rate=optax.linear_schedule(1e-2, 1e-3, 5))
    _check(*_train(tx, params))


def test_scan_equals_a_python_loop(params):
    tx = _tx()

    @jax.jit
    def scanned(params):
        def body(carry, x):
            params, state = carry
            grads = jax.grad(_loss)(params, x)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        xs = jnp.sin(jnp.arange(6, dtype=jnp.float32))
        return lax.scan(body, (params, tx.init(params)), xs)[0]

    trained, state = scanned(params)
    _check(trained, state)
    looped, _ = _train(tx, params)
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(looped), strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_vmap_over_sparsities(params):
    """One program trains several sparsities, each as it would be alone."""
    sparsities = jnp.array([0.25, 0.5, 0.9])

    def run(sparsity):
        pruner = jp.recipes.gradual_magnitude(sparsity, begin=0, steps=3)
        tx = jp.sparsify(optax.adamw(1e-2), pruner, every=1, end=3)
        return _train(tx, params)[0]

    batched = jax.jit(jax.vmap(run))(sparsities)
    for i, sparsity in enumerate(sparsities.tolist()):
        one = jax.tree.map(lambda w, i=i: w[i], batched)
        assert _zeros(one)["conv/kernel"] == pytest.approx(sparsity, abs=0.01)
        alone = run(sparsity)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_params_stay_bfloat16():
    params = testing.example_params(dtype=jnp.bfloat16)
    trained, state = _train(_tx(), params)
    assert {w.dtype for w in jax.tree.leaves(trained)} == {jnp.dtype(jnp.bfloat16)}
    masks = jp.masks_of(state)
    for w, m in zip(jax.tree.leaves(trained), jax.tree.leaves(masks), strict=True):
        assert not np.any(np.asarray(w)[np.broadcast_to(~np.asarray(m), w.shape)])


def test_donated_buffers(params):
    tx = _tx()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        updates, state = tx.update(jax.grad(_loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    first = params["conv"]["kernel"]
    state = tx.init(params)
    for i in range(6):
        params, state = step(params, state, jnp.sin(jnp.float32(i)))
    assert first.is_deleted()
    _check(params, state)


def test_refresh_from_outside(params):
    """every=None and jp.refresh take the same masks as a refresh in the step."""
    pruner = jp.recipes.magnitude(SPARSITY)
    outside = jp.sparsify(optax.adamw(1e-2), pruner, every=None)
    refresh = jax.jit(functools.partial(jp.refresh, pruner))
    inside = jp.sparsify(optax.adamw(1e-2), pruner, every=3)
    p, q = params, params
    s, t = outside.init(p), inside.init(q)
    for i in range(7):
        x = jnp.sin(jnp.float32(i))
        if i % 3 == 0:
            p, s = refresh(s, p)
        u, s = outside.update(jax.grad(_loss)(p, x), s, p)
        # The step inside takes the gradient before the refresh: give it the same.
        masked = jp.apply(q, jp.masks_of(s))
        v, t = inside.update(jax.grad(_loss)(masked, x), t, q)
        p, q = optax.apply_updates(p, u), optax.apply_updates(q, v)
    _check(p, s)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_iterative_pruning_with_rewinding(params):
    """After each round survivors start again from the weights of step 2."""
    rounds = {"every": 5, "begin": 5, "end": 10}
    schedule = jp.geometric(0.75, begin=5, steps=10, rounds=2)
    tx = jp.sparsify(
        jp.rewind(optax.adam(1e-2), to=2, **rounds),
        jp.recipes.magnitude(schedule, scope="global"),
        **rounds,
    )
    state, anchor = tx.init(params), None
    for i in range(11):
        if i == 2:
            anchor = params
        grads = jax.grad(_loss)(params, jnp.sin(jnp.float32(i)))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if i in (5, 10):
            ticket = jp.apply(anchor, jp.masks_of(state))
            for a, b in zip(
                jax.tree.leaves(ticket), jax.tree.leaves(params), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
            removed = float(jp.sparsity(params, jp.masks_of(state)))
            assert removed == pytest.approx(0.5 if i == 5 else 0.75, abs=1e-3)
            assert int(optax.tree.get(state.inner.inner, "count")) == 2
