"""Every recipe passes the same contract: tests/cases.py x jprune.testing."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from support.cases import ALGORITHMS, CASES, STRUCTURAL_CASES, Case

import jprune as jp
from jprune import checkpoint, testing
from jprune.testing import _pruners

pytestmark = pytest.mark.others_code
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.recipe)


def _example():
    params = testing.example_params()
    return params, _pruners.random_like(params)


def test_the_cases_are_the_recipes():
    recipes = {case.recipe for case in [*CASES, *ALGORITHMS, *STRUCTURAL_CASES]}
    assert sorted(recipes) == sorted(jp.recipes.__all__)


@each_case
def test_contract(case: Case):
    testing.check_pruner(case.make(case.sparsity))


def test_contract_of_a_pruner_with_track():
    """The pruner gets the output of track, which has to keep the types of its state."""
    params = {"kernel": _example()[0]["blocks"][1]["kernel"]}

    def score(grads, params):
        assert grads["kernel"].dtype == jnp.float16, "not the output of track"
        return jax.tree.map(lambda g, w: jnp.abs(g * w), grads, params)

    def halved(counter):
        return optax.GradientTransformation(
            lambda params: counter,
            lambda grads, n, params=None: (optax.tree.cast(grads, jnp.float16), n + 1),
        )

    pruner = optax.chain(jp.links.stateless(score, needs_grads=True), jp.keep_top(0.5))
    testing.check_pruner(pruner, params, track=halved(jnp.int32(0)))
    with pytest.raises(AssertionError, match="not the output of track"):
        testing.check_pruner(pruner, params)
    with pytest.raises(AssertionError, match="Weakly typed"):
        testing.check_pruner(pruner, params, track=halved(jnp.asarray(0)))


@pytest.mark.parametrize(
    "pool",
    [
        jp.pool_over_axes(jp.l2_norm, keep="output"),
        jp.pool_over_axes(jp.l2_norm, keep="input"),
        jp.pool_over_blocks((4,)),
        jp.normalize_by_lamp(),
    ],
    ids=["output channels", "input channels", "blocks", "lamp"],
)
def test_groups_on_meshes(pool):
    """Masks of another shape than the weights' keep to their axes' shardings."""
    params, grads = _example()
    pruner = optax.chain(jp.score_by_magnitude(), pool, jp.keep_top(0.5))
    _pruners.check_sharding(pruner, params, grads, where=jp.matching(".*/kernel"))


@each_case
def test_training_in_bfloat16(case: Case):
    params = testing.example_params(dtype=jnp.bfloat16)
    grads = _pruners.random_like(params)
    pruner = case.make(case.sparsity)
    _pruners.check_training(pruner, params, grads, where=jp.is_kernel)


@each_case
def test_exact_counts_and_vmap_over_sparsities(case: Case):
    params, grads = _example()
    if case.sparsity is None:
        _, masks = jp.prune(params, case.make(None), grads)
        assert float(jp.sparsity(params, masks)) == 0.5
        for mask in jax.tree.leaves(masks):
            if mask.ndim == 4:  # (spatial, spatial, input, output)
                assert jnp.all(mask.reshape(9, 2, 4, 16).sum(2) == 2)
    else:
        sparsities = (0.0, 0.37, 0.5, 0.9, 0.99)
        if case.exact:  # with a minimum per leaf 1 is refused
            sparsities += (1.0,)
        _pruners.check_sparsities(
            case.make, params, grads, sparsities=sparsities, exact=case.exact
        )


@each_case
def test_orbax_round_trip(case: Case, tmp_path):
    params, grads = _example()
    tx = jp.sparsify(optax.adamw(1e-2), case.make(case.sparsity))
    step = jax.jit(tx.update)
    updates, state = step(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    checkpoint.save(tmp_path, 1, (params, state))
    like = jax.eval_shape(lambda: (params, tx.init(params)))
    restored, restored_state = checkpoint.restore(tmp_path, like)
    on, _ = step(grads, state, params)
    again, _ = step(grads, restored_state, restored)
    for a, b in zip(jax.tree.leaves(on), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# The same two layers in four frameworks. Equinox keeps kernels as (out, in), so
# N:M has to find the other axis; and its tree has the layers in another order,
# so what is compared is each kernel, in the layout of a Flax kernel.

_KEYS = ("first", "second")


def _weights():
    rng = np.random.default_rng(0)
    return {
        "first": {
            "bias": jnp.asarray(rng.normal(size=16), jnp.float32),
            "kernel": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32),
        },
        "second": {
            "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
            "kernel": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
        },
    }


_X = jnp.asarray(np.random.default_rng(1).normal(size=(32, 8)), jnp.float32)
_Y = jnp.asarray(np.random.default_rng(2).normal(size=(32, 4)), jnp.float32)
_STEPS = 3


def _loss(outputs):
    return jnp.mean(jnp.square(outputs - _Y))


def _dict_kernels(tx):
    def loss(p):
        h = jax.nn.relu(_X @ p["first"]["kernel"] + p["first"]["bias"])
        return _loss(h @ p["second"]["kernel"] + p["second"]["bias"])

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = _weights()
    state = tx.init(params)
    for _ in range(_STEPS):
        params, state = step(params, state)
    return [params[k]["kernel"] for k in _KEYS]


def _linen_kernels(tx):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="second")(nn.relu(nn.Dense(16, name="first")(x)))

    state = TrainState.create(apply_fn=Net().apply, params=_weights(), tx=tx)

    @jax.jit
    def step(state):
        loss = lambda params: _loss(state.apply_fn({"params": params}, _X))  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(_STEPS):
        state = step(state)
    return [state.params[k]["kernel"] for k in _KEYS]


def _nnx_kernels(tx):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 16, rngs=rngs)
            self.second = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    net = Net(nnx.Rngs(0))
    for k in _KEYS:
        getattr(net, k).kernel[...] = _weights()[k]["kernel"]
        getattr(net, k).bias[...] = _weights()[k]["bias"]
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        grads = nnx.grad(lambda net: _loss(net(_X)))(net)
        optimizer.update(net, grads)

    for _ in range(_STEPS):
        step(net, optimizer)
    return [getattr(net, k).kernel[...] for k in _KEYS]


def _equinox_kernels(tx):
    class Net(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear

        def __call__(self, x):
            return self.second(jax.nn.relu(self.first(x)))

    def linear(weights):
        n_in, n_out = weights["kernel"].shape
        layer = eqx.nn.Linear(n_in, n_out, key=jax.random.key(0))
        return eqx.tree_at(
            lambda m: (m.weight, m.bias),
            layer,
            (weights["kernel"].T, weights["bias"]),
        )

    net = Net(*(linear(_weights()[k]) for k in _KEYS))
    state = tx.init(eqx.filter(net, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(net, state):
        grads = eqx.filter_grad(lambda net: _loss(jax.vmap(net)(_X)))(net)
        updates, state = tx.update(grads, state, eqx.filter(net, eqx.is_inexact_array))
        return eqx.apply_updates(net, updates), state

    for _ in range(_STEPS):
        net, state = step(net, state)
    return [getattr(net, k).weight.T for k in _KEYS]


@each_case
def test_four_frameworks_give_the_same(case: Case):
    def tx():
        return jp.sparsify(optax.adamw(1e-2), case.make(case.sparsity and 0.5), end=1)

    reference = _dict_kernels(tx())
    assert sum(int(jnp.sum(k == 0)) for k in reference) == (8 * 16 + 16 * 4) // 2
    for kernels in (_linen_kernels, _nnx_kernels, _equinox_kernels):
        found = kernels(tx())
        if case.recipe == "random_erk" and kernels is _equinox_kernels:
            # The draw goes by position, and a transposed kernel has others.
            for a, b in zip(reference, found, strict=True):
                assert int(jnp.sum(a == 0)) == int(jnp.sum(b == 0))
            continue
        for a, b in zip(reference, found, strict=True):
            np.testing.assert_array_equal(a == 0, b == 0)
            np.testing.assert_allclose(a, b, atol=1e-5)
