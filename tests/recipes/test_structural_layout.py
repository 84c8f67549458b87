"""Filters lie along the axes that the function uses as outputs, not as names say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import graph as jg

RNG = np.random.default_rng(0)
# Stored as (out, in), under names that mean (in, out) to `jp.kernel_axes`.
PARAMS = {"in": RNG.normal(size=(6, 5)), "out": RNG.normal(size=(3, 6))}
PARAMS = {name: jnp.asarray(w, jnp.float32) for name, w in PARAMS.items()}
X = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)


def mlp(p, x):
    return jnp.tanh(x @ p["in"].T) @ p["out"].T


@pytest.fixture(scope="module")
def graph():
    found = jg.trace(mlp, PARAMS, X)
    assert list(found.groups) == ["out[1]"]
    return found


def distances():
    """FPGM in NumPy: of each row of `in`, the sum of distances to all rows."""
    rows = np.float64(PARAMS["in"])
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1).sum(1)


def deviations():
    """Beta-Rank in NumPy: the filters are the rows of `in`."""
    w, x = np.float64(PARAMS["in"]), np.float64(X)
    gains = (x @ w.T).std(0) / x.std()
    ranks = np.abs(w).sum(1) * gains
    return (ranks - ranks.min()) / (ranks.max() - ranks.min())


def test_scores_are_those_of_the_filters(graph):
    scores = jg.geometric_median_scores(graph, PARAMS, normalize=None)
    np.testing.assert_allclose(scores["out[1]"], distances(), rtol=1e-5)
    gains = jg.gains(graph, PARAMS, X)
    sizes = jax.tree.map(jnp.abs, PARAMS)
    found = jg.gain_scores(graph, sizes, gains)
    np.testing.assert_allclose(found["out[1]"], deviations(), rtol=1e-4, atol=1e-6)
    for made in (jg.layout(graph), jp.kernel_axes):
        same = jg.gain_scores(graph, sizes, gains, layout=made)["out[1]"]
        assert np.allclose(same, found["out[1]"]) == (made is not jp.kernel_axes)


@pytest.mark.parametrize("scores", [distances, deviations])
def test_recipes_prune_the_lowest_filters(graph, scores):
    recipe = jp.recipes.fpgm(graph, 0.5)
    if scores is deviations:
        recipe = jp.recipes.beta_rank(graph, 0.5, jg.gains(graph, PARAMS, X))
    lowest = np.argsort(scores())[:3]
    for run in (jp.prune, jax.jit(lambda p, r=recipe: jp.prune(p, r))):
        masks = (run(PARAMS, recipe) if run is jp.prune else run(PARAMS))[1]
        kept = np.asarray(masks["in"])[:, 0]
        np.testing.assert_array_equal(np.flatnonzero(~kept), np.sort(lowest))


def test_an_axis_of_two_roles_is_refused_with_the_remedy():
    def tied(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T

    params = {"w": PARAMS["in"].T}
    graph = jg.trace(tied, params, X)
    with pytest.raises(jp.PruningError, match=r"'w' has no single role.*layout="):
        jp.prune(params, jp.recipes.fpgm(graph, 0.5))
    by_name = jp.recipes.fpgm(graph, 0.5, layout=jp.kernel_axes)
    kept = np.asarray(jp.prune(params, by_name)[1]["w"])[0]
    np.testing.assert_array_equal(
        np.flatnonzero(~kept), np.sort(np.argsort(distances())[:3])
    )


def test_stacked_layers_need_no_layout():
    """Names settle nothing of three axes; the trace does."""

    def net(p, x):
        block = lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None)  # noqa: E731
        return jax.lax.scan(block, x, p["layers"])[0]

    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"layers": {"up": draw(2, 5, 8), "down": draw(2, 8, 5)}}
    graph = jg.trace(net, params, X)
    pruner = jp.select(jp.recipes.fpgm(graph, 0.5), "layers/(up|down)")
    masks, _ = pruner.update(None, pruner.init(params), params)
    ups = np.float64(params["layers"]["up"]).transpose(2, 0, 1).reshape(8, -1)
    far = np.linalg.norm(ups[:, None] - ups[None], axis=-1).sum(1)
    kept = np.asarray(masks["layers"]["up"])[0, 0]
    np.testing.assert_array_equal(kept, far > np.sort(far)[3])
    assert optax.tree.size(masks["layers"]["down"]) == 8
