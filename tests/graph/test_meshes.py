"""Meshes of explicit axes, where shardings are part of the types of arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jprune import graph as jg

X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
RNG = np.random.default_rng(0)
reshard = getattr(jax, "reshard", None) or jax.sharding.reshard

near = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def mesh():
    devices = jax.devices()[:4]
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=devices)
    with X64(True), jax.set_mesh(mesh):
        yield mesh


def normal(*shape, spec=None):
    x = jnp.asarray(RNG.normal(size=shape) / 2)
    return jax.device_put(x, spec or P())


def check(fn, params, x, keep):
    """Values, gradients and their shardings are those of fn on the small arrays."""
    graph = jg.trace(fn, params, x)
    masks = {n: np.isin(np.arange(graph.groups[n].size), k) for n, k in keep.items()}
    plan = jg.make_plan(graph, masks)
    small_fn, small = jg.shrink(graph, params, plan)

    def grads(f, p):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(f(p, x)).sum()))(p)

    assert jax.typeof(small_fn(small, x)) == jax.typeof(fn(small, x))
    near(small_fn(small, x), fn(small, x))
    found, expected = grads(small_fn, small), grads(fn, small)
    jax.tree.map(near, found, expected)
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, expected)
    value, found = grads(jg.without_entries(graph, masks), params)
    jax.tree.map(near, (value, jg.slice_tree(plan, found)), expected)
    return graph, small


def test_an_embedding_that_says_how_it_is_sharded():
    """Such indexing runs with automatic axes inside."""

    def fn(p, t):
        h = p["e"].at[t].get(out_sharding=P("x", None))
        return jax.nn.relu(h @ p["a"]) @ p["b"]

    params = {"e": normal(10, 6), "a": normal(6, 8), "b": normal(8, 2)}
    tokens = jax.device_put(jnp.arange(8), P("x"))
    graph, _ = check(fn, params, tokens, {"a[1]": [0, 3, 4], "e[1]": [1, 2, 5]})
    assert "a[1]" in graph.groups


@pytest.mark.parametrize("count", [8, 6])
def test_features_that_are_sharded(count):
    """They stay sharded if their number is divisible, and are whole otherwise."""

    def fn(p, x):
        h = jax.nn.gelu(x @ p["a"]) * jax.nn.relu(x @ p["c"])
        h = h + jnp.arange(h.shape[1], dtype=h.dtype, out_sharding=bias(h))[None] * 0
        h = h / jnp.sqrt(jnp.square(h).mean(1, keepdims=True) + 0.1)
        return jnp.einsum("nh,ho->no", h, p["b"], out_sharding=P("x", None))

    def bias(h):
        return P("x") if h.shape[1] % 4 == 0 else P()

    params = {"a": normal(6, 16, spec=P(None, "x")), "b": normal(16, 2, spec=P("x"))}
    params["c"] = normal(6, 16, spec=P(None, "x"))
    _, small = check(fn, params, normal(4, 6), {"a[1]": range(1, count + 1)})
    axis = "x" if count == 8 else None
    assert jax.typeof(small["a"]).sharding.spec == P(None, axis)
    assert jax.typeof(small["b"]).sharding.spec == P(axis, None)
    structs = jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), params
    )
    graph = jg.trace(fn, structs, normal(4, 6))
    _, small = jg.shrink(graph, structs, keep={"a[1]": range(1, count + 1)})
    assert small["a"].sharding.spec == P(None, axis)


@pytest.mark.parametrize("count", [8, 6])
def test_arrays_that_are_sharded_anew(count):
    def fn(p, x):
        h = x @ p["a"]
        divisible = h.shape[1] % 4 == 0
        h = jnp.tanh(reshard(h, P(None, "x") if divisible else P(None, None)))
        return jax.nn.relu(reshard(h, P("x", None))) @ p["b"]

    params = {"a": normal(6, 16), "b": normal(16, 2)}
    graph, _ = check(fn, params, normal(4, 6), {"a[1]": range(count)})
    assert not graph.notes


def test_a_shard_map_of_explicit_axes():
    def body(p, x):
        return jax.lax.psum(jax.nn.relu(x @ p["a"]) @ p["b"], "x")

    specs = {"a": P(None, "x"), "b": P("x", None)}
    fn = jax.shard_map(body, in_specs=(specs, P(None, None)), out_specs=P(None, None))
    params = {"a": normal(6, 16, spec=specs["a"]), "b": normal(16, 2, spec=specs["b"])}
    check(fn, params, normal(4, 6), {"a[1]": [0, 3]})
