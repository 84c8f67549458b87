"""What the optimizer remembers of pruned weights: kept, or exact zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import testing
from jprune.testing import _pruners

pytestmark = pytest.mark.others_code
STEPS = 12


def _script(shape, seed=0):
    """Masks that come and go at random: (steps, *shape)."""
    return np.random.default_rng(seed).random((STEPS, *shape)) < 0.6


def _scripted(script):
    """A pruner that takes its masks from a script, by the step."""
    script = jax.tree.map(jnp.asarray, script)

    def update(updates, state, params=None, *, step, **extra):
        return jax.tree.map(lambda s, _: s[step], script, params), state

    return jp.Pruner(lambda params: optax.EmptyState(), update)


def _run(tx, params, grads):
    """Yields what stands after each step; the loop is an ordinary one."""
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)

    @jax.jit
    def step(params, state, t):
        updates, state = tx.update(jax.tree.map(lambda g: g[t], grads), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(STEPS):
        params, state = step(params, state, t)
        yield params, state


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("moments", ["keep", "zero"])
def test_adamw_written_by_hand(moments, packed):
    rate, b1, b2, eps, decay, every = 0.05, 0.8, 0.9, 1e-6, 0.1, 3
    rng = np.random.default_rng(1)
    start, grads = rng.normal(size=(5, 7)), rng.normal(size=(STEPS, 5, 7))
    script = _script((5, 7))
    tx = jp.sparsify(
        optax.adamw(rate, b1, b2, eps, weight_decay=decay),
        _scripted({"kernel": script}),
        every=every,
        moments=moments,
        packed=packed,
    )
    w, mu, nu, regrown = start, np.zeros((5, 7)), np.zeros((5, 7)), 0
    mask = np.ones((5, 7), bool)
    run = _run(tx, {"kernel": jnp.asarray(start, jnp.float32)}, {"kernel": grads})
    for t, (params, state) in enumerate(run):
        before = mask
        if t % every == 0:
            mask = script[t]
        if moments == "zero":
            mu, nu = np.where(mask, mu, 0), np.where(mask, nu, 0)
        g = np.where(mask, grads[t], 0)
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        hat = mu / (1 - b1 ** (t + 1)) / (np.sqrt(nu / (1 - b2 ** (t + 1))) + eps)
        w = np.where(mask, w - rate * (hat + decay * w), 0)
        adam = state.inner[0]
        np.testing.assert_allclose(params["kernel"], w, atol=1e-5)
        np.testing.assert_allclose(adam.mu["kernel"], mu, atol=1e-6)
        np.testing.assert_allclose(adam.nu["kernel"], nu, atol=1e-6)
        new = mask & ~before
        regrown += new.sum()
        if moments == "zero":
            assert not np.asarray(adam.mu["kernel"])[~mask].any()
            assert not np.asarray(adam.nu["kernel"])[~mask].any()
            # Fresh: as after the first step of a new optimizer.
            fresh = (1 - b2) * grads[t][new] ** 2
            np.testing.assert_allclose(adam.nu["kernel"][new], fresh, rtol=1e-5)
        elif t >= every:
            assert np.asarray(adam.mu["kernel"])[~mask].any()
    assert regrown > 10


def _params():
    shapes = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "out": {"kernel": (4, 6)}}
    draw = functools.partial(jax.tree.map, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(2)
    return draw(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes)


def _labels(params):
    return jp.label(params, [("conv/.*", "a"), (".*", "b")])


_OPTIMIZERS = {  # and how many arrays in trees like the params' each holds
    "adamw": (lambda: optax.adamw(0.1, weight_decay=0.1), 2),
    "lion": (lambda: optax.lion(0.1), 1),
    "decay into momentum": (
        lambda: optax.chain(
            optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-0.1)
        ),
        1,
    ),
    "clipped amsgrad": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.amsgrad(0.1)),
        3,
    ),
    "injected": (lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1), 2),
    "MultiSteps": (lambda: optax.MultiSteps(optax.adam(0.1), 2), 3),
    "partition": (
        lambda: optax.partition({"a": optax.adam(0.1), "b": optax.adam(0.2)}, _labels),
        2,
    ),
    "masked by flags": (
        lambda: optax.masked(optax.adam(0.1), lambda p: jp.tree.flags(jp.is_kernel, p)),
        2,
    ),
    "masked by a prefix": (
        lambda: optax.chain(
            optax.masked(optax.adam(0.1), {"conv": True, "out": False}),
            optax.masked(optax.trace(0.9), {"conv": False, "out": True}),
        ),
        None,
    ),
    "bfloat16 momentum": (
        lambda: optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16),
        1,
    ),
}


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_moments_are_exact_zeros_under_every_optimizer(name):
    make, copies = _OPTIMIZERS[name]
    params = _params()
    grads = jax.tree.map(lambda w: np.stack([w] * STEPS), params)
    script = {
        "conv": {"kernel": _script((3, 3, 2, 4), 3), "bias": np.ones((STEPS, 4), bool)},
        "out": {"kernel": _script((4, 6), 4)},
    }
    tx = jp.sparsify(make(), _scripted(script), where=jp.matching(".*"), moments="zero")
    kernels = {(3, 3, 2, 4): "conv", (4, 6): "out"}
    for t, (_, state) in enumerate(_run(tx, params, grads)):
        seen = []
        for leaf in jax.tree.leaves(state.inner):
            if leaf.shape in kernels:
                mask = script[kernels[leaf.shape]]["kernel"][t]
                assert not np.asarray(leaf)[~mask].any()
                seen.append(np.asarray(leaf)[mask].any())
        # Two kernels; a prefix gives two moments of the one and one of the other.
        assert len(seen) == (3 if copies is None else 2 * copies)
        # MultiSteps' sums are zeros after each second step, Adam's until then.
        assert all(seen) or name == "MultiSteps"
    assert sum(seen) >= len(seen) - 2


@pytest.mark.parametrize(
    ("inner", "epsilon"),
    [
        (optax.adabelief(0.1, eps_root=1e-16), 1e-16),
        (optax.adafactor(0.1), 1e-30),
    ],
    ids=["adabelief", "adafactor"],
)
def test_an_optimizers_own_epsilon_is_all_that_stays(inner, epsilon):
    script = {"kernel": _script((6, 4))}
    tx = jp.sparsify(inner, _scripted(script), moments="zero")
    params = {"kernel": _params()["out"]["kernel"].reshape(6, 4)}
    grads = {"kernel": np.random.default_rng(1).normal(size=(STEPS, 6, 4))}
    checked = 0
    for t, (_, state) in enumerate(_run(tx, params, grads)):
        for leaf in jax.tree.leaves(state.inner):
            if leaf.shape == (6, 4):
                checked += 1
                assert np.abs(np.asarray(leaf)[~script["kernel"][t]]).max() <= epsilon
    assert checked >= STEPS


def test_factored_moments_are_left_alone():
    """A row's statistic belongs to many weights: it is the optimizer's affair."""
    inner = optax.adafactor(0.1, min_dim_size_to_factor=4)
    params = {"kernel": _params()["out"]["kernel"]}
    states = []
    for moments in ("keep", "zero"):
        tx = jp.sparsify(inner, jp.recipes.magnitude(0.5), end=0, moments=moments)
        update, state = jax.jit(tx.update), tx.init(params)
        for _ in range(3):
            _, state = update(params, state, jp.apply(params, state.masks))
        factors = [x for x in jax.tree.leaves(state.inner) if x.shape in ((4,), (6,))]
        assert len(factors) == 2
        states.append(factors)
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_pruner_that_prunes_nothing_changes_nothing():
    params = testing.example_params()
    grads, found = _pruners.random_like(params), []
    for moments in ("keep", "zero"):
        tx = jp.sparsify(optax.adamw(0.1), jp.recipes.magnitude(0.0), moments=moments)
        state, w = tx.init(params), params
        for _ in range(2):  # without jit, which may round either in its own way
            updates, state = tx.update(grads, state, w)
            w = optax.apply_updates(w, updates)
        found.append(jax.tree.leaves((w, state)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rewinding_of_survivors_is_the_same_with_zero_moments():
    rounds = {"every": 4, "begin": 4, "end": 8}
    sparsity = jp.geometric(0.5, begin=4, steps=8, rounds=2)
    found = []
    for moments in ("keep", "zero"):
        tx = jp.sparsify(
            jp.rewind(optax.adam(0.1), to=1, **rounds),
            jp.recipes.magnitude(sparsity, scope="global"),
            moments=moments,
            **rounds,
        )
        params = _params()
        grads = jax.tree.map(
            lambda w: np.random.default_rng(5).normal(size=(STEPS, *w.shape)), params
        )
        *_, (params, _) = _run(tx, params, grads)
        found.append(params)
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(jnp.mean(found[0]["out"]["kernel"] == 0)) > 0.3


def test_other_words_are_refused():
    with pytest.raises(jp.PruningError, match="got 'reset'"):
        jp.sparsify(optax.sgd(0.1), jp.recipes.magnitude(0.5), moments="reset")
