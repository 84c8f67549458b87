"""`slice_tree` on states of optimizers whose arrays are not like the params."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jprune as jp
from jprune import graph as jg

pytestmark = pytest.mark.others_code  # Optax promotes types

X = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)


def net(p, x):
    return jnp.tanh(x @ p["in"] + p["b"][None]) @ p["out"]


def arrays(seed=0, out=3):
    draw = np.random.default_rng(seed).normal
    shapes = {"in": (6, 16), "b": (16,), "out": (16, out)}
    return {n: jnp.asarray(draw(size=s), jnp.float32) for n, s in shapes.items()}


def stepped(tx, params, steps=3):
    """The state after some steps, with rows and columns of different statistics."""
    state = tx.init(params)

    def loss(p):
        return jnp.sum(net(p, X) ** 2)

    for _ in range(steps):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
    return params, state


def plan_of(params):
    graph = jg.trace(net, params, X)
    return jg.make_plan(graph, {"in[1]": [1, 4, 9, 15]}), np.array([1, 4, 9, 15])


OPTIMIZERS = {
    "sm3": optax.sm3(1e-2),
    "lbfgs": optax.lbfgs(1e-2, memory_size=3, linesearch=None),
    "muon": optax.contrib.muon(1e-2),
    "adam": optax.adam(1e-2),
}


ADAFACTOR = optax.adafactor(1e-3, min_dim_size_to_factor=2)


def extended(tx):
    return optax.with_extra_args_support(tx)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_small_state_is_that_of_the_small_params(name):
    tx = extended(OPTIMIZERS[name])
    params, state = stepped(tx, arrays())
    plan, _ = plan_of(params)
    small = jg.slice_tree(plan, state, params)
    expected = jax.eval_shape(tx.init, jg.slice_tree(plan, params))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, expected)
    # Shapes are enough, and are cut as the arrays are.
    structs = jax.eval_shape(lambda: (state, params))
    again = jg.slice_tree(plan, *structs)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, small)


def test_each_vector_keeps_what_its_axis_keeps():
    params, state = stepped(extended(OPTIMIZERS["sm3"]), arrays())
    plan, kept = plan_of(params)
    small, full = jg.slice_tree(plan, state, params)[0], state[0]
    np.testing.assert_array_equal(small.mu["in"][0], full.mu["in"][0])
    np.testing.assert_array_equal(small.mu["in"][1], full.mu["in"][1][kept])
    np.testing.assert_array_equal(small.mu["out"][0], full.mu["out"][0][kept])

    params, state = stepped(extended(OPTIMIZERS["lbfgs"]), arrays())
    small, full = jg.slice_tree(plan, state, params)[0], state[0]
    np.testing.assert_array_equal(
        small.diff_params_memory["in"], full.diff_params_memory["in"][:, :, kept]
    )
    np.testing.assert_array_equal(
        small.diff_updates_memory["b"], full.diff_updates_memory["b"][:, kept]
    )


@pytest.mark.parametrize("name", ["sm3", "lbfgs"])
def test_without_the_params_such_a_state_is_refused(name):
    params, state = stepped(extended(OPTIMIZERS[name]), arrays())
    plan, _ = plan_of(params)
    with pytest.raises(jp.PruningError, match=r"slice_tree\(plan, state, params\)"):
        jg.slice_tree(plan, state)


@pytest.mark.parametrize("out", [3, 16])
def test_means_of_rows_and_columns_are_refused(out):
    """Which of both is `v_row` depends on the sizes: (6, 16) and (6, 4) differ."""
    params, state = stepped(extended(ADAFACTOR), arrays(out=out))
    plan, _ = plan_of(params)
    rows = jax.eval_shape(ADAFACTOR.init, jg.slice_tree(plan, params))[0].v_row["in"]
    assert state[0].v_row["in"].shape == (6,)
    assert rows.shape == (4,)
    with pytest.raises(jp.PruningError, match=r"and its param .* Make its state anew"):
        jg.slice_tree(plan, state, params)
    with pytest.raises(jp.PruningError, match=r"slice_tree\(plan, state, params\)"):
        jg.slice_tree(plan, state)


def test_a_square_kernel_that_shrinks_along_one_axis():
    """SM3 says which of two vectors of 16 is which by its place in a list."""
    params, state = stepped(extended(OPTIMIZERS["sm3"]), arrays(out=16))
    plan, _ = plan_of(params)
    small = jg.slice_tree(plan, state, params)[0].mu["out"]
    assert [x.shape for x in small] == [(4,), (16,)]


def test_states_under_wrappers_and_placeholders_need_no_params():
    params = arrays()
    plan, _ = plan_of(params)
    tx = optax.MultiSteps(
        optax.partition(
            {"a": optax.adam(1e-3), "b": optax.sgd(1e-2, momentum=0.9)},
            {"in": "a", "b": "b", "out": "a"},
        ),
        2,
    )
    small = jg.slice_tree(plan, tx.init(params))
    expected = jax.eval_shape(tx.init, jg.slice_tree(plan, params))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, expected)
