"""Structural criteria against float64 NumPy, by hand, and by what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.graph_models import attention_params, grouped_attention, mlp, mlp_params

import jprune as jp
from jprune import graph as jg
from jprune import links
from jprune.graph import _distances

X = jnp.asarray(np.random.default_rng(5).normal(size=(7, 5)), jnp.float32)
A, B = "a/kernel[1]", "b/kernel[1]"  # the groups of `mlp`


def _example():
    params = mlp_params()
    graph = jg.trace(mlp, params, X)
    grads = jax.grad(lambda p: jnp.mean(jnp.square(mlp(p, X) - 1.0)))(params)
    return graph, params, grads


def _f64(tree):
    return jax.tree.map(lambda w: np.asarray(w, np.float64), tree)


def _members(tree):
    """The slices of each entry of both groups of `mlp`: group -> [(size, weights)]."""
    a, b, c = (tree[n]["kernel"] for n in "abc")
    return {A: [a.T, tree["a"]["bias"][:, None], b], B: [b.T, c]}


def _expected(scores, count, floors=1):
    """The entries of both groups that stay, the highest of all."""
    order = sorted(((s, n, k) for n, v in scores.items() for k, s in enumerate(v)))
    keep = {n: np.ones(len(v), bool) for n, v in scores.items()}
    for _, n, k in order:
        if count and keep[n].sum() > floors:
            keep[n][k] = False
            count -= 1
    return keep


def _check(pruner, graph, params, grads, scores, sparsity, count):
    _, masks = jp.prune(params, pruner(graph, sparsity), grads, where=jp.is_float)
    found, expected = jg.kept_by(graph, masks), _expected(scores, count)
    for name, mask in expected.items():
        np.testing.assert_array_equal(found.get(name, np.ones_like(mask)), mask)


@pytest.mark.parametrize(("sparsity", "count"), [(0.25, 5), (0.5, 10), (0.8, 16)])
def test_group_magnitude_by_numpy(sparsity, count):
    graph, params, grads = _example()
    scores = {
        n: np.mean([(m**2).sum(1) for m in members], axis=0)
        for n, members in _members(_f64(params)).items()
    }
    scores = {n: s / s.mean() for n, s in scores.items()}
    args = graph, params, grads, scores, sparsity, count
    _check(jp.recipes.group_magnitude, *args)


@pytest.mark.parametrize("joint", [True, False])
def test_group_taylor_by_numpy(joint):
    graph, params, grads = _example()
    terms = _members(jax.tree.map(np.multiply, _f64(params), _f64(grads)))
    if joint:
        scores = {n: sum(m.sum(1) for m in each) ** 2 for n, each in terms.items()}
    else:
        scores = {n: sum((m**2).sum(1) for m in each) for n, each in terms.items()}

    def pruner(graph, sparsity):
        return jp.recipes.group_taylor(graph, sparsity, joint=joint)

    _check(pruner, graph, params, grads, scores, 0.4, 8)


def test_the_joint_terms_are_the_derivative_for_a_gate():
    """Of one gate on all of an entry's weights, by autodiff through the gate."""
    graph, params, grads = _example()
    terms = jax.tree.map(jnp.multiply, params, grads)
    found = jg.group_scores(graph, terms, combine=jnp.sum, normalize=None)

    def loss(gates):
        gated = {
            "a": {
                "kernel": params["a"]["kernel"] * gates[A][None, :],
                "bias": params["a"]["bias"] * gates[A],
            },
            "b": {
                "kernel": params["b"]["kernel"] * gates[A][:, None] * gates[B][None, :]
            },
            "c": {"kernel": params["c"]["kernel"] * gates[B][:, None]},
        }
        return jnp.mean(jnp.square(mlp(gated, X) - 1.0))

    expected = jax.grad(loss)({A: jnp.ones(12), B: jnp.ones(8)})
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each, rtol=1e-4, atol=1e-6)


def test_group_fisher_by_numpy_over_three_gradients():
    graph, params, grads = _example()
    decay, link = 0.7, jp.score_by_fisher(0.7)
    each = [jax.tree.map(lambda g, s=s: g * s + s, grads) for s in (1.0, -0.3, 0.8)]
    state = link.init(params)
    mean, total = jax.tree.map(np.zeros_like, _f64(params)), 0.0
    update = jax.jit(link.update)
    for g in each:
        terms, state = update(g, state, params)
        squares = jax.tree.map(np.square, _f64(g))
        mean = jax.tree.map(lambda m, s: decay * m + (1 - decay) * s, mean, squares)
        total = decay * total + (1 - decay)
    expected = jax.tree.map(lambda w, m: w**2 * m / total, _f64(params), mean)
    for a, b in zip(*map(jax.tree.leaves, (terms, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert int(state.count) == 3
    # One gradient: its square alone. What an entry saves are 7 rows of 4 bytes.
    first = jax.tree.map(lambda w, g: w**2 * g**2, _f64(params), _f64(grads))
    scores = {n: sum(m.sum(1) for m in s) for n, s in _members(first).items()}
    less = {
        n: jg.activation_bytes(graph, {n: g.size - 1}) for n, g in graph.groups.items()
    }
    saved = {n: jg.activation_bytes(graph) - each for n, each in less.items()}
    assert saved == {A: 28, B: 28}
    _check(jp.recipes.group_fisher, graph, params, grads, scores, 0.4, 8)


def test_group_fisher_divides_by_what_an_entry_saves():
    """Four times the information, for ten times the memory."""

    def net(params, x):
        first, second = params
        most = jnp.tanh(x @ first["u"]) @ first["v"]
        return most + jnp.tanh(x[:1] @ second["u"]) @ second["v"]

    params = [{"u": jnp.ones((2, 4)), "v": jnp.ones((4, 1))} for _ in range(2)]
    graph = jg.trace(net, params, jnp.ones((10, 2)))
    grads = jax.tree.map(jnp.ones_like, params)
    grads[0] = jax.tree.map(lambda g: 2 * g, grads[0])
    for cost, gone in ((jg.activation_bytes, "0/u[1]"), (None, "1/u[1]")):
        pruner = jp.recipes.group_fisher(graph, 0.25, cost=cost)
        keep = jg.kept_by(graph, jp.prune(params, pruner, grads)[1])
        assert {n: int((~m).sum()) for n, m in keep.items()} == {gone: 2}


@pytest.mark.others_code
def test_fisher_in_track_sees_every_step():
    graph, params, grads = _example()
    pruner = jp.recipes.group_fisher(graph, 0.5, None)
    tx = jp.sparsify(
        optax.sgd(0.0), pruner, begin=4, end=4, track=jp.score_by_fisher(0.9)
    )
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(5):
        _, state = update(
            jax.tree.map(lambda g, i=i: g * (i + 1), grads), state, params
        )
    assert int(state.track.count) == 5
    mean = sum(0.9 ** (4 - i) * (i + 1) ** 2 for i in range(5))
    mean /= sum(0.9 ** (4 - i) for i in range(5))
    squares = np.asarray(state.track.squares["c"]["kernel"]) / (1 - 0.9**5)
    wanted = mean * np.square(np.asarray(grads["c"]["kernel"]))
    np.testing.assert_allclose(squares, wanted, rtol=1e-5)
    keep = jg.kept_by(graph, jp.masks_of(state))
    assert sum(int((~m).sum()) for m in keep.values()) == 10


def test_distances_by_numpy_over_output_axes():
    graph, params, _ = _example()
    found = jg.geometric_median_scores(graph, params, normalize=None)
    exact = _f64(params)
    for name, leaf in ((A, "a"), (B, "b")):
        rows = exact[leaf]["kernel"].T
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
        np.testing.assert_allclose(found[name], apart.sum(1), rtol=1e-5)
    # Without roles all axes of kernels count alike.
    none = jg.geometric_median_scores(
        graph, params, normalize=None, layout=lambda *_: jp.KernelAxes((), ())
    )
    both = [np.asarray(exact["a"]["kernel"]).T, np.asarray(exact["b"]["kernel"])]
    apart = [np.linalg.norm(r[:, None] - r[None], axis=-1).sum(1) for r in both]
    np.testing.assert_allclose(none[A], np.mean(apart, axis=0), rtol=1e-5)


def test_rows_of_entries_follow_products_and_concatenations():
    """Channels that are flattened with positions, and two groups side by side."""

    def net(params, x):
        left, right = jnp.tanh(x @ params["l"]), jnp.tanh(x @ params["r"])
        both = jnp.concatenate([left, right], axis=-1)  # (3 places, 2 + 4 channels)
        return both.reshape(1, 18) @ params["out"]

    draw = np.random.default_rng(0).normal
    params = {"l": draw(size=(5, 2)), "r": draw(size=(5, 4)), "out": draw(size=(18, 2))}
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
    graph = jg.trace(net, params, jnp.ones((3, 5)))
    out = np.asarray(params["out"]).reshape(3, 6, 2)
    for name, columns in (("l[1]", slice(0, 2)), ("r[1]", slice(2, 6))):
        group = graph.groups[name]
        (member,) = (m for m in group.members if m.path == "out")
        rows = _distances.entry_rows(group, member, params["out"])
        expected = out[:, columns].transpose(1, 0, 2).reshape(group.size, 6)
        np.testing.assert_array_equal(rows, expected)


def test_fpgm_drops_what_others_repeat_and_magnitude_what_is_small():
    draw = np.random.default_rng(0).normal(size=(6, 8))
    draw[:, 5] = draw[:, 2] = draw[:, 7] = 3 * draw.mean(axis=1)  # three of a kind
    draw[:, 0] = -0.02 * draw[:, 0]
    params = {"in": jnp.asarray(draw, jnp.float32), "out": jnp.ones((8, 2)) / 100}
    net = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]  # noqa: E731
    graph = jg.trace(net, params, jnp.ones((3, 6)))
    exact = np.linalg.norm(draw.T[:, None] - draw.T[None], axis=-1).sum(1)
    order = np.lexsort((-np.arange(8), exact))
    keep = {
        name: jg.kept_by(graph, jp.prune(params, pruner)[1])["in[1]"]
        for name, pruner in (
            ("fpgm", jp.recipes.fpgm(graph, 1 / 4)),
            ("l2", jp.recipes.group_magnitude(graph, 1 / 8)),
        )
    }
    np.testing.assert_array_equal(np.flatnonzero(~keep["fpgm"]), np.sort(order[:2]))
    np.testing.assert_array_equal(np.flatnonzero(~keep["l2"]), [0])


def test_a_repeated_filter_is_at_distance_zero():
    """Exactly: the sum is that to the others alone, in spite of a large mean."""
    rows = np.full((4, 3), 1e4, np.float32)
    rows[3] += 0.125
    params = {"in": jnp.asarray(rows.T), "out": jnp.ones((4, 1))}
    net = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]  # noqa: E731
    graph = jg.trace(net, params, jnp.ones((3, 3)))
    (found,) = jg.geometric_median_scores(graph, params, normalize=None).values()
    step = np.sqrt(3) * 0.125
    np.testing.assert_allclose(found, [step, step, step, 3 * step], rtol=1e-6)


def _scaled():
    """A stream with two scales, hidden units with one, and units without any."""

    def net(params, x):
        x = x @ params["stem"] * params["s1"][None]
        x = x + jnp.tanh(x @ params["up"] * params["s2"][None]) @ params["down"]
        x = jnp.tanh(x * params["s3"][None]) @ params["in"]
        return jnp.tanh(x) @ params["out"] * params["end"][None]

    ones = lambda *shape: jnp.ones(shape)  # noqa: E731
    params = {"stem": ones(2, 4), "up": ones(4, 3), "down": ones(3, 4)}
    params |= {"in": ones(4, 5), "out": ones(5, 2), "end": ones(2)}
    params["s1"] = jnp.array([0.1, -3.0, 0.5, 1.0])
    params["s3"] = jnp.array([0.1, -3.0, -1.5, 1.0])  # means 0.1, 3, 1, 1
    params["s2"] = jnp.array([0.2, -0.9, 5.0])
    return params, jg.trace(net, params, jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("sparsity", "stream", "hidden"),
    [
        (0.0, [1, 1, 1, 1], [1, 1, 1]),
        (2 / 7, [0, 1, 1, 1], [0, 1, 1]),
        (3 / 7, [0, 1, 1, 1], [0, 0, 1]),
        (5 / 7, [0, 1, 0, 0], [0, 0, 1]),
        (1.0, [0, 1, 0, 0], [0, 0, 1]),  # one of each stays
    ],
)
def test_slimming_keeps_the_largest_scales(sparsity, stream, hidden):
    params, graph = _scaled()
    pruner = jp.recipes.network_slimming(graph, sparsity, jp.matching("s[123]"))
    pruned, masks = jp.prune(params, pruner, where=jp.is_float)
    np.testing.assert_array_equal(pruned["s1"] != 0, np.array(stream, bool))
    np.testing.assert_array_equal(pruned["s3"] != 0, np.array(stream, bool))
    np.testing.assert_array_equal(pruned["s2"] != 0, np.array(hidden, bool))
    assert jnp.all(masks["out"]), "a group without a scale is left alone"
    np.testing.assert_array_equal(pruned["in"][:, 0] != 0, np.array(stream, bool))


def test_slimming_says_what_it_misses():
    params, graph = _scaled()
    with pytest.raises(jp.PruningError, match="'s9' matches no leaf"):
        jp.recipes.network_slimming(graph, 0.5, jp.matching("s9"))
    with pytest.raises(jp.PruningError, match="No group may shrink"):
        jp.recipes.network_slimming(graph, 0.5, jp.matching("end"))
    pruner = jp.recipes.network_slimming(graph, 0.5, jp.matching("s[123]"))
    with pytest.raises(
        jp.PruningError, match=r"not see the scales \['s1', 's2', 's3'\]"
    ):
        jp.prune(params, pruner)


def test_groups_say_what_they_miss():
    graph, params, _ = _example()
    link = jg.keep_groups(graph, 0.5)
    with pytest.raises(jp.PruningError, match="keep_groups needs the params"):
        link.update(None, link.init(params))
    partial = jg.keep_groups(graph, 0.5, score=lambda graph, scores: {})
    with pytest.raises(jp.PruningError, match="no score for the group"):
        jp.prune(params, partial)


def test_mask_sparsity_pulls_the_doomed_scales_of_every_member():
    params, graph = _scaled()
    (stream,) = (n for n, g in graph.groups.items() if g.size == 4)
    keep = {stream: np.array([False, True, True, False])}
    link = jp.recipes.mask_sparsity(graph, keep, 0.25, jp.matching("s[123]"))
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, _ = jax.jit(link.update)(zeros, link.init(params), params)
    np.testing.assert_array_equal(found["s1"], [0.25, 0, 0, 0.25])
    np.testing.assert_array_equal(found["s3"], [0.25, 0, 0, 0.25])
    assert not any(np.any(found[n]) for n in params if n not in ("s1", "s3"))
    with pytest.raises(jp.PruningError, match="no group 'x'"):
        jp.recipes.mask_sparsity(graph, {"x": keep[stream]}, 0.1, jp.is_float)


def test_mask_sparsity_leaves_the_kept_scales_as_they_would_be():
    """A training whose loss is flat: the doomed go to zero, the kept stay."""
    params, graph = _scaled()
    scales = jp.matching("s[123]")
    pruner = jp.recipes.network_slimming(graph, 3 / 7, scales)
    keep = jg.kept_by(graph, jp.prune(params, pruner, where=jp.is_float)[1])
    ours = jp.recipes.mask_sparsity(graph, keep, 0.01, scales)
    theirs = jg.add_l1(0.01, scales)
    trained = {}
    for name, link in (("ours", ours), ("theirs", theirs)):
        tx, at = optax.chain(link, optax.sgd(1.0)), params
        state = tx.init(at)
        for _ in range(10):
            zeros = jax.tree.map(jnp.zeros_like, at)
            updates, state = tx.update(zeros, state, at)
            at = optax.apply_updates(at, updates)
        trained[name] = at
    np.testing.assert_allclose(trained["ours"]["s1"], [0, -3.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(trained["theirs"]["s1"], [0, -2.9, 0.4, 0.9], atol=1e-6)


def test_attention_is_pruned_by_every_criterion():
    """Heads of queries and keys, channels and hidden units compete in one ranking."""
    params = attention_params()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), jnp.float32)
    graph = jg.trace(grouped_attention, params, x)
    grads = jax.grad(lambda p: jnp.mean(jnp.square(grouped_attention(p, x) - 1)))(
        params
    )
    total = sum(g.size for g in graph.groups.values())
    for pruner in (
        jp.recipes.group_magnitude(graph, 0.4),
        jp.recipes.group_taylor(graph, 0.4),
        jp.recipes.group_fisher(graph, 0.4),
        jp.recipes.fpgm(graph, 0.4, scope="global", layout=jg.layout(graph)),
    ):
        keep = jg.kept_by(graph, jp.prune(params, pruner, grads)[1])
        assert sum(int((~m).sum()) for m in keep.values()) >= round(0.4 * total)
        small_fn, small = jg.shrink(graph, params, jg.make_plan(graph, keep))
        assert small_fn(small, x).shape == x.shape


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: links.score_by_weight(0), "positive integer; got 0"),
        (lambda: links.score_by_fisher(1.0), r"in \[0, 1\); got 1.0"),
        (lambda: links.score_by_fisher(-0.1), r"in \[0, 1\); got -0.1"),
    ],
)
def test_numbers_of_criteria_are_checked(make, match):
    with pytest.raises(jp.PruningError, match=match):
        make()


@pytest.mark.parametrize(
    "link", [links.score_by_gate(), links.score_by_fisher(), links.score_by_weight()]
)
def test_criteria_say_what_they_miss(link):
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = link.init(params)
    with pytest.raises(jp.PruningError, match="needs the params"):
        link.update(params, state)
    with pytest.raises(jp.PruningError, match="only floating-point"):
        link.init({"n": jnp.arange(3)})
    found, _ = link.update(params, state, params)
    assert found["w"].dtype == jnp.float32
