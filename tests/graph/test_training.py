"""Structure in training: masks of groups, decays of weak entries, whole branches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.graph_models import attention_params, grouped_attention, mlp, mlp_params

import jprune as jp
from jprune import graph as jg


@pytest.mark.others_code
def test_gradual_masks_of_channels_end_as_smaller_arrays():
    params, x = mlp_params(), jax.random.normal(jax.random.key(0), (7, 5))
    graph = jg.trace(mlp, params, x)
    schedule = jp.cubic(0.5, begin=0, steps=20)
    pruner = jg.keep_groups(graph, schedule)
    tx = jp.sparsify(optax.adamw(1e-2), pruner, every=5)
    loss = lambda p: jnp.mean((mlp(p, x) - 1.0) ** 2)  # noqa: E731

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=30)
    keep = jg.kept_by(graph, jp.masks_of(state))
    assert sum(m.sum() for m in keep.values()) == 10  # of 20 hidden units
    plan = jg.make_plan(graph, keep)
    small, left = jg.shrink(graph, params, plan)
    np.testing.assert_allclose(small(left, x), mlp(params, x), rtol=1e-5, atol=1e-6)
    hidden = left["a"]["kernel"].shape[1] + left["b"]["kernel"].shape[1]
    assert hidden == 10


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_masks_of_groups_are_what_choose_keeps(scope):
    params = attention_params()
    graph = jg.trace(grouped_attention, params, jnp.zeros((9, 6)))
    squares = jax.tree.map(jnp.square, params)
    pruner = jg.keep_groups(graph, 0.5, scope=scope)
    masks, _ = jax.jit(lambda s: pruner.update(s, pruner.init(params), params))(squares)
    between = jg.all_groups if scope == "global" else jg.each_group
    keep = jg.choose(graph, jg.group_scores(graph, squares), 0.5, compete=between)
    expected = jg.param_masks(graph, keep)
    for name, w in params.items():
        ours, theirs = (np.broadcast_to(m[name], w.shape) for m in (masks, expected))
        np.testing.assert_array_equal(ours, theirs)
    found = jg.kept_by(graph, masks)
    assert set(found) == set(keep)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, keep[name])


def test_weak_entries_decay_faster_by_the_formula():
    params = mlp_params()
    graph = jg.trace(mlp, params, jnp.zeros((7, 5)))
    link = jg.add_group_decay(graph, 0.1)
    zeros = optax.tree.zeros_like(params)
    found, _ = jax.jit(link.update)(zeros, link.init(params), params)
    rates = {}
    a, b, c = (np.asarray(params[n]["kernel"], np.float64) for n in "abc")
    bias = np.asarray(params["a"]["bias"], np.float64)
    for name, squares in (
        ("a", (bias**2 + (a**2).sum(0) + (b**2).sum(1)) / 3),
        ("b", ((b**2).sum(0) + (c**2).sum(1)) / 2),
    ):
        s = np.sqrt(squares)
        rates[name] = 0.1 * 16 ** ((s.max() - s) / (s.max() - s.min()))
        np.testing.assert_allclose(rates[name].min(), 0.1)
        np.testing.assert_allclose(rates[name].max(), 1.6)
    # A kernel between two groups is pulled for both.
    both = rates["a"][:, None] + rates["b"][None, :]
    np.testing.assert_allclose(found["b"]["kernel"], both * b, rtol=1e-4)
    np.testing.assert_allclose(found["a"]["bias"], rates["a"] * bias, rtol=1e-4)


def test_growing_decay_grows_at_its_times_and_spares_the_strongest():
    params = mlp_params()
    graph = jg.trace(mlp, params, jnp.zeros((7, 5)))
    link = jg.add_growing_decay(graph, 1e-2, every=3, begin=0.5)
    state, zeros = link.init(params), optax.tree.zeros_like(params)
    for _ in range(7):  # grows at updates 0, 3 and 6
        _, state = link.update(zeros, state, params)
    for rates in state.rates.values():
        np.testing.assert_allclose(rates.min(), 0.5)
        np.testing.assert_allclose(rates.max(), 0.53, rtol=1e-5)
    with pytest.raises(jp.PruningError, match="at least 1 update; got 0"):
        jg.add_growing_decay(graph, every=0)


def test_l1_pulls_the_doomed_only():
    params = mlp_params()
    masks = {"a": {"kernel": True, "bias": jnp.arange(12) < 4}, "b": {"kernel": True}}
    masks["c"] = {"kernel": True}
    link = jg.add_l1(0.3, jp.matching("a/bias"), masks)
    zeros = optax.tree.zeros_like(params)
    found, _ = link.update(zeros, link.init(params), params)
    signs = np.sign(params["a"]["bias"]) * (np.arange(12) >= 4)
    np.testing.assert_allclose(found["a"]["bias"], 0.3 * signs)
    assert not np.any(found["a"]["kernel"])
    with pytest.raises(jp.PruningError, match="add_l1 needs the params"):
        link.update(zeros, link.init(params))


def test_a_branch_is_what_is_added_to_where_it_came_from():
    params, x = attention_params(), jax.random.normal(jax.random.key(0), (9, 6))
    graph = jg.trace(grouped_attention, params, x)
    found = jg.branches(graph)
    assert [set(b.leaves) for b in found.values()] == [set("qkvo"), {"up", "down"}]
    attention, hidden = found
    for names, zeroed in (
        ([attention], "o"),
        ([hidden], "down"),
        ([attention, hidden], "both"),
    ):
        fn, rest = jg.without_branches(graph, params, names)
        gone = {"o", "down"} if zeroed == "both" else {zeroed}
        silent = {n: w * float(n not in gone) for n, w in params.items()}
        np.testing.assert_allclose(
            jax.jit(fn)(rest, x), grouped_attention(silent, x), rtol=1e-5, atol=1e-6
        )
        empty = {n for n, w in rest.items() if w.size == 0}
        assert empty == {p for n in names for p in found[n].leaves}
        # For other inputs, and traced again.
        assert fn(rest, x[:4]).shape == (4, 6)
        again = jg.trace(fn, rest, x)
        assert len(jg.branches(again)) == 2 - len(names)
    with pytest.raises(jp.PruningError, match="no branch 'nothing'"):
        jg.without_branches(graph, params, ["nothing"])


def test_branches_score_the_mean_of_their_own_weights():
    params = attention_params()
    graph = jg.trace(grouped_attention, params, jnp.zeros((9, 6)))
    found = jg.branch_scores(graph, jax.tree.map(jnp.abs, params))
    weights = [np.concatenate([np.ravel(params[n]) for n in s]) for s in ("qkvo",)]
    weights.append(np.concatenate([np.ravel(params[n]) for n in ("up", "down")]))
    expected = [np.abs(w).mean() for w in weights]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)


def test_what_the_rest_uses_stays_with_a_branch_removed():
    def shared(params, x):
        return x @ params["w"] + jnp.tanh(x @ params["w"]) @ params["v"]

    def residual(params, x):
        x = x @ params["w"]
        return x + jnp.tanh(x @ params["v"]) @ params["w"]

    params = {"w": jnp.eye(3), "v": jnp.ones((3, 3))}
    x = jnp.ones((2, 3))
    assert not jg.branches(jg.trace(shared, params, x)), "x @ w is computed twice"
    graph = jg.trace(residual, params, x)
    (branch,) = jg.branches(graph).values()
    assert branch.leaves == ("v",)
    fn, rest = jg.without_branches(graph, params, [branch.name])
    assert rest["w"].shape == (3, 3)
    np.testing.assert_array_equal(fn(rest, x), x)


def test_what_changes_nothing_does_not_hide_a_stream():
    def residual(params, x):
        passing = jnp.pad(x[:, ::1], ((0, 0), (0, 0))).reshape(x.shape)
        return passing + jnp.tanh(x @ params["v"])

    def shifted(params, x):
        passing = jax.lax.pad(x, 0.0, ((0, 0, 0), (1, -1, 0)))
        return passing + jnp.tanh(x @ params["v"])

    params, x = {"v": jnp.ones((3, 3))}, jnp.ones((2, 3))
    assert set(jg.branches(jg.trace(residual, params, x))) == {"v"}
    assert not jg.branches(jg.trace(shifted, params, x))
