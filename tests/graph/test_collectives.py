"""Collectives over mapped axes and meshes: the small function is the original's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jprune as jp
from jprune import graph as jg
from tests.support.graph_cases import double, near, normal  # noqa: F401

AROUND = [(i, (i + 1) % 4) for i in range(4)]


def mesh(*shape):
    names, count = ("i", "j")[: len(shape)], np.prod(shape)
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names, types, devices=jax.devices()[:count])


def check(fn, params, x, keep, names=None):
    """The small function and the one without entries equal fn on the small arrays.

    fn takes all its sizes from the arrays, so it is its own oracle. Gradients, too.
    """
    graph = jg.trace(fn, params, x)
    assert set(graph.groups) == set(names or keep)
    masks = {n: np.isin(np.arange(graph.groups[n].size), k) for n, k in keep.items()}
    plan = jg.make_plan(graph, masks)
    small_fn, small = jg.shrink(graph, params, plan)
    assert sum(w.size for w in small.values()) < sum(w.size for w in params.values())
    without = jg.without_entries(graph, masks)

    def total(fn, p):
        return jnp.sin(fn(p, x)).sum()

    near(small_fn(small, x), fn(small, x))
    expected = jax.jit(jax.value_and_grad(functools.partial(total, fn)))(small)
    found = jax.jit(jax.value_and_grad(functools.partial(total, small_fn)))(small)
    jax.tree.map(near, found, expected)
    found = jax.jit(jax.value_and_grad(functools.partial(total, without)))(params)
    jax.tree.map(near, (found[0], jg.slice_tree(plan, found[1])), expected)
    return graph


# Collective along features or not, and the rows of the kernel after it.
OPS = {
    "psum": (lambda h: lax.psum(h, "i"), 8),
    "pmean": (lambda h: lax.pmean({"a": h, "b": h * h}, "i")["b"], 8),
    "pmax": (lambda h: lax.pmax(lax.stop_gradient(h), "i") * h, 8),
    "pmin": (lambda h: lax.pmin(lax.stop_gradient(h), "i") * h, 8),
    "all_gather": (lambda h: lax.all_gather(h, "i").sum(0), 8),
    "all_gather_features": (
        lambda h: lax.all_gather(h, "i", axis=1, tiled=True),
        32,
    ),
    "ppermute": (lambda h: lax.ppermute(h, "i", AROUND), 8),
    "psum_scatter": (
        lambda h: lax.psum_scatter(h, "i", scatter_dimension=1, tiled=True),
        2,
    ),
    "all_to_all": (lambda h: lax.all_to_all(h, "i", 1, 0, tiled=True), 2),
    "all_to_all_same": (lambda h: lax.all_to_all(h, "i", 1, 1, tiled=True), 8),
    "axis_index": (lambda h: h * (1 + lax.axis_index("i")).astype(h.dtype), 8),
    "mean_of_sums": (
        lambda h: (
            h - lax.psum(h.sum(1, keepdims=True), "i") / (h.shape[1] * lax.psum(1, "i"))
        ),
        8,
    ),
    "norm": (
        lambda h: h / jnp.sqrt(lax.pmean((h * h).mean(1, keepdims=True), "i")),
        8,
    ),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_collectives(how, name):
    op, rows = OPS[name]

    def one(p, x):
        return jnp.tanh(op(jnp.tanh(x @ p["a"]))) @ p["b"]

    def fn(p, x):
        if how == "vmap":
            return jax.vmap(functools.partial(one, p), axis_name="i")(x)
        whole = jax.shard_map(
            lambda p, x: one(p, x[0])[None],
            mesh=mesh(4),
            in_specs=(P(), P("i")),
            out_specs=P("i"),
        )
        return whole(p, x)

    params, x = {"a": normal(3, 8), "b": normal(rows, 2)}, normal(4, 4, 3)
    blocks = name in ("psum_scatter", "all_to_all", "all_to_all_same")
    keep = {"a[1]": [1] if blocks else [0, 3, 4]}
    graph = check(fn, params, x, keep)
    assert graph.groups["a[1]"].size == (2 if blocks else 8)


def test_members_of_an_ensemble():
    """The mean over a mapped axis is over the members that are left."""

    def fn(p, x):
        def one(p):
            return lax.pmean(jnp.tanh(x @ p["a"]) @ p["b"], "member")

        return jax.vmap(one, axis_name="member", out_axes=None)(p)

    params, x = {"a": normal(4, 3, 8), "b": normal(4, 8, 2)}, normal(5, 3)
    check(fn, params, x, {"a[0]": [0, 2, 3], "a[2]": [1, 2]})


def test_experts_on_several_devices():
    """Tokens go to the devices of their experts and back; so do the gradients."""

    def body(p, x):
        h = lax.all_to_all(jnp.einsum("td,edf->etf", x, p["in"]), "i", 0, 1, tiled=True)
        h = jnp.einsum("etf,efg->etg", jax.nn.relu(h), p["up"])
        h = jnp.einsum("etg,egd->etd", jax.nn.relu(h), p["down"])
        return lax.all_to_all(h, "i", 1, 0, tiled=True).sum(0)

    specs = {"in": P(), "up": P("i"), "down": P("i")}
    fn = jax.shard_map(body, mesh=mesh(2), in_specs=(specs, P("i")), out_specs=P("i"))
    params = {"in": normal(4, 3, 5), "up": normal(4, 5, 6), "down": normal(4, 6, 2)}
    keep = {"in[2]": [0, 2], "up[2]": [1, 2, 5], "down[0]": [1]}
    check(fn, params, normal(8, 3), keep)


def test_layers_in_a_shard_map():
    """A scan with recomputed layers, of which one and some hidden units go."""

    def body(p, x):
        def layer(h, w):
            h += lax.psum(jax.nn.gelu(h @ w["up"]) @ w["down"], "i")
            return h, None

        return lax.scan(jax.checkpoint(layer), x, p)[0]

    specs = {"up": P(None, None, "i"), "down": P(None, "i")}
    fn = jax.shard_map(
        body, mesh=mesh(2, 2), in_specs=(specs, P("j")), out_specs=P("j")
    )
    params = {"up": normal(3, 4, 8), "down": normal(3, 8, 4)}
    check(fn, params, normal(4, 4), {"up[2]": [0, 2], "down[0]": [0, 2]})


def test_a_model_whose_features_are_sharded():
    """Each device loses the same entries, so that the shards stay equal."""

    def body(p, x):
        h = jax.nn.relu(lax.pmax(x, "j") @ p["a"])  # relu: a custom derivative
        square = lax.psum((h * h).sum(-1, keepdims=True), "i")
        h = h / jnp.sqrt(square / (2 * h.shape[1]) + 0.1)
        return lax.pmean(lax.psum(h @ p["b"], "i").sum(0), "j")

    specs = ({"a": P(None, "i"), "b": P("i")}, P("j"))
    fn = jax.shard_map(body, mesh=mesh(2, 2), in_specs=specs, out_specs=P())
    params, x = {"a": normal(3, 8), "b": normal(8, 2)}, normal(8, 3)
    graph = check(fn, params, x, {"a[1]": [0, 3]})
    (group,) = graph.groups.values()
    (places,) = jg.entry_indices(group, group.members[0])
    np.testing.assert_array_equal(places, [0, 1, 2, 3, 0, 1, 2, 3])
    assert jg.multiply_adds(graph) == 8 * 3 * 8 + 8 * 8 * 2
    assert jg.layout(graph)("b", params["b"]) == jp.KernelAxes((0,), (1,))
    (note,) = [n for n in graph.notes if n.kind == "rescaled"]
    assert "the size 8" in note.what


def test_a_shard_map_whose_results_are_sharded():
    """The result is joined again, and meets an axis that is not sharded."""
    split = {"mesh": mesh(4), "in_specs": P(None, "i"), "out_specs": P(None, "i")}

    def fn(p, x):
        return (jax.shard_map(jnp.tanh, **split)(x @ p["a"]) + x @ p["c"]) @ p["b"]

    params = {"a": normal(3, 8), "b": normal(8, 2), "c": normal(3, 8)}
    check(fn, params, normal(5, 3), {"a[1]": [1]})


def test_pmap_is_followed_or_named():
    """JAX before 0.8 compiles it for the recorded sizes."""

    def fn(p, x):
        one = lambda x: jax.nn.relu(x @ p["a"]) @ p["b"] + lax.pmean(x[0, 0], "i")  # noqa: E731
        return jnp.tanh(jax.pmap(one, axis_name="i")(x) @ p["c"]) @ p["d"]

    params = {"a": normal(3, 8), "b": normal(8, 4), "c": normal(4, 6)}
    params |= {"d": normal(6, 2)}
    if jax.__version_info__ >= (0, 8):
        check(fn, params, normal(2, 5, 3), {"a[1]": [0, 3], "c[1]": [1], "b[1]": [2]})
    else:
        graph = check(fn, params, normal(2, 5, 3), {"c[1]": [1]})
        assert "jax.pmap" in jg.explain(graph)


def bound(fn, axis_size):
    """A function of a batch of axis_size parts, whose mean is over all of them."""
    mapped = jax.vmap(fn, (None, 0), axis_name="batch", axis_size=axis_size)
    return lambda p, x: mapped(p, x.reshape(axis_size, -1, x.shape[-1]))


def test_names_that_the_caller_binds():
    """The program of one position, for other numbers of positions, too."""

    def fn(p, x):
        h = x @ p["a"]
        h = jax.nn.relu(h - lax.pmean(h.mean(0, keepdims=True), "batch"))
        return h @ p["b"] + lax.psum(1, "batch")

    params, x = {"a": normal(3, 8), "b": normal(8, 2)}, normal(8, 3)
    with pytest.raises(jp.PruningError, match=r"axis_env=\{name: size\}"):
        jg.trace(fn, params, x[:2])
    graph = jg.trace(fn, params, x[:2], axis_env={"batch": 4})
    small_fn, small = jg.shrink(graph, params, keep={"a[1]": [0, 5]})
    for count in (4, 2):
        expected = bound(fn, count)(small, x)
        near(bound(small_fn, count)(small, x), expected)
    with pytest.raises(jp.PruningError, match="where they are bound"):
        small_fn(small, x[:2])
    masks = {"a[1]": np.isin(np.arange(8), [0, 5])}
    without = jg.without_entries(graph, masks)
    near(bound(without, 4)(params, x), bound(fn, 4)(small, x))
    assert jg.layout(graph)("a", params["a"]) == jp.KernelAxes((0,), (1,))
    with pytest.raises(jp.PruningError, match=r"sizes \{'batch': 4\}.*'batch': 2"):
        jax.vmap(without, (None, 0), axis_name="batch")(params, x[:4].reshape(2, 2, 3))
    found = jax.grad(lambda p: jnp.sin(bound(small_fn, 4)(p, x)).sum())(small)
    wanted = jax.grad(lambda p: jnp.sin(bound(fn, 4)(p, x)).sum())(small)
    jax.tree.map(near, found, wanted)
    mapped = {"mesh": mesh(4), "in_specs": (P(), P("batch")), "out_specs": P("batch")}
    mapped["mesh"] = jax.make_mesh(
        (4,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:4]
    )
    found = jax.shard_map(small_fn, **mapped, check_vma=False)(small, x)
    near(found, bound(fn, 4)(small, x).reshape(8, 2))
