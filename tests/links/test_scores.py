"""Criteria by hand, and against their definitions as gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune as jp

W = {"a": jnp.array([-2.0, 0.5, -0.0]), "b": jnp.array([[3.0], [-1.0]])}
G = {"a": jnp.array([1.0, -4.0, 7.0]), "b": jnp.array([[0.0], [-2.0]])}
LINKS = {
    "magnitude": jp.score_by_magnitude,
    "gradient": jp.score_by_gradient,
    "taylor": jp.score_by_taylor,
    "movement": jp.score_by_movement,
    "random": lambda: jp.score_by_random(jax.random.key(0)),
}


def _run(link, grads, params):
    return link.update(grads, link.init(params), params)[0]


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("magnitude", [2, 0.5, 0], [[3], [1]]),
        ("gradient", [1, 4, 7], [[0], [2]]),
        ("taylor", [2, 2, 0], [[0], [2]]),
        ("movement", [2, 2, 0], [[0], [-2]]),
    ],
)
def test_scores_by_hand(name, a, b):
    found = _run(LINKS[name](), G, W)
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("magnitude", jnp.bfloat16),
        ("gradient", jnp.bfloat16),
        ("taylor", jnp.float32),
        ("movement", jnp.float32),
        ("random", jnp.uint32),
    ],
)
def test_score_types_of_bfloat16(name, dtype):
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)  # noqa: E731
    link = LINKS[name]()
    state = link.init(half(W))
    scores, after = link.update(half(G), state, half(W))
    assert all(x.dtype == dtype for x in jax.tree.leaves(scores))
    assert jax.tree.map(jnp.shape, scores) == jax.tree.map(jnp.shape, W)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == before


def test_products_of_bfloat16_do_not_tie():
    w = jnp.full(64, 1.5, jnp.bfloat16)
    g = (1 + jnp.arange(64) / 128).astype(jnp.bfloat16)  # all 64 are exact
    assert np.unique(w * g).size < 64
    scores = _run(jp.score_by_taylor(), {"w": g}, {"w": w})["w"]
    assert np.unique(scores).size == 64


def test_taylor_is_snips_gradient_with_respect_to_the_mask():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}

    def loss(p):
        return jnp.mean(jnp.tanh(x @ p["w"]) ** 2)

    at_one = jax.grad(lambda m: loss({"w": params["w"] * m}))(jnp.ones((4, 3)))
    scores = _run(jp.score_by_taylor(), jax.grad(loss)(params), params)["w"]
    np.testing.assert_allclose(scores, np.abs(at_one), rtol=1e-5)


def test_movement_is_a_sum_over_steps():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 20, 6))
    link = jp.score_by_movement()
    state = link.init(jnp.zeros(6))
    for w_t, g_t in zip(w, g, strict=True):
        args = [jnp.asarray(x, jnp.float32) for x in (g_t, w_t)]
        scores, state = jax.jit(link.update)(args[0], state, args[1])
    np.testing.assert_allclose(scores, -np.sum(w * g, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.total, scores)


def test_random_scores_are_drawn_once():
    params = {"a": jnp.zeros((50, 50)), "b": jnp.zeros((50, 50), jnp.bfloat16)}
    for link, once in (
        (jp.score_by_random(jax.random.key(1)), True),
        (jp.score_by_random(jax.random.key(1), redraw=True), False),
    ):
        first, state = link.update(None, link.init(params), params)
        again, state = jax.jit(link.update)(None, state, params)
        for key in params:
            assert np.array_equal(first[key], again[key]) == once
        assert (first["a"] != first["b"]).mean() > 0.99


def test_random_scores_are_drawn_anew_and_repeat_with_the_key():
    params = {"a": jnp.zeros((50, 50)), "b": jnp.zeros((50, 50), jnp.bfloat16)}

    def draws(update, key):
        link = jp.score_by_random(key, redraw=True)
        state, found = link.init(params), []
        for _ in range(3):
            scores, state = update(link)(None, state, params)
            found += [np.asarray(scores["a"]), np.asarray(scores["b"])]
        return found

    eager = draws(lambda link: link.update, jax.random.key(1))
    jitted = draws(lambda link: jax.jit(link.update), jax.random.key(1))
    for a, b in zip(eager, jitted, strict=True):
        np.testing.assert_array_equal(a, b)
    other = draws(lambda link: link.update, jax.random.key(2))
    streams = [*eager, *other]
    for i, a in enumerate(streams):
        # Uniform on [0, 2^32): the mean of 2500 has a deviation of 2^32 / 173.
        assert abs(a.mean() / 2**32 - 0.5) < 5 / 173
        assert all((a != b).mean() > 0.99 for b in streams[:i])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", list(LINKS))
def test_scores_have_the_sharding_of_the_params(name, axis_type):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    host = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    place = NamedSharding(mesh, PartitionSpec(None, "d"))
    w = jax.device_put(host, place)
    with jax.set_mesh(mesh):
        found = _run(LINKS[name](), w, w)
    assert found.sharding.is_equivalent_to(place, 2)
    np.testing.assert_array_equal(found, _run(LINKS[name](), host, host))


@pytest.mark.parametrize("name", list(LINKS))
def test_misuse_is_refused(name):
    link = LINKS[name]()
    with pytest.raises(jp.PruningError, match="criterion needs the params"):
        link.update(G, link.init(W))
    mixed = {"table": {"ids": jnp.arange(3)}, "w": jnp.ones(2)}
    with pytest.raises(jp.PruningError, match=r"'table/ids' has type int32: only fl"):
        link.init(mixed)
    if name in ("gradient", "taylor", "movement"):
        with pytest.raises(jp.PruningError, match="scores by gradients and got none"):
            link.update(None, link.init(W), W)
    else:
        link.update(None, link.init(W), W)
