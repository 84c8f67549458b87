"""Widths from densities, and branches that go one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import graph as jg


def _chain(widths):
    def net(params, x):
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return x @ params[-1]

    params = [jnp.zeros(pair) for pair in itertools.pairwise(widths)]
    return jg.trace(net, params, jnp.zeros((2, widths[0])))


@pytest.mark.parametrize("widths", [(40, 17, 64), (1, 1, 1), (40, 50, 64), (3, 50, 2)])
def test_precrop_finds_the_widths_that_densities_come_from(widths):
    graph, full = _chain((7, 40, 50, 64, 3)), (7, 40, 50, 64, 3)
    small = (7, *widths, 3)
    densities = {
        str(i): small[i] * small[i + 1] / (full[i] * full[i + 1]) for i in range(4)
    }
    found = jp.recipes.precrop(graph, densities)
    assert tuple(found[f"{i}[1]"] for i in range(3)) == widths
    keep = jg.first_entries(graph, found)
    assert {n: int(m.sum()) for n, m in keep.items()} == {
        n: c for n, c in found.items() if c < graph.groups[n].size
    }
    assert all(m[: m.sum()].all() for m in keep.values())


def test_precrop_is_the_least_squares_of_coupled_groups():
    """A residual stream: against a search over all pairs of sizes."""

    def net(params, x):
        x = x @ params["stem"]
        x = x + jnp.tanh(x @ params["up"]) @ params["down"]
        return x @ params["head"]

    shapes = {"stem": (5, 16), "up": (16, 24), "down": (24, 16), "head": (16, 3)}
    params = {n: jnp.zeros(s) for n, s in shapes.items()}
    graph = jg.trace(net, params, jnp.zeros((2, 5)))
    for densities in (
        {"stem": 0.7, "up": 0.2, "down": 0.3, "head": 0.9},
        {"stem": 0.1, "up": 0.5, "down": 0.6, "head": 0.2},  # hidden at its bound
        {"stem": 1.0, "up": 0.02, "down": 0.0, "head": 1.0},
    ):
        found = jp.recipes.precrop(graph, densities)
        (stream,) = (n for n, g in graph.groups.items() if g.size == 16)
        (hidden,) = (n for n, g in graph.groups.items() if g.size == 24)
        logs = np.log([max(d, 1 / np.prod(shapes[n])) for n, d in densities.items()])

        s = np.log(np.linspace(1, 16, 400) / 16)[:, None]
        h = np.log(np.linspace(1, 24, 400) / 24)[None, :]
        wrong = (s - logs[0]) ** 2 + (s - logs[3]) ** 2
        wrong = wrong + (s + h - logs[1]) ** 2 + (s + h - logs[2]) ** 2
        i, j = np.unravel_index(wrong.argmin(), wrong.shape)
        assert abs(found[stream] - 16 * np.exp(s[i, 0])) < 0.6
        assert abs(found[hidden] - 24 * np.exp(h[0, j])) < 0.6


def test_precrop_of_concatenated_features():
    """Sums of sizes: the widths that the densities come from are found as well."""

    def net(params, x):
        left, right = jnp.tanh(x @ params["l"]), jnp.tanh(x @ params["r"])
        both = jnp.concatenate([left, right], axis=-1)
        return jnp.tanh(both @ params["mix"]) @ params["out"]

    shapes = {"l": (5, 20), "r": (5, 30), "mix": (50, 40), "out": (40, 3)}
    params = {n: jnp.zeros(s) for n, s in shapes.items()}
    graph = jg.trace(net, params, jnp.zeros((2, 5)))
    sizes = {"l[1]": 7, "r[1]": 21, "mix[1]": 13}
    plan = jg.make_plan(graph, jg.first_entries(graph, sizes))
    small = jg.shapes(plan, graph.params)
    densities = {n: np.prod(small[n].shape) / np.prod(s) for n, s in shapes.items()}
    assert jp.recipes.precrop(graph, densities) == sizes


def test_precrop_says_what_is_wrong():
    graph = _chain((7, 40, 3))
    assert jp.recipes.precrop(graph, {"0": 0.0, "1": 0.0}) == {"0[1]": 1}
    assert jp.recipes.precrop(graph, {"0": 0.0}, min_kept=6) == {"0[1]": 6}
    assert jp.recipes.precrop(graph, {"0": 1.0, "1": 1.0}) == {"0[1]": 40}
    with pytest.raises(jp.PruningError, match="no leaf '9'"):
        jp.recipes.precrop(graph, {"9": 0.5})
    with pytest.raises(
        jp.PruningError, match=r"density of '0' must be in \[0, 1\]; got 1.5"
    ):
        jp.recipes.precrop(graph, {"0": 1.5})
    with pytest.raises(jp.PruningError, match="min_kept must be at least 1; got 0"):
        jp.recipes.precrop(graph, {"0": 0.5}, min_kept=0)
    with pytest.raises(jp.PruningError, match=r"in \(0, 1\]; got 0"):
        jg.fit_widths(graph, {"0": 0.0})
    with pytest.raises(jp.PruningError, match="has 40 entries; got 41"):
        jg.first_entries(graph, {"0[1]": 41})
    with pytest.raises(jp.PruningError, match="no group 'x'"):
        jg.first_entries(graph, {"x": 1})


def _blocks(params, x):
    for block in params["blocks"]:
        x = x + jnp.tanh(x @ block["up"]) @ block["down"]
    return x @ params["head"]


def _block_params():
    draw = np.random.default_rng(0).normal
    f32 = lambda *shape: jnp.asarray(draw(size=shape) / 3, jnp.float32)  # noqa: E731
    blocks = [{"up": f32(6, 8), "down": f32(8, 6)} for _ in range(4)]
    return {"blocks": blocks, "head": f32(6, 2)}


def test_layer_lottery_removes_a_zeroed_block_first():
    params = _block_params()
    params["blocks"][2] = jax.tree.map(jnp.zeros_like, params["blocks"][2])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
    graph = jg.trace(_blocks, params, x)
    seen = []

    def taylor(fn, params):
        seen.append(jax.tree.map(jnp.size, params["blocks"]))
        grads = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, x) - 1.0)))(params)
        return jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)

    names = jp.recipes.layer_lottery(graph, params, taylor, 2)
    assert names[0] == "blocks/2"
    # The second is the least for the three blocks that are left, by hand.
    left = {**params, "blocks": [b for i, b in enumerate(params["blocks"]) if i != 2]}
    slopes = jax.grad(lambda p: jnp.mean(jnp.square(_blocks(p, x) - 1.0)))(left)
    means = [
        np.mean([np.abs(np.asarray(b[n] * g[n])).mean() for n in b])
        for b, g in zip(left["blocks"], slopes["blocks"], strict=True)
    ]
    assert names[1] == f"blocks/{(0, 1, 3)[int(np.argmin(means))]}"
    assert [sum(b["up"] > 0 for b in each) for each in seen] == [4, 3]
    fn, rest = jg.without_branches(graph, params, names)
    gone = {int(n[-1]) for n in names}
    kept = [b for i, b in enumerate(params["blocks"]) if i not in gone]
    np.testing.assert_allclose(
        jax.jit(fn)(rest, x), _blocks({**params, "blocks": kept}, x), rtol=1e-5
    )


def test_layer_lottery_takes_all_and_no_more():
    params = _block_params()
    graph = jg.trace(_blocks, params, jnp.zeros((5, 6)))
    sizes = lambda fn, params: jax.tree.map(jnp.abs, params)  # noqa: E731
    names = jp.recipes.layer_lottery(graph, params, sizes, 4)
    assert sorted(names) == [f"blocks/{i}" for i in range(4)]
    assert jp.recipes.layer_lottery(graph, params, sizes, 0) == []
    with pytest.raises(jp.PruningError, match="Cannot remove 5 branches"):
        jp.recipes.layer_lottery(graph, params, sizes, 5)
    with pytest.raises(jp.PruningError, match="count must not be negative; got -1"):
        jp.recipes.layer_lottery(graph, params, sizes, -1)
    nans = lambda fn, params: jax.tree.map(lambda w: w * jnp.nan, params)  # noqa: E731
    with pytest.raises(jp.NonFiniteScoreError, match="Branches with a NaN score"):
        jp.recipes.layer_lottery(graph, params, nans, 1)


@pytest.mark.parametrize(("inside", "count"), [(9.0, 1), (0.01, 2)])
def test_branches_inside_others_go_with_them(inside, count):
    """If the outer goes first, nothing is left; the inner can go before it."""

    def net(params, x):
        inner = x @ params["a"]
        inner = inner + jnp.tanh(inner @ params["b"])
        return x + inner @ params["c"]

    params = {"a": jnp.eye(3), "b": jnp.eye(3) * inside, "c": jnp.eye(3)}
    graph, x = jg.trace(net, params, jnp.ones((2, 3))), jnp.ones((2, 3))
    by_leaves = {len(b.leaves): name for name, b in jg.branches(graph).items()}
    assert set(by_leaves) == {1, 3}
    magnitudes = lambda fn, params: jax.tree.map(jnp.abs, params)  # noqa: E731
    names = jp.recipes.layer_lottery(graph, params, magnitudes, count)
    assert names == [by_leaves[1]] * (count - 1) + [by_leaves[3]]
    fn, rest = jg.without_branches(graph, params, names)
    assert all(w.size == 0 for w in jax.tree.leaves(rest))
    np.testing.assert_array_equal(fn(rest, x), x)
    with pytest.raises(jp.PruningError, match=r"Cannot remove \d+ branches"):
        jp.recipes.layer_lottery(graph, params, magnitudes, count + 1)
