"""Arrays drawn inside of a function, gradients at full size, and tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import graph as jg
from tests.support.graph_cases import double  # noqa: F401

KEPT = [0, 2, 3, 7, 10]


def normal(*shape):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape))


def typed():
    return jax.random.key(3)


def raw():
    return jax.random.PRNGKey(3)


def rbg():
    return jax.random.key(3, impl="rbg")


def unsafe():
    return jax.random.key(3, impl="unsafe_rbg")


DRAWS = {
    "normal": lambda key: jax.random.normal(key, (7, 12)),
    "half": lambda key: jax.random.uniform(key, (7, 12), jnp.bfloat16).astype(float),
    "integers": lambda key: jax.random.randint(key, (7, 12), 0, 9).astype(float),
    "signs": lambda key: jax.random.rademacher(key, (7, 12)).astype(float),
    "dropped": lambda key: jax.random.bernoulli(key, 0.5, (7, 12)).astype(float),
    "counts": lambda key: jax.random.poisson(key, 3.0, (7, 12)).astype(float),
    "in a scan": lambda key: lax.scan(
        lambda total, k: (total + jax.random.normal(k, (7, 12)), None),
        jnp.zeros((7, 12)),
        jax.random.split(key, 3),
    )[0],
    "by rows": lambda key: jax.vmap(lambda k: jax.random.normal(k, (12,)))(
        jax.random.split(key, 7)
    ),
}


@pytest.mark.parametrize(
    ("name", "make"),
    [*((name, typed) for name in DRAWS), *(("normal", m) for m in (raw, rbg, unsafe))],
)
def test_arrays_drawn_inside_keep_their_entries(name, make):
    """The small function multiplies by columns of the same array as the full one."""

    def fn(p, x):
        return jnp.cos(x @ DRAWS[name](make())) @ p["o"]

    params, x = {"o": normal(12, 3)}, normal(5, 7)
    graph = jg.trace(fn, params, x)
    drawn = np.asarray(DRAWS[name](make()))
    wanted = np.cos(np.asarray(x) @ drawn[:, KEPT]) @ np.asarray(params["o"])[KEPT]
    mask = np.isin(np.arange(12), KEPT)
    small, p = jg.shrink(graph, params, keep={"o[0]": mask})
    full = jg.without_entries(graph, {"o[0]": mask})
    for found in jax.jit(lambda: (small(p, x), full(params, x)))():
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


NORMED = {
    "columns of a product": lambda p, x: _unit(x @ p["a"] @ p["b"], 0),
    "heads of a product": lambda p, x: _unit(
        (x @ p["a"] @ p["b"]).reshape(5, 4, 3), 2
    ).reshape(5, 12),
    "columns of a convolution": lambda p, x: _unit(
        lax.conv_general_dilated(
            (x @ p["a"])[None],
            p["b"][None],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )[0],
        0,
    ),
    "columns of a depthwise convolution": lambda p, x: _unit(
        lax.conv_general_dilated(
            (x @ p["a"] @ p["b"])[None],
            p["d"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=12,
        )[0],
        0,
    ),
    "sums by segments": lambda p, x: _unit(
        jax.ops.segment_sum(x @ p["a"] @ p["b"], jnp.array([0, 1, 1, 0, 1]), 2), 0
    ),
}


def _unit(h, axis):
    return h / jnp.sqrt(jnp.sum(h * h, axis, keepdims=True))  # no epsilon


@pytest.mark.parametrize("name", NORMED)
def test_gradients_at_full_size_are_those_of_the_small_function(name):
    def fn(p, x):
        return jnp.tanh(NORMED[name](p, x)) @ p["o"]

    params = {"a": normal(6, 4), "b": normal(4, 12), "o": normal(12, 3)}
    params["d"] = normal(3, 1, 12)
    x = normal(5, 6)
    graph = jg.trace(fn, params, x)
    keep = {n: np.arange(g.size) % 3 != 1 for n, g in graph.groups.items()}
    assert any(m.path == "o" for g in graph.groups.values() for m in g.members)
    plan = jg.make_plan(graph, keep)
    small, p = jg.shrink(graph, params, plan)
    full = jg.without_entries(graph, keep)

    def slopes(f, params):
        return jax.grad(lambda p: jnp.square(f(p, x)).sum())(params)

    both = jax.jit(lambda: (slopes(full, params), slopes(small, p)))
    full_slopes, small_slopes = both()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(full_slopes))
    for a, b in zip(
        jax.tree.leaves(jg.slice_tree(plan, full_slopes)),
        jax.tree.leaves(small_slopes),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def reads_by_one_hot(p, t):
    return jnp.tanh(jax.nn.one_hot(t, 50) @ p["table"]) @ p["o"]


def compares_whole_arrays(p, t):
    each = jnp.broadcast_to(t[:, None], (4, 50))  # as JAX 0.7.2 writes `one_hot`
    hot = (each == lax.broadcasted_iota(t.dtype, (4, 50), 1)).astype(float)
    return jnp.tanh(hot @ p["table"]) @ p["o"]


def reads_positions(p, t):
    grid = jax.image.resize(p["table"].reshape(7, 7, 8), (4, 4, 8), "bilinear")
    h = jnp.take(jnp.eye(5), t, axis=0) @ p["w"]
    return jnp.tanh(h + grid.reshape(16, 8)[:4]) @ p["o"]


TABLES = {
    "one-hot": (reads_by_one_hot, {"table": (50, 8), "o": (8, 3)}),
    "whole arrays": (compares_whole_arrays, {"table": (50, 8), "o": (8, 3)}),
    "resized": (reads_positions, {"table": (49, 8), "o": (8, 3), "w": (5, 8)}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_stay_whole_unless_they_are_named(name):
    fn, shapes = TABLES[name]
    params = {n: normal(*s) for n, s in shapes.items()}
    t = jnp.array([0, 4, 3, 1])
    small = jg.compress(fn, params, t, remove=0.5, multiple_of=1)
    assert small.params["table"].shape[0] == shapes["table"][0]
    assert small.params["o"].shape[0] < 8
    kinds = {
        n: g.kind
        for n, g in small.graph.groups.items()
        if any(m.path == "table" and m.axis == 0 for m in g.members)
    }
    assert set(kinds.values()) == {"table"}
    scores = {n: jnp.arange(g.size) for n, g in small.graph.groups.items()}
    for where in (jg.is_width, jg.is_inner(small.graph)):
        assert not any(where(small.graph.groups[n]) for n in kinds)
    for named in kinds:
        assert named in jg.explain(small.graph).split("whole by default")[1]
        chosen = jg.choose(
            small.graph, scores, 0.4, where=lambda g, n=named: g.name == n
        )
        assert list(chosen) == [named]
    if name == "one-hot":  # tokens that are left read their own rows
        plan = jg.make_plan(small.graph, {named: [0, 1, 3, 4]})
        fewer, p = jg.shrink(small.graph, params, plan)
        np.testing.assert_allclose(fewer(p, t), fn(params, t), rtol=1e-9)


def test_experts_that_one_hot_vectors_choose_may_go():
    def fn(p, x, t):
        to = jax.nn.one_hot(t, 6)
        y = jnp.einsum("tn,enm->etm", x, p["up"])
        return jnp.einsum("etm,te->tm", jnp.tanh(y), to)

    graph = jg.trace(
        fn, {"up": normal(6, 4, 3)}, normal(5, 4), jnp.array([0, 1, 2, 2, 4])
    )
    (experts,) = [g for g in graph.groups.values() if g.size == 6]
    assert experts.kind != "table"
    assert jg.is_width(experts)
    assert "whole by default" not in jg.explain(graph)
