"""Scores of groups, what sizes cost, and what to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.graph_models import attention_params, grouped_attention, mlp, mlp_params

import jprune as jp
from jprune import graph as jg

CASES = {
    "mlp": (mlp, mlp_params, (7, 5)),
    "attention": (grouped_attention, attention_params, (9, 6)),
}


def traced(case):
    fn, make, shape = CASES[case]
    params = make()
    return jg.trace(fn, params, jnp.zeros(shape)), params


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("host", [False, True])
def test_the_score_of_an_entry_is_what_goes_with_it(case, host):
    graph, params = traced(case)
    scores = jax.tree.map(jnp.abs, params)
    given = jax.tree.map(np.asarray, scores) if host else scores
    found = jg.group_scores(graph, given, combine=jnp.sum, normalize=None)
    for name, group in graph.groups.items():
        for k in range(group.size):
            rest = np.flatnonzero(np.arange(group.size) != k)
            plan = jg.make_plan(graph, {name: rest})
            left = jg.slice_tree(plan, scores)
            # Each leaf's own axes: cut one axis at a time, as members count twice.
            gone = 0.0
            for path, axes in plan.items():
                for axis, kept in axes.items():
                    leaf = _leaf(scores, path)
                    gone += float(leaf.sum() - jnp.take(leaf, kept, axis=axis).sum())
            assert jax.tree.structure(left) == jax.tree.structure(params)
            np.testing.assert_allclose(found[name][k], gone, rtol=1e-5)


def _leaf(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def test_scores_combine_and_are_normalized_within_a_group():
    graph, params = traced("mlp")
    squares = jax.tree.map(jnp.square, params)
    mean = jg.group_scores(graph, squares)["a/kernel[1]"]
    raw = jg.group_scores(graph, squares, normalize=None)["a/kernel[1]"]
    members = [
        (params["a"]["bias"] ** 2),
        (params["a"]["kernel"] ** 2).sum(0),
        (params["b"]["kernel"] ** 2).sum(1),
    ]
    np.testing.assert_allclose(raw, sum(members) / 3, rtol=1e-5)
    np.testing.assert_allclose(mean, raw / raw.mean(), rtol=1e-5)
    alone = jg.group_scores(
        graph, squares, combine=jg.first_member, normalize=jg.by_max
    )
    np.testing.assert_allclose(
        alone["a/kernel[1]"], members[0] / members[0].max(), rtol=1e-5
    )


def test_scores_of_hidden_leaves_do_not_count_and_wrong_ones_are_named():
    graph, params = traced("mlp")
    kernels = jp.tree.only(jp.tree.flags(jp.is_kernel, params), params)
    found = jg.group_scores(graph, kernels, combine=jnp.sum, normalize=None)
    expected = params["a"]["kernel"].sum(0) + params["b"]["kernel"].sum(1)
    np.testing.assert_allclose(found["a/kernel[1]"], expected, rtol=1e-5)
    with pytest.raises(jp.PruningError, match="no leaf d/kernel"):
        jg.group_scores(graph, {"d": {"kernel": jnp.ones(3)}})
    with pytest.raises(jp.PruningError, match=r"shape \(8, 3\) at c/kernel; got"):
        jg.group_scores(graph, {"c": {"kernel": jnp.ones((3, 8))}})


@pytest.mark.parametrize("case", CASES)
def test_costs_are_those_of_the_smaller_function(case):
    graph, params = traced(case)
    rng = np.random.default_rng(1)
    for _ in range(5):
        keep = {
            n: rng.permutation(g.size) < g.size // 2 for n, g in graph.groups.items()
        }
        sizes = jg.sizes(graph, keep)
        small, left = jg.shrink(graph, params, jg.make_plan(graph, keep))
        again = jg.trace(small, left, *graph.inputs)
        for cost in (
            jg.multiply_adds,
            jg.parameters,
            jg.parameter_bytes,
            jg.activation_bytes,
            jg.bytes_moved,
        ):
            assert cost(graph, sizes) == cost(again, {}), cost.__name__
        assert jg.parameters(graph, sizes) == sum(x.size for x in jax.tree.leaves(left))


@pytest.mark.optimized
def test_multiply_adds_are_half_of_the_flops_that_xla_counts():
    graph, params = traced("mlp")
    linear = lambda p, x: x @ p["a"]["kernel"] @ p["b"]["kernel"]  # noqa: E731
    graph = jg.trace(linear, params, jnp.zeros((7, 5)))
    found = jax.jit(linear).lower(params, jnp.zeros((7, 5))).compile().cost_analysis()
    assert jg.multiply_adds(graph) * 2 == found["flops"]
    assert jg.multiply_adds(graph) == 7 * 5 * 12 + 7 * 12 * 8


def test_loops_count_each_turn_and_branches_the_dearest():
    def looped(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ params["out"], lambda x: x, x)

    params = {"layers": jnp.zeros((3, 4, 4)), "out": jnp.zeros((4, 4))}
    graph = jg.trace(looped, params, jnp.zeros((2, 4)))
    assert jg.multiply_adds(graph) == 3 * 2 * 4 * 4 + 2 * 4 * 4
    assert [o.leaves for o in jg.operations(graph)] == [("layers",), ("out",)]


def test_a_penalty_has_the_gradient_of_its_polynomial():
    graph, _ = traced("attention")
    charge = jg.penalty(jg.multiply_adds, 0.5)
    sizes = {n: jnp.float32(g.size) for n, g in graph.groups.items()}
    value, slopes = jax.value_and_grad(lambda s: charge(graph, s))(sizes)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    full = jg.multiply_adds(graph)
    for name, group in graph.groups.items():
        # Linear in each size: the difference of one entry is the derivative.
        one = full - jg.multiply_adds(graph, {name: group.size - 1})
        np.testing.assert_allclose(slopes[name], one / full, rtol=1e-5)
    small = {n: jnp.float32(1) for n in graph.groups}
    assert charge(graph, small) == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cost", [jg.multiply_adds, jg.parameters, jg.bytes_moved])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7])
def test_a_budget_holds_and_one_entry_more_would_break_it(case, cost, sparsity):
    graph, params = traced(case)
    scores = jg.group_scores(graph, jax.tree.map(jnp.square, params))
    keep = jg.choose(graph, scores, sparsity, cost=cost)
    budget = (1 - sparsity) * cost(graph, {})
    assert cost(graph, jg.sizes(graph, keep)) <= budget
    if not keep:
        return
    # The best entry that went: with it, and all like it, the budget would not hold.
    gone = {n: np.where(m, -np.inf, np.asarray(scores[n])) for n, m in keep.items()}
    best = max(gone, key=lambda n: gone[n].max())
    more = keep | {best: keep[best] | (gone[best] == gone[best].max())}
    assert cost(graph, jg.sizes(graph, more)) > budget


def test_keys_say_what_competes():
    graph, _ = traced("mlp")
    a, b = graph.groups
    scores = {a: jnp.arange(12.0) + 100, b: jnp.arange(8.0)}
    together = jg.choose(graph, scores, 0.35)  # 7 of 20, all of the weaker group
    assert set(together) == {b}
    assert together[b].sum() == 1
    each = jg.choose(graph, scores, 0.5, compete=jg.each_group)
    assert each[a].tolist() == [False] * 6 + [True] * 6
    assert each[b].tolist() == [False] * 4 + [True] * 4
    for compete in (jg.same_kind, jg.isomorphic):
        assert set(jg.choose(graph, scores, 0.35, compete=compete)) <= {a, b}


def test_the_old_keyword_of_what_competes_works_for_a_release():
    graph, _ = traced("mlp")
    scores = {n: jnp.arange(g.size * 1.0) for n, g in graph.groups.items()}
    with pytest.warns(DeprecationWarning, match=r"choose\(compete=\)"):
        found = jg.choose(graph, scores, 0.25, scope=jg.each_group)
    wanted = jg.choose(graph, scores, 0.25, compete=jg.each_group)
    assert list(found) == list(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_sizes_of_bools_indices_and_gates():
    graph, _ = traced("mlp")
    a, b = graph.groups
    masks = {a: np.arange(12) < 5, b: jnp.arange(8) % 2 == 0}
    indices = {a: [0, 1, 2, 3, 4], b: np.array([6, 2, 2, 4, 0])}
    for keep in (masks, indices):
        assert jg.sizes(graph, keep) == {a: 5, b: 4}
        assert jg.make_plan(graph, keep)["c/kernel"][0].tolist() == [0, 2, 4, 6]
    assert jg.sizes(graph, {a: jnp.full(12, 0.25)}) == {a: 3}
    with pytest.raises(jp.PruningError, match="no group 'c'"):
        jg.sizes(graph, {"c": [0]})


def test_ties_go_to_the_lower_entry():
    graph, _ = traced("mlp")
    a, b = graph.groups
    same = {a: jnp.ones(12), b: jnp.ones(8)}
    keep = jg.choose(graph, same, 0.5, compete=jg.each_group)
    assert keep[a].tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("cost", [None, jg.multiply_adds])
def test_sizes_are_multiples_and_floors_hold(multiple, cost):
    graph, params = traced("mlp")
    scores = jg.group_scores(graph, jax.tree.map(jnp.square, params))
    for sparsity in (0.2, 0.45):
        keep = jg.choose(graph, scores, sparsity, cost=cost, multiple_of=multiple)
        for mask in keep.values():
            assert mask.sum() % multiple == 0
            assert mask.sum() >= multiple
    keep = jg.choose(graph, scores, 0.6, min_kept=5, most=0.5)
    for name, mask in keep.items():
        assert mask.sum() >= max(5, graph.groups[name].size / 2)


def test_what_cannot_be_selected_is_said():
    graph, params = traced("mlp")
    scores = jg.group_scores(graph, params)
    with pytest.raises(jp.PruningError, match=r"in \[0, 1\); got 1"):
        jg.choose(graph, scores, 1.0)
    with pytest.raises(jp.PruningError, match="Even the minimum sizes cost"):
        jg.choose(graph, scores, 0.99, cost=jg.multiply_adds)
    with pytest.raises(jp.PruningError, match="no score for the group"):
        jg.choose(graph, {}, 0.5)
    with pytest.raises(jp.PruningError, match="has 12 entries; got scores of shape"):
        jg.choose(graph, dict.fromkeys(graph.groups, jnp.ones(3)), 0.5)
    nans = {n: jnp.full(g.size, jnp.nan) for n, g in graph.groups.items()}
    with pytest.raises(jp.NonFiniteScoreError, match="group a/kernel"):
        jg.choose(graph, nans, 0.5)
    with pytest.raises(jp.PruningError, match="No group may shrink"):
        jg.choose(graph, scores, 0.5, where=lambda group: False)
