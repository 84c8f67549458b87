"""Gradients that the traced function takes itself: training steps, MAML, attribution.

A training step returns params. The oracle is the same step on the small arrays: the
functions take all sizes from them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import graph as jg
from tests.support.graph_cases import double, near, normal  # noqa: F401


def convolve(x, kernel):
    return lax.conv_general_dilated(
        *(x, kernel, (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3] // kernel.shape[2],
    )


def largest(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, *[(1, 2, 2, 1)] * 2, "VALID")


def plain(p, x):
    return jnp.tanh(convolve(jnp.tanh(convolve(x, p["a"])), p["b"]))


def pooled(p, x):
    return largest(plain(p, x))


# name -> function of the images, shapes of its kernels, and the group that shrinks.
NETS = {
    "plain": (plain, {"a": (3, 3, 3, 6), "b": (3, 3, 6, 8)}, "a[3]"),
    "depthwise": (plain, {"a": (3, 3, 3, 6), "b": (3, 3, 1, 6)}, "a[3]"),
    "multiplied": (plain, {"a": (3, 3, 3, 4), "b": (3, 3, 1, 8)}, "a[3]"),
    "grouped": (plain, {"a": (3, 3, 3, 8), "b": (3, 3, 4, 6)}, "a[3]"),
    "largest": (pooled, {"a": (3, 3, 3, 6), "b": (3, 3, 6, 8)}, "b[3]"),
}


def network(name):
    features, kernels, group = NETS[name]
    shapes = {**kernels, "out": (kernels["b"][3], 2)}
    params = {key: normal(*shape) for key, shape in shapes.items()}

    def fn(p, x):
        return features(p, x).mean((1, 2)) @ p["out"]

    return fn, params, normal(2, 6, 6, 3), group


def trained(fn, p, x):
    """One step of gradient descent on a loss."""
    grads = jax.grad(lambda p: jnp.sin(fn(p, x)).sum())(p)
    return jax.tree.map(lambda w, g: w - 0.1 * g, p, grads)


def adapted(fn, p, x):
    """MAML (arXiv:1703.03400): the results after a step, and its gradient."""
    return fn(trained(fn, p, x), x)


def shrunk(fn, params, x, group, **options):
    """The graph's small function, the small params, and the plan."""
    graph = jg.trace(fn, params, x, **options)
    assert group in graph.groups
    keep = np.arange(graph.groups[group].size) % 4 != 1
    plan = jg.make_plan(graph, {group: keep})
    return (
        *jg.shrink(graph, params, plan),
        plan,
        jg.without_entries(graph, {group: keep}),
    )


@pytest.mark.parametrize("name", NETS)
def test_a_training_step_of_convolutions_shrinks(name):
    net, params, x, group = network(name)
    step = functools.partial(trained, net)
    small_fn, small, plan, without = shrunk(
        step, params, x, group, shrinking=lambda path, leaf: True
    )
    expected, found, whole = jax.jit(
        lambda: (step(small, x), small_fn(small, x), without(params, x))
    )()
    assert small["a"].size + small["b"].size < params["a"].size + params["b"].size
    jax.tree.map(near, found, expected)
    jax.tree.map(near, jg.slice_tree(plan, whole), expected)


def test_the_gradient_through_a_training_step_shrinks():
    net, params, x, group = network("depthwise")
    fn = functools.partial(adapted, net)
    small_fn, small, _, _ = shrunk(fn, params, x, group)
    each = [jax.grad(lambda p, f=f: jnp.sin(f(p, x)).sum()) for f in (fn, small_fn)]
    expected, found = jax.jit(lambda: [grad(small) for grad in each])()
    jax.tree.map(near, found, expected)


def test_tangents_of_a_pooling_shrink():
    net, params, x, group = network("largest")
    fn = lambda p, x: jax.jvp(lambda x: net(p, x), (x,), (jnp.cos(x),))[1]  # noqa: E731
    small_fn, small, _, without = shrunk(fn, params, x, group)
    expected, *found = jax.jit(
        lambda: (fn(small, x), small_fn(small, x), without(params, x))
    )()
    for each in found:
        near(each, expected)
