"""Ragged products, cumulative operations, rolls, misaligned group normalization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas

from jprune import graph as jg
from tests.support.graph_cases import double, near, normal  # noqa: F401


def check(fn, params, x, keep, oracle=None):
    """Values and gradients, small and at full size, are those of fn on small arrays.

    Where fn is not determined by the sizes of its arrays, the oracle is.
    """
    oracle = oracle or fn
    graph = jg.trace(fn, params, x)
    masks = {n: np.isin(np.arange(graph.groups[n].size), k) for n, k in keep.items()}
    plan = jg.make_plan(graph, masks)
    small_fn, small = jg.shrink(graph, params, plan)

    def grads(f, p):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(f(p, x)).sum()))(p)

    expected = grads(oracle, small)
    jax.tree.map(near, grads(small_fn, small), expected)
    value, found = grads(jg.without_entries(graph, masks), params)
    jax.tree.map(near, (value, jg.slice_tree(plan, found)), expected)
    return graph, small


CUMULATIVE = {
    "cumsum": lax.cumsum,
    "cumprod": lax.cumprod,
    "cummax": lax.cummax,
    "cummin": lax.cummin,
    "cumlogsumexp": lax.cumlogsumexp,
}


@pytest.mark.parametrize("name", CUMULATIVE)
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_operations_along_features(name, reverse):
    def fn(p, x):
        h = CUMULATIVE[name](jnp.sin(x @ p["a"]), axis=1, reverse=reverse)
        return jnp.tanh(h) @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2)}
    graph, _ = check(fn, params, normal(5, 3), {"a[1]": [1, 2, 5]})  # not the ends
    said = [n.what for n in graph.notes if n.kind == "over what is left"]
    assert bool(said) == (name != "cumsum")


def test_experts_of_ragged_products():
    """A mixture of three experts, whose tokens are sorted by expert."""

    def fn(p, x):
        counts = jnp.array([2, 0, 4])
        h = jax.nn.relu(lax.ragged_dot(x, p["up"], counts))
        return lax.ragged_dot(h, p["down"], counts)

    params, x = {"up": normal(3, 4, 8), "down": normal(3, 8, 2)}, normal(6, 4)
    graph, small = check(fn, params, x, {"up[2]": [0, 3, 4]})
    assert small["down"].shape == (3, 3, 2)
    assert list(graph.groups) == ["up[2]"]
    assert jg.multiply_adds(graph) == 6 * (4 * 8 + 8 * 2)
    assert jg.multiply_adds(graph, {"up[2]": 3}) == 6 * (4 * 3 + 3 * 2)
    assert "the groups of a ragged product" in jg.explain(graph)
    each = [0, 0, 2, 2, 2, 2]
    by_hand = jnp.einsum(
        "nh,nho->no",
        jax.nn.relu(jnp.einsum("nd,ndh->nh", x, params["up"][jnp.array(each)])),
        params["down"][jnp.array(each)],
    )
    near(jg.shrink(graph, params, keep={})[0](params, x), by_hand)


def test_a_ragged_sum():
    """A product for each group of rows, as in the gradient of `ragged_dot`."""
    counts = jnp.array([2, 0, 4])
    numbers = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )

    def fn(p, x):
        h, g = x @ p["a"], x @ p["b"]
        each = lax.ragged_dot_general(h, g, counts, numbers)
        return jnp.einsum("ghk,hk->g", each, p["c"])

    params = {"a": normal(4, 6), "b": normal(4, 8), "c": normal(6, 8)}
    x = normal(6, 4)
    graph = jg.trace(fn, params, x)
    # JAX does not differentiate it.
    small_fn, small = jg.shrink(graph, params, keep={"a[1]": [0, 3], "b[1]": [1, 7]})
    near(small_fn(small, x), fn(small, x))
    masks = {"a[1]": np.isin(range(6), [0, 3]), "b[1]": np.isin(range(8), [1, 7])}
    near(jg.without_entries(graph, masks)(params, x), fn(small, x))
    assert jg.multiply_adds(graph) == 6 * 4 * (6 + 8) + 6 * 6 * 8 + 3 * 6 * 8


def test_rolled_features():
    """Each side of the cut shrinks on its own."""

    def fn(p, x, shift=2):
        return jnp.tanh(jnp.roll(x @ p["a"], shift, axis=1)) @ p["b"]

    params, x = {"a": normal(3, 8), "b": normal(8, 2)}, normal(5, 3)
    graph = jg.trace(fn, params, x)
    assert sorted(g.size for g in graph.groups.values()) == [2, 6]
    keep = {n: [0] if g.size == 2 else [1, 2, 5] for n, g in graph.groups.items()}
    check(fn, params, x, keep, functools.partial(fn, shift=1))


def grouped(h, groups):
    shape = h.shape
    h = h.reshape(shape[0], groups, -1)
    h -= h.mean(2, keepdims=True)
    return (h / jnp.sqrt(jnp.square(h).mean(2, keepdims=True) + 0.1)).reshape(shape)


def test_group_normalization_over_a_misaligned_concatenation():
    """Groups of 6 over 16 and 8 channels: the second group has 4 of the third block.

    All channels are blocks of 2, of which both, or one of each, stay.
    """

    def fn(p, x):
        first = jax.nn.relu(grouped(x @ p["a"], 4))
        h = jnp.concatenate([first, x @ p["b"]], axis=1)
        h = grouped(h, 4) * p["scale"][None]
        return jnp.tanh(h) @ p["out"]

    params = {"a": normal(3, 16), "b": normal(3, 8), "scale": normal(24)}
    params["out"] = normal(24, 2)
    graph = jg.trace(fn, params, normal(5, 3))
    (name,) = graph.groups
    assert graph.groups[name].size == 2
    _, small = check(fn, params, normal(5, 3), {name: [1]})
    np.testing.assert_array_equal(small["a"], params["a"][:, 1::2])
    np.testing.assert_array_equal(small["out"], params["out"][1::2])


def doubled(x_ref, o_ref):
    o_ref[...] = 2 * x_ref[...]


def outside(name, h):
    same = jax.ShapeDtypeStruct(h.shape, h.dtype)
    if name == "pallas_call":
        return pallas.pallas_call(doubled, same, interpret=True)(h)
    if name == "ffi_call":
        return jax.ffi.ffi_call("jprune_test_nothing", same)(h)
    return jax.experimental.io_callback(lambda x: 2 * np.asarray(x), same, h)


@pytest.mark.parametrize("name", ["pallas_call", "io_callback", "ffi_call"])
def test_code_outside_of_jax_is_a_named_boundary(name):
    def fn(p, x):
        return outside(name, jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    params, x = {"a": normal(3, 8), "b": normal(8, 4), "c": normal(4, 2)}, normal(5, 3)
    graph = jg.trace(fn, params, x)
    assert list(graph.groups) == ["a[1]"]
    (note,) = [n for n in graph.notes if n.kind == "frozen"]
    assert note.what.startswith(f"{name} runs code outside of JAX")
    assert "test_more_rules" in note.where
    small_fn, small = jg.shrink(graph, params, keep={"a[1]": [0, 3]})
    if name != "ffi_call":  # nothing is registered
        by_hand = 2 * (jnp.tanh(x @ small["a"]) @ small["b"]) @ small["c"]
        near(small_fn(small, x), by_hand)


def test_attention_over_neighbouring_channels_is_frozen_with_a_reason():
    """ECA: a channel's neighbours would be others."""

    def fn(p, x):
        h = x @ p["a"]
        near = lax.conv_general_dilated(h[:, None], p["k"], (1,), "SAME")
        return (h * jax.nn.sigmoid(near[:, 0])) @ p["b"]

    params = {"a": normal(3, 8), "k": normal(1, 1, 3), "b": normal(8, 2)}
    graph = jg.trace(fn, params, normal(5, 3))
    assert not graph.groups
    assert "it is a spatial axis of a convolution" in jg.explain(graph)
