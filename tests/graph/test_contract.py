"""What a shrunk function and its plan promise: JAX's transforms, plans, errors."""

import functools
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jprune as jp
from jprune import graph as jg

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def mlp(p, x):
    h = jax.nn.gelu(x @ p["w"] + p["b"])
    h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 0.1)
    return jax.nn.relu(h @ p["block"]["w"]) @ p["out"]


@pytest.fixture
def case():
    params = {
        "w": normal(3, 8),
        "b": normal(1, 8),
        "block": {"w": normal(8, 6)},
        "out": normal(6, 2),
    }
    x = normal(5, 3)
    graph = jg.trace(mlp, params, x)
    plan = jg.make_plan(graph, {"w[1]": [0, 3, 4], "block/w[1]": [1, 2, 5]})
    return graph, params, x, plan


def test_transforms_agree_with_the_function_itself(case):
    graph, params, x, plan = case
    small, p = jg.shrink(graph, params, plan)
    assert jax.tree.map(jnp.shape, p) == {
        "w": (3, 3),
        "b": (1, 3),
        "block": {"w": (3, 3)},
        "out": (3, 2),
    }
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    near(small(p, x), mlp(p, x))
    near(jax.jit(small)(p, x), mlp(p, x))
    near(jax.vmap(small, (None, 0))(p, x[:, None]), mlp(p, x)[:, None])
    many = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), p)
    near(jax.vmap(small, (0, None))(many, x)[0], mlp(p, x))
    grads = jax.grad(lambda p: small(p, x).sum())(p)
    jax.tree.map(near, grads, jax.grad(lambda p: mlp(p, x).sum())(p))
    tangents = jax.jvp(lambda x: small(p, x), (x,), (x,))
    near(tangents[1], jax.jvp(lambda x: mlp(p, x), (x,), (x,))[1])
    _, out = jax.lax.scan(lambda c, row: (c, small(p, row)), 0, x[:, None])
    near(out, mlp(p, x)[:, None])
    near(jax.checkpoint(small)(p, x), mlp(p, x))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(p):
        slopes = jax.grad(lambda p: small(p, x).sum())(p)
        return jax.tree.map(lambda w, g: w - g, p, slopes)

    near(step(jax.tree.map(jnp.copy, p))["out"], p["out"] - grads["out"])


def test_other_batches_and_types_are_recorded_anew(case):
    graph, params, _, plan = case
    small, p = jg.shrink(graph, params, plan)
    for n in (0, 1, 6, 8):  # also the sizes of the hidden axes
        x = normal(n, 3)
        np.testing.assert_allclose(small(p, x), mlp(p, x), rtol=1e-5, atol=1e-6)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
    out = small(half, normal(2, 3).astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16


def test_export(case):
    """Bit for bit after serialization; the derivative too."""
    graph, params, x, plan = case
    small, p = jg.shrink(graph, params, plan)
    exported = export.export(jax.jit(small))(p, x)
    again = export.deserialize(exported.serialize(vjp_order=1))
    np.testing.assert_array_equal(again.call(p, x), jax.jit(small)(p, x))
    slopes, expected = (
        jax.grad(lambda p, fn=fn: jnp.square(fn(p, x)).sum())(p)
        for fn in (again.call, small)
    )
    for a, b in zip(*map(jax.tree.leaves, (slopes, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_sharded_arrays(case):
    graph, params, _, plan = case
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(normal(16, 3), spec)
    small, p = jg.shrink(graph, params, plan)
    out = jax.jit(small)(p, x)
    assert out.sharding.is_equivalent_to(spec, 2)
    np.testing.assert_allclose(out, mlp(p, x), rtol=1e-5, atol=1e-6)


def test_a_sharding_that_no_longer_divides_is_left_out():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))

    def fn(p, x):
        return jax.lax.with_sharding_constraint(x @ p["a"], spec) @ p["b"]

    params, x = {"a": normal(3, 16), "b": normal(16, 2)}, normal(4, 3)
    graph = jg.trace(fn, params, x)
    for kept in ([0, 5, 6], range(8)):
        plan = jg.make_plan(graph, {"a[1]": list(kept)})
        small, p = jg.shrink(graph, params, plan)
        np.testing.assert_allclose(
            jax.jit(small)(p, x), x @ p["a"] @ p["b"], rtol=1e-5, atol=1e-6
        )


def same_plans(a, b):
    full = {path: axes for path, axes in a.items() if axes}
    other = {path: axes for path, axes in b.items() if axes}
    return jax.tree.structure(full) == jax.tree.structure(other) and all(
        map(np.array_equal, jax.tree.leaves(full), jax.tree.leaves(other))
    )


def test_a_plan_is_plain_data(case):
    graph, params, x, plan = case
    again = jg.loads(jg.dumps(plan))
    assert same_plans(plan, again)
    assert json.loads(jg.dumps(plan))["out"] == {"0": [1, 2, 5]}
    small, p = jg.shrink(graph, params, again)
    np.testing.assert_allclose(small(p, x), mlp(p, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"w": [1, 2]}',
        '{"w": {"one": [0]}}',
        '{"w": {"0": [0.5]}}',
        '{"w": {"0": [2, 1]}}',
        '{"w": {"0": [1, 1]}}',
        '{"w": {"0": [-1, 1]}}',
        '{"w": {"0": []}}',
        '{"w": {"0": [true]}}',
        '{"w": {"0": 3}}',
        '{"w": {"0": [[0, 1]]}}',
    ],
)
def test_other_texts_are_no_plan(text):
    with pytest.raises(jp.PruningError, match="does not describe a plan"):
        jg.loads(text)


def test_two_plans_are_one(case):
    graph, params, x, plan = case
    small, p = jg.shrink(graph, params, plan)
    second = jg.trace(small, p, x)
    assert {g.size for g in second.groups.values()} == {3}
    then = jg.make_plan(second, {"w[1]": [0, 2], "block/w[1]": [1]})
    smaller, twice = jg.shrink(second, p, then)
    both = jg.compose(plan, then)
    assert both["w"][1].tolist() == [0, 4]
    assert both["out"][0].tolist() == [2]
    direct, once = jg.shrink(graph, params, both)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    np.testing.assert_allclose(direct(once, x), smaller(twice, x), rtol=1e-6)
    np.testing.assert_allclose(direct(once, x), mlp(once, x), rtol=1e-5, atol=1e-6)


def test_expand_undoes_slice(case):
    graph, params, _, plan = case
    _, p = jg.shrink(graph, params, plan)
    jax.tree.map(np.testing.assert_array_equal, jg.expand(plan, p, params), params)
    full = jg.expand(plan, p, jax.tree.map(jnp.zeros_like, params))
    jax.tree.map(np.testing.assert_array_equal, jg.slice_tree(plan, full), p)
    kept = np.zeros(8, bool)
    kept[[0, 3, 4]] = True
    assert not np.any(np.asarray(full["w"])[:, ~kept])


@pytest.mark.others_code
def test_states_and_masks_are_sliced_like_params(case):
    graph, params, _, plan = case
    _, p = jg.shrink(graph, params, plan)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    sliced = jg.slice_tree(plan, optimizer.init(params))
    fresh = optimizer.init(p)
    assert jax.tree.structure(sliced) == jax.tree.structure(fresh)
    jax.tree.map(np.testing.assert_array_equal, sliced, fresh)
    masks = jax.tree.map(lambda w: w > 0, params)
    jax.tree.map(
        np.testing.assert_array_equal,
        jg.slice_tree(plan, masks),
        jax.tree.map(lambda w: w > 0, p),
    )
    whole = jax.tree.map(lambda w: np.ones((1,) * w.ndim, bool), params)
    assert jg.slice_tree(plan, whole)["out"].shape == (1, 1)  # it broadcasts


def test_a_leaf_that_stays_is_not_taken_for_one_that_ends_alike():
    """`w` shrinks, `block/w` does not, also in the state of an optimizer."""

    def fn(p, x):
        return jnp.sin(x @ p["w"]) @ p["v"] @ p["block"]["w"]

    params = {"w": normal(3, 4), "v": normal(4, 5), "block": {"w": normal(5, 4)}}
    graph = jg.trace(fn, params, normal(2, 3))
    plan = jg.make_plan(graph, {"w[1]": [1, 3]})
    assert jg.slice_tree(plan, params)["block"]["w"].shape == (5, 4)
    state = jg.slice_tree(plan, (3, {"mu": params}))
    assert state[1]["mu"]["w"].shape == (3, 2)
    assert state[1]["mu"]["block"]["w"].shape == (5, 4)


def test_misuse_says_what_is_wrong(case):
    graph, params, x, plan = case
    small, p = jg.shrink(graph, params, plan)
    full = jg.without_entries(graph, {"w[1]": jnp.arange(8) < 3})
    wrong = {"w": {1: np.array([0, 2])}}
    cases = [
        (lambda: jg.make_plan(graph, {"v[1]": [0]}), r"no group 'v\[1\]'.*w\[1\]"),
        (lambda: jg.make_plan(graph, {"w[1]": []}), r"w\[1\] would lose all its 8"),
        (
            lambda: jg.make_plan(graph, {"w[1]": [8]}),
            r"8 entries; got the indices \[8\]",
        ),
        (
            lambda: jg.make_plan(graph, {"w[1]": np.ones(3, bool)}),
            r"got bools of shape \(3,\)",
        ),
        (
            lambda: jg.shrink(graph, params, wrong),
            r"keeps 2 of 8 entries of w\[1\]|entries of b",
        ),
        (
            lambda: jg.shrink(graph, params, {"v": {0: [0]}}),
            "leaf 'v' that the traced params lack",
        ),
        (
            lambda: jg.shrink(graph, params, {"w": {2: [0]}}),
            "axis 2 of w, which has 2 axes",
        ),
        (lambda: jg.shrink(graph, params, {"w": {1: [9]}}), r"w\[1\] has 8 entries"),
        (lambda: jg.shrink(graph, params, {"w": {0: [0]}}), "an axis of an input"),
        (lambda: small(params, x), r"the shape \(1, 3\) at b; got \(1, 8\)"),
        (lambda: small([p], x), r"unknown leaves \['0/b'"),
        (lambda: full(params, x[:2]), r"recorded for inputs .*; got .*2"),
        (lambda: jg.without_entries(graph, {"v": jnp.ones(8)}), "no group 'v'"),
        (
            lambda: jg.without_entries(graph, {"w[1]": jnp.array([0, 3])}),
            r"shape \(2,\)",
        ),
        (
            lambda: jg.slice_tree(plan, {"out": np.ones((2, 2))}),
            r"out has shape \(2, 2",
        ),
    ]
    for call, message in cases:
        with pytest.raises(jp.PruningError, match=message):
            call()


def test_rules_of_the_caller_serve_other_inputs_too():
    """A primitive that jprune does not know, and a rule for it."""
    primitive = jax.extend.core.Primitive("jprune_test_negative")
    primitive.def_impl(lambda x: -x)
    primitive.def_abstract_eval(lambda x: x)

    def fn(p, x):
        return primitive.bind(x @ p["a"]) @ p["b"]

    params, x = {"a": normal(3, 4), "b": normal(4, 2)}, normal(2, 3)
    assert not jg.trace(fn, params, x).groups

    def rule(node, recorder):
        return jg.Outcome([node.inputs[0].axes])

    graph = jg.trace(fn, params, x, rules={"jprune_test_negative": rule})
    plan = jg.make_plan(graph, {"a[1]": [1]})
    small, p = jg.shrink(graph, params, plan)
    for n in (2, 3):
        x = normal(n, 3)
        np.testing.assert_allclose(small(p, x), -x @ p["a"] @ p["b"], rtol=1e-5)


def test_states_made_for_a_part_of_the_params_are_cut_along():
    def fn(variables, x):
        p = variables["params"]["dense"]
        return jnp.tanh(x @ p["in"] + variables["stats"]["mean"][None]) @ p["out"]

    part = {"dense": {"in": normal(3, 6), "out": normal(6, 2)}}
    variables = {"params": part, "stats": {"mean": normal(6)}}
    graph = jg.trace(fn, variables, normal(4, 3))
    plan = jg.make_plan(graph, {"params/dense/in[1]": [0, 2]})
    state = jg.slice_tree(plan, optax.adam(1.0).init(part))
    expected = optax.adam(1.0).init(jg.slice_tree(plan, variables)["params"])
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, expected)


def test_options_are_one_of_two_words():
    with pytest.raises(
        jp.PruningError, match='divisors must be "rescale" or "keep"; got'
    ):
        jg.trace(jnp.sum, normal(3), options=jg.Options(divisors="scale"))


@pytest.mark.parametrize("enabled", [True, False])
def test_tracing_leaves_the_garbage_collector_alone(enabled):
    """Seen from the traced function, from a rule during the analysis, and after."""
    primitive = jax.extend.core.Primitive("jprune_test_look")
    primitive.def_abstract_eval(lambda x: x)
    seen = []

    def look():
        seen.append((gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 0))

    def fn(p, x):
        look()
        return primitive.bind(x @ p)

    def rule(node, recorder):
        look()
        return jg.Outcome([node.inputs[0].axes])

    (gc.enable if enabled else gc.disable)()
    gc.freeze()
    try:
        look()
        jg.trace(fn, jnp.ones((3, 4)), jnp.ones((2, 3)), rules={primitive.name: rule})
        look()
    finally:
        gc.unfreeze()
        gc.enable()
    assert len(seen) == 4
    assert set(seen) == {(enabled, gc.get_threshold(), True)}


def test_kept_entries_shrink_as_their_plan_does(case):
    graph, params, x, plan = case
    keep = {"w[1]": np.isin(np.arange(8), [0, 3, 4]), "block/w[1]": [1, 2, 5]}
    small, p = jg.shrink(graph, params, keep=keep)
    other, q = jg.shrink(graph, params, plan)
    jax.tree.map(np.testing.assert_array_equal, p, q)
    for inputs in (x, normal(3, 3)):  # recorded, and traced anew
        np.testing.assert_array_equal(small(p, inputs), other(q, inputs))
        np.testing.assert_allclose(small(p, inputs), mlp(p, inputs), rtol=2e-5)
    whole, r = jg.shrink(graph, params, keep={})
    assert jax.tree.map(jnp.shape, r) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(whole(r, x), mlp(params, x), rtol=2e-5)


def test_either_a_plan_or_kept_entries_shrink(case):
    graph, params, _, plan = case
    for args, options in (((), {}), ((plan,), {"keep": {}}), (({},), {"keep": {}})):
        with pytest.raises(jp.PruningError, match="either a plan or keep="):
            jg.shrink(graph, params, *args, **options)
    with pytest.raises(jp.PruningError, match=r"w\[1\] would lose all its 8"):
        jg.shrink(graph, params, keep={"w[1]": np.zeros(8, bool)})


def test_other_params_than_the_traced_ones_are_refused_by_name(case):
    graph, params, x, plan = case
    small, p = jg.shrink(graph, params, plan)
    less = {path: leaf for path, leaf in params.items() if path != "b"}
    cases = [
        (less, r"missing leaves \['b'\], unknown leaves \[\]"),
        (params | {"c": x}, r"missing leaves \[\], unknown leaves \['c'\]"),
        (params | {"block": [params["block"]["w"]]}, r"\['block/w'\].*\['block/0'\]"),
        (params | {"b": normal(8)}, r"the shape \(1, 8\) at b; got \(8,\)"),
    ]
    for wrong, message in cases:
        for of in ({"plan": plan}, {"keep": {"w[1]": [0]}}):
            with pytest.raises(jp.PruningError, match=message):
                jg.shrink(graph, wrong, **of)
    with pytest.raises(
        jp.PruningError, match=r"shrunk params .* missing leaves \['b'\]"
    ):
        small({path: leaf for path, leaf in p.items() if path != "b"}, x)
