"""Trees of shapes: what a plan makes of them is what it makes of the arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune as jp
from jprune import checkpoint
from jprune import graph as jg
from tests.support.graph_models import mlp, mlp_params

X = jnp.ones((2, 5))


def shapes_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def abstract(tree):
    return jax.eval_shape(lambda: tree)


@pytest.fixture(scope="module")
def case():
    """A plan that was made from real arrays, on another process perhaps."""
    params = mlp_params()
    graph = jg.trace(mlp, params, X)
    keep = jg.choose(graph, jg.group_l2(graph, params), 0.5, cost=jg.parameters)
    return params, jg.loads(jg.dumps(jg.make_plan(graph, keep))), keep


def test_shapes_shrink_as_their_arrays_do(case):
    params, plan, keep = case
    full = abstract(params)
    graph = jg.trace(mlp, full, X)
    expected_fn, expected = jg.shrink(jg.trace(mlp, params, X), params, plan)
    assert shapes_of(expected) != shapes_of(params)
    for how in ({"plan": plan}, {"keep": keep}):
        small_fn, small = jg.shrink(graph, full, **how)
        assert shapes_of(small) == shapes_of(expected)
        np.testing.assert_array_equal(small_fn(expected, X), expected_fn(expected, X))
        assert jax.eval_shape(small_fn, small, X).shape == (2, 3)


def test_a_checkpoint_is_restored_without_the_weights(case, tmp_path):
    params, plan, _ = case
    tx, key = optax.adam(1e-3), jax.random.key(3)
    small_fn, small = jg.shrink(jg.trace(mlp, params, X), params, plan)
    checkpoint.save(tmp_path, 0, (small, tx.init(small), key))

    full = abstract(params)
    fn, like = jg.shrink(jg.trace(mlp, full, X), full, plan)
    state = jg.slice_tree(plan, jax.eval_shape(tx.init, full))
    assert shapes_of(state) == shapes_of(jax.eval_shape(tx.init, small))
    restored, _, again = checkpoint.restore(tmp_path, (like, state, abstract(key)))
    np.testing.assert_array_equal(fn(restored, X), small_fn(small, X))
    assert jnp.array_equal(jax.random.key_data(again), jax.random.key_data(key))


def test_weak_types_keys_and_masks_that_broadcast():
    plan = {"w": {1: np.array([0, 2])}, "keys": {0: np.array([1])}}
    full = {
        "w": jnp.broadcast_to(jnp.asarray(2.0), (4, 3)),
        "keys": jax.random.split(jax.random.key(0), 3),
        "masks": {"w": jnp.ones((1, 1), bool)},
    }
    found = jg.slice_tree(plan, abstract(full))
    assert shapes_of(found) == shapes_of(abstract(jg.slice_tree(plan, full)))
    with pytest.raises(jp.PruningError, match=r"w has shape \(4, 2\)"):
        jg.slice_tree(plan, {"w": jax.ShapeDtypeStruct((4, 2), jnp.float32)})


def test_shardings_are_those_of_arrays_that_were_cut():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    plan = {"w": {0: np.arange(7)}}
    for names in (("a", "b"), (None, ("a", "b")), (("a", "b"),), ("b", "a")):
        spec = NamedSharding(mesh, PartitionSpec(*names))
        struct = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=spec)
        array = jax.device_put(jnp.zeros((16, 8)), spec)
        (found,) = jg.slice_tree(plan, {"w": struct}).values()
        (expected,) = jg.slice_tree(plan, {"w": array}).values()
        assert found.shape == expected.shape
        assert found.sharding.is_equivalent_to(expected.sharding, 2)


def test_scores_need_values_and_say_so(case):
    params, _, _ = case
    full = abstract(params)
    graph = jg.trace(mlp, full, X)
    calls = [
        lambda: jg.group_l2(graph, full),
        lambda: jg.group_scores(graph, full),
        lambda: jg.geometric_median_scores(graph, full),
        lambda: jg.compress(mlp, full, X, multiple_of=1),
    ]
    said = r"'a/(bias|kernel)' is .*no values to score.*plan"
    for call in calls:
        with pytest.raises(jp.PruningError, match=said):
            call()


def test_params_that_differ_beside_their_arrays_get_a_short_answer():
    @functools.partial(
        jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["training"]
    )
    @dataclasses.dataclass
    class Layer:
        w: jax.Array
        training: bool

    graph = jg.trace(lambda p, x: x @ p.w @ p.w.T, Layer(jnp.ones((5, 8)), False), X)
    fn, small = jg.shrink(graph, Layer(jnp.ones((5, 8)), False), keep={"w[1]": [0, 3]})
    assert fn(small, X).shape == X.shape
    with pytest.raises(jp.PruningError, match=r"leaves are the same.* `eval") as error:
        fn(dataclasses.replace(small, training=True), X)
    assert len(str(error.value)) < 300
