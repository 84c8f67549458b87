"""`compress`: the five steps in one call, whole heads, what stays whole, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jprune as jp
from jprune import graph as jg
from tests.support.graph_models import mlp, mlp_params

HEADS, DIM, EMBED = 4, 16, 32


def block(x, w):
    """Attention of four heads and an MLP, each in a residual branch."""
    q, k, v = (jnp.einsum("nd,dhk->nhk", x, w[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("nhk,mhk->hnm", q, k) / np.sqrt(DIM))
    mixed = jnp.einsum("hnm,mhk->nhk", weights, v)
    x = x + jnp.einsum("nhk,hkd->nd", mixed, w["o"])
    return x + jax.nn.relu(x @ w["up"]) @ w["down"]


def listed(p, x):
    for w in p["blocks"]:
        x = block(x, w)
    return x @ p["out"]


def scanned(p, x):
    return lax.scan(lambda x, w: (block(x, w), None), x, p["blocks"])[0] @ p["out"]


SHAPES = dict.fromkeys("qkv", (EMBED, HEADS, DIM))
SHAPES |= {"o": (HEADS, DIM, EMBED), "up": (EMBED, 64), "down": (64, EMBED)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(7, EMBED)), jnp.float32)


def attention(stacked, seed=0):
    """A network of two blocks and its params, in a list or stacked for a scan."""
    draw = np.random.default_rng(seed).normal
    f32 = lambda s: jnp.asarray(draw(size=s), jnp.float32)  # noqa: E731
    blocks = [{name: f32(s) for name, s in SHAPES.items()} for _ in range(2)]
    together = jax.tree.map(lambda *w: jnp.stack(w), *blocks) if stacked else blocks
    fn = scanned if stacked else listed
    return fn, {"blocks": together, "out": f32((EMBED, 3))}


def test_it_is_the_composition_of_the_five_steps():
    fn, params = attention(stacked=False)
    small = jg.compress(fn, params, X, remove=0.4)
    graph = jg.trace(fn, params, X)
    scores = jg.group_scores(graph, params, each=np.square)
    keep = jg.choose(
        graph,
        scores,
        0.4,
        cost=jg.multiply_adds,
        multiple_of=lambda group: 1 if group.kind == "heads" else 8,
        where=jg.whole_heads(graph),
    )
    plan = jg.make_plan(graph, keep)
    small_fn, small_params = jg.shrink(graph, params, plan)
    jax.tree.map(np.testing.assert_array_equal, small.params, small_params)
    jax.tree.map(np.testing.assert_array_equal, small.plan, plan)
    jax.tree.map(np.testing.assert_array_equal, small.keep, keep)
    np.testing.assert_array_equal(small.fn(small.params, X), small_fn(small_params, X))
    # And it computes what the full network does without these entries.
    without = jg.without_entries(small.graph, small.keep)(params, X)
    np.testing.assert_allclose(small.fn(small.params, X), without, rtol=2e-4, atol=1e-3)
    left = jg.multiply_adds(small.graph, jg.sizes(small.graph, small.keep))
    assert 0.5 < left / jg.multiply_adds(small.graph) <= 0.6
    momentum = jg.slice_tree(small.plan, optax.adam(1e-3).init(params))[0].mu
    assert jax.tree.map(jnp.shape, momentum) == jax.tree.map(jnp.shape, small.params)


def test_it_says_by_how_much_the_cost_fell():
    """Against products counted by hand, before and in the small params."""
    params, x = mlp_params(), jnp.ones((2, 5))

    def macs(p):
        return sum(2 * w.size for path, w in kernels(p).items())

    def kernels(p):
        each = jp.tree.by_path(p).items()
        return {path: w for path, w in each if path.endswith("kernel")}

    def size(p):
        return sum(w.size for w in jax.tree.leaves(p))

    def widths(p):  # 12 and 8 entries that may go
        return p["a"]["kernel"].shape[1] + p["b"]["kernel"].shape[1]

    for cost, count in (
        (jg.multiply_adds, macs),
        (jg.parameters, size),
        (None, widths),
    ):
        small = jg.compress(mlp, params, x, cost=cost, multiple_of=1)
        assert small.cost_before == count(params)
        assert small.cost_after == count(small.params) <= count(params) / 2
    default = jg.compress(mlp, params, x, multiple_of=1)
    assert default.cost_before == macs(params)
    total = jg.summary(default.graph, sizes=jg.sizes(default.graph, default.keep))
    assert total["total"]["after"]["multiply_adds"] == default.cost_after


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("remove", [0.3, 0.5, 0.75])
def test_heads_go_whole_and_keep_their_dimensions(stacked, remove):
    fn, params = attention(stacked)
    small = jg.compress(fn, params, X, remove=remove)
    heads = []
    for path, w in jp.tree.by_path(small.params["blocks"]).items():
        name = path.rsplit("/", 1)[-1]
        if name in ("q", "k", "v"):
            assert w.shape[-1] == DIM
            heads.append(w.shape[-2])
        elif name == "o":
            assert w.shape[-2] == DIM
            heads.append(w.shape[-3])
        else:
            assert w.shape[-1] % 8 == w.shape[-2] % 8 == 0
    assert min(heads) < HEADS


def test_by_default_choose_would_cut_head_dimensions_to_odd_widths():
    """What `whole_heads` is for."""
    fn, params = attention(stacked=False)
    graph = jg.trace(fn, params, X)
    scores = jg.group_l2(graph, params)
    keep = jg.choose(graph, scores, 0.5, cost=jg.multiply_adds)
    sizes = [n for name, n in jg.sizes(graph, keep).items() if name[-3:] == "[2]"]
    assert any(n % 8 for n in sizes)


def test_axes_that_several_groups_share_are_multiples_too():
    """Concatenated outputs, a fused gate, depthwise and grouped kernels, heads."""

    def conv(x, w, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    def fn(p, x):
        x = jnp.concatenate([jnp.tanh(conv(x, p[n])) for n in "ab"], axis=-1)
        x = jnp.tanh(conv(x, p["depthwise"], x.shape[-1]))
        x = jnp.tanh(conv(x, p["grouped"], 2)).reshape(1, -1, 64)
        up, gate = jnp.split(x @ p["fused"], 2, axis=-1)
        x = (up * jax.nn.silu(gate)) @ p["down"]
        q, k, v = ((x @ p[n]).reshape(1, -1, 4, 16) for n in "qkv")
        return jax.nn.dot_product_attention(q, k, v).reshape(1, -1, 64) @ p["o"]

    shapes = {"a": (3, 3, 3, 64), "b": (3, 3, 3, 64), "depthwise": (3, 3, 1, 128)}
    shapes |= {"grouped": (1, 1, 64, 64), "fused": (64, 160), "down": (80, 48)}
    shapes |= dict.fromkeys("qkv", (48, 64)) | {"o": (64, 10)}
    draw = np.random.default_rng(0).normal
    params = {n: jnp.asarray(draw(size=s), jnp.float32) for n, s in shapes.items()}
    small = jg.compress(fn, params, jnp.ones((1, 4, 4, 3)))
    for path, w in small.params.items():
        for full, left in zip(shapes[path], w.shape, strict=True):
            assert left % 8 == 0 or full % 8, f"{path}: {w.shape}"
    smaller = [n for n, w in small.params.items() if w.size < params[n].size]
    assert set(smaller) == set(params) - {"o"}  # its heads stay


def test_head_dimensions_shrink_to_multiples_where_no_head_can_go():
    def fn(p, x):
        q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
        return jax.nn.softmax(q @ k.T) @ v @ p["o"]

    draw = np.random.default_rng(0).normal
    shapes = {"q": (4, 24), "k": (4, 24), "v": (4, 24), "o": (24, 3)}
    params = {n: jnp.asarray(draw(size=s), jnp.float32) for n, s in shapes.items()}
    small = jg.compress(fn, params, X[:, :4], remove=0.3)
    widths = {small.params["k"].shape[1], small.params["v"].shape[1]}
    assert widths <= {8, 16, 24}
    assert min(widths) < 24


def test_stacked_kernels_are_params_so_hidden_units_are_no_head_dimensions():
    fn, params = attention(stacked=True)
    graph = jg.trace(fn, params, X)
    assert {name: group.kind for name, group in graph.groups.items()} == {
        "blocks/down[0]": "layer",
        "blocks/k[2]": "heads",
        "blocks/k[3]": "head",
        "blocks/up[2]": "hidden",
        "blocks/v[3]": "head",
    }


def test_widths_below_the_multiple_shrink_to_any_size():
    params = mlp_params()  # 12 and 8 hidden units
    x = jnp.ones((2, 5))
    small = jg.compress(mlp, params, x, remove=0.5, multiple_of=16)
    assert small.params["a"]["kernel"].shape[1] < 12
    assert small.params["b"]["kernel"].shape[1] < 8
    with pytest.raises(jp.PruningError, match=r"minimum sizes.*multiple_of"):
        jg.compress(mlp, params, x, remove=0.5)


def test_excluded_groups_stay_whole_and_a_pattern_without_a_leaf_is_refused():
    params = mlp_params()
    call = functools.partial(jg.compress, mlp, params, jnp.ones((2, 5)), multiple_of=1)
    for exclude in ("a/bias", ["a/bias"], ("a/kernel", "a/b.*")):
        small = call(remove=0.2, exclude=exclude)
        assert small.params["a"]["kernel"].shape == (5, 12)
        assert small.params["b"]["kernel"].shape[1] < 8


def test_refusals():
    params = mlp_params()
    call = functools.partial(jg.compress, mlp, params, jnp.ones((2, 5)))
    with pytest.raises(jp.PruningError, match=r"'d/.\*' matches no leaf"):
        call(exclude=["a/.*", "d/.*"])
    with pytest.raises(jp.PruningError, match="No group may shrink"):
        call(exclude=".*")
    for remove in (1.0, -0.1, 50):
        with pytest.raises(jp.PruningError, match=r"remove must be in \[0, 1\)"):
            call(remove=remove)


def test_scores_and_costs_of_ones_own_and_statistics_that_do_not_count():
    def fn(p, x):
        h = (x @ p["in"] - p["norm"]["mean"][None]) / p["norm"]["var"][None]
        return jax.nn.relu(h) @ p["out"]

    params = {"in": jnp.diag(jnp.arange(1.0, 5.0)), "out": jnp.ones((4, 2))}
    params["norm"] = {"mean": jnp.array([9.0, 0, 0, 0]), "var": jnp.ones(4)}
    call = functools.partial(jg.compress, fn, params, jnp.ones((2, 4)))
    small = call(cost=jg.parameters)
    np.testing.assert_array_equal(small.keep["in[1]"], [False, False, True, True])

    def backwards(graph, params):
        return {n: -s for n, s in jg.group_l2(graph, params).items()}

    small = call(cost=None, score=backwards)
    np.testing.assert_array_equal(small.keep["in[1]"], [True, True, False, False])


def test_the_default_score_compiles_nothing():
    """`each=jnp.square` compiles for each shape, on a large model for seconds."""
    params = mlp_params()
    graph = jg.trace(mlp, params, jnp.ones((2, 5)))
    jax.clear_caches()
    with jax.no_tracing():
        jg.group_l2(graph, params)
    with jax.no_tracing(), pytest.raises(RuntimeError, match="no_tracing"):
        jg.group_scores(graph, params, each=jnp.square)
