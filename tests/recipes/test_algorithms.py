"""Every recipe that owns its loop passes the contract of `jprune.testing`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from support.cases import ALGORITHMS, AlgorithmCase, small_loss, small_params

import jprune as jp
from jprune import testing
from jprune.testing import _algorithms

pytestmark = pytest.mark.others_code
SPARSITY = 0.7
# Under automatic sharding the others are of the same parts, and all of them compile.
ON_AUTOMATIC_MESHES = ("bip", "hydra", "soft_threshold", "l0 channels")


def _name(case: AlgorithmCase) -> str:
    return f"{case.recipe} {case.note}".strip()


@pytest.mark.parametrize("case", ALGORITHMS, ids=_name)
def test_contract(case: AlgorithmCase):
    traces = []

    def loss(params, x):
        traces.append(None)
        return small_loss(params, x)

    method, params = case.make(loss, SPARSITY), small_params()
    init, batches = case.state_of(method), case.stream(6)
    state = init(params, jax.random.key(0))
    for batch in batches:
        state, _ = method.step(state, *batch)
    assert len(traces) == (2 if case.recipe == "bip" else 1), "one for each level"
    types = [AxisType.Explicit]
    types += [AxisType.Auto] if _name(case) in ON_AUTOMATIC_MESHES else []
    testing.check_algorithm(
        method, init, batches, params, sparsity=SPARSITY, axis_types=types
    )


@pytest.mark.parametrize(
    "case", [case for case in ALGORITHMS if not case.note], ids=_name
)
def test_one_compilation_serves_all_sparsities(case: AlgorithmCase):
    params, (batch,) = small_params(), case.stream(1)

    @jax.jit
    @jax.vmap
    def masks(sparsity):
        method = case.make(small_loss, sparsity)
        state, _ = method.step(case.state_of(method)(params, jax.random.key(0)), *batch)
        return method.finish(state)[1]

    sparsities = np.float32([0.0, 0.1, 0.37, 0.5, 0.9, 0.99, 1.0])
    found = [m for m in jax.tree.leaves(masks(sparsities)) if m.ndim > 1]
    assert len(found) == 2
    size = sum(m[0].size for m in found)
    kept = sum(np.sum(m, axis=(1, 2)) for m in found)
    np.testing.assert_allclose(kept, size - np.round(size * sparsities), atol=1)


# A method that is none of jprune's own, and others that each break the contract in
# one way.


def _descent() -> jp.Algorithm:
    def init(params, key):
        del key
        return {"params": jax.tree.map(jnp.copy, params), "count": jnp.int32(0)}

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, x):
        slopes = jax.grad(small_loss)(state["params"], x)
        updates = jax.tree.map(lambda g: g * jnp.asarray(-0.1, g.dtype), slopes)
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "count": state["count"] + 1}, None

    def finish(state):
        return jp.prune(state["params"], jp.recipes.magnitude(SPARSITY))

    return jp.Algorithm(init, step, finish)


def _check(method):
    batches = [(jnp.float32(i),) for i in range(3)]
    testing.check_algorithm(
        method, method.init, batches, small_params(), sparsity=SPARSITY
    )


def test_a_method_that_keeps_the_contract_passes():
    _check(_descent())


def _weak(method):
    init = lambda *args: {**method.init(*args), "count": jnp.asarray(0)}  # noqa: E731
    return method._replace(init=init)


def _widening(method):
    def step(state, x):
        state, _ = method.step(state, x)
        wide = jax.tree.map(lambda w: w.astype(jnp.float32), state["params"])
        return {**state, "params": wide}, None

    return method._replace(step=step)


def _taking_the_callers_arrays(method):
    init = lambda params, _: {"params": params, "count": jnp.int32(0)}  # noqa: E731
    return method._replace(init=init)


def _not_donating(method):
    return method._replace(step=jax.jit(method.step.__wrapped__))


def _with_a_memory_beside_its_state(method):
    calls = []

    def step(state, x):
        calls.append(None)
        return method.step(state, x + np.float32(len(calls)))

    return method._replace(step=step)


def _leaving_what_is_pruned(method):
    finish = lambda state: (state["params"], method.finish(state)[1])  # noqa: E731
    return method._replace(finish=finish)


def _pruning_a_bias(method):
    def finish(state):
        params, masks = method.finish(state)
        params["first"]["bias"] *= 0
        masks["first"]["bias"] = jnp.zeros(16, bool)
        return params, masks

    return method._replace(finish=finish)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (_weak, "[Ww]eak"),
        (_widening, "bfloat16"),
        (_taking_the_callers_arrays, "caller's params"),
        (_not_donating, "not donated"),
        (_with_a_memory_beside_its_state, "not equal|Mismatched"),
        (_leaving_what_is_pruned, "'first/kernel' is not zero"),
        (_pruning_a_bias, "'first/bias' was pruned"),
    ],
)
def test_a_method_that_breaks_the_contract_is_found_out(wrong, message):
    with pytest.raises(AssertionError, match=message):
        _check(wrong(_descent()))


def test_a_wrong_count_is_found_out():
    params = small_params()
    found, masks = jp.prune(params, jp.recipes.magnitude(0.5))
    check = functools.partial(_algorithms.check_finish, params, found, masks)
    check(sparsity=0.5)
    with pytest.raises(AssertionError, match="128 of 256 are kept, not 131"):
        check(sparsity=0.49)
