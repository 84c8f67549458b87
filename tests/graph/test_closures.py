"""Functions with derivative rules that close over arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint

import jprune as jp
from jprune import graph as jg
from tests.support.graph_cases import double, near, normal  # noqa: F401

RNG = np.random.default_rng(0)


def rounded(scale, slope=1.0):
    """x rounded to multiples of 1 / scale, with the gradient of slope * x."""

    @jax.custom_vjp
    def call(x):
        return jnp.round(x * scale[None]) / scale[None]

    call.defvjp(lambda x: (call(x), ()), lambda _, g: (g * slope,))
    return call


def check(fn, params, x, keep, by):
    """Values, and gradients by some leaves, are those on small arrays and masks."""
    graph = jg.trace(fn, params, x)
    masks = {n: np.isin(np.arange(graph.groups[n].size), k) for n, k in keep.items()}
    plan = jg.make_plan(graph, masks)
    small_fn, small = jg.shrink(graph, params, plan)

    def grads(f, p):
        return jax.jit(jax.value_and_grad(lambda some: jnp.sin(f(p | some, x)).sum()))(
            {name: p[name] for name in by}
        )

    expected = grads(fn, small)
    jax.tree.map(near, grads(small_fn, small), expected)
    value, found = grads(jg.without_entries(graph, masks), params)
    jax.tree.map(near, (value, jg.slice_tree(plan, found)), expected)
    near(jax.vmap(small_fn, (None, 0))(small, x[None])[0], fn(small, x))
    return graph


def test_an_array_of_the_module():
    scale = RNG.uniform(2, 4, 8)
    rounds = {
        8: rounded(jnp.asarray(scale), jnp.asarray(scale[None])),
        2: rounded(jnp.asarray(scale[[0, 3]]), jnp.asarray(scale[None, [0, 3]])),
    }

    def fn(p, x):
        return rounds[p["a"].shape[1]](x @ p["a"]) @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2)}
    check(fn, params, normal(5, 3), {"a[1]": [0, 3]}, "ab")


def test_an_array_that_is_computed():
    """Straight-through rounding, with a scale that follows the weights."""

    def fn(p, x):
        scale = jax.lax.stop_gradient(2 / jnp.abs(p["a"]).max(0))
        return rounded(scale)(x @ p["a"]) @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2)}
    graph = check(fn, params, normal(5, 3), {"a[1]": [0, 3]}, "ab")
    assert list(graph.groups) == ["a[1]"]


def test_only_its_gradient_by_the_closed_over_array_is_refused():
    def fn(p, x):
        return rounded(p["scale"])(x @ p["a"]) @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2)}
    params["scale"] = jnp.asarray(RNG.uniform(2, 4, 8))
    x = normal(5, 3)
    graph = check(fn, params, x, {"a[1]": [0, 3]}, "ab")
    small_fn, small = jg.shrink(graph, params, keep={})
    for f in (fn, small_fn):
        with pytest.raises(Exception, match=r"closed-over value|unexpected tracer"):
            jax.grad(lambda p, f=f: f(p, x).sum())(small)


def test_a_derivative_that_closes_over_other_arrays():
    """The rule is the only user of one of them, and the function is called twice."""

    def fn(p, x):
        slope = p["slope"][None] * jnp.ones((x.shape[0], 1))
        call = rounded(p["scale"], slope)
        return call(call(x @ p["a"]) + slope) @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2), "slope": normal(8)}
    params["scale"] = jnp.asarray(RNG.uniform(2, 4, 8))
    check(fn, params, normal(5, 3), {"a[1]": [0, 3]}, "ab")


def test_a_derivative_of_lost_arrays_says_what_to_do():
    """In a loop, the rule still refers to the array outside. JAX refuses that, too."""

    def fn(p, x):
        call = rounded(p["scale"], p["slope"][None])
        turn = lambda h, _: (call(h) + p["slope"][None], None)  # noqa: E731
        return jax.lax.scan(turn, x @ p["a"], None, 2)[0] @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2), "scale": 2 + normal(8) ** 2}
    params["slope"], x = normal(8), normal(5, 3)
    small_fn, small = jg.shrink(jg.trace(fn, params, x), params, keep={"a[1]": [0, 3]})
    near(small_fn(small, x), fn(small, x))
    with pytest.raises(jp.PruningError, match=r"test_closures.*as an argument"):
        jax.grad(lambda a: small_fn(small | {"a": a}, x).sum())(small["a"])


def test_a_tangent_rule_of_its_own_arrays_says_what_to_do():
    def fn(p, x):
        @jax.custom_jvp
        def total(h):
            return h * h.sum(1, keepdims=True)

        total.defjvps(lambda t, out, h: t * p["scale"][None])
        return total(x @ p["a"]) @ p["b"]

    params, x = {"a": normal(3, 8), "b": normal(8, 2), "scale": normal(8)}, normal(5, 3)
    graph = jg.trace(fn, params, x)
    small_fn, small = jg.shrink(graph, params, keep={"a[1]": [0, 3]})
    near(small_fn(small, x), fn({**small, "scale": params["scale"]}, x))
    with pytest.raises(jp.PruningError, match=r"test_closures.*as an argument"):
        jax.grad(lambda a: small_fn(small | {"a": a}, x).sum())(small["a"])


def test_an_ordinary_differential_equation():
    """Its derivative is another one, which closes over arrays, too."""

    def fn(p, x):
        times = jnp.array([0.0, 0.5])
        return odeint(lambda h, t: jnp.tanh(h @ p["w"]), x @ p["a"], times)[-1] @ p["b"]

    params = {"a": normal(3, 6), "b": normal(6, 2), "w": normal(6, 6)}
    x = normal(4, 3)
    graph = jg.trace(fn, params, x)
    small_fn, small = jg.shrink(graph, params, keep={"a[1]": [0, 3, 4]})
    found, expected = (
        jax.jit(jax.value_and_grad(lambda p, f=f: f(p, x).sum()))(small)
        for f in (small_fn, fn)
    )
    assert small["w"].shape == (3, 3)
    jax.tree.map(functools.partial(near, rtol=1e-6), found, expected)
