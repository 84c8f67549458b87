"""The middle links against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import links as links_lib


def _run(link, scores, params=None):
    return link.update(scores, link.init(scores), scores if params is None else params)[
        0
    ]


def _normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 4e37, 2e-38])
@pytest.mark.parametrize("axis", [None, 0, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_l2_norm_of_large_and_tiny_numbers(scale, axis, keepdims):
    x = _normal(3, 4, 2) * np.float32(scale)
    found = jp.l2_norm(jnp.asarray(x), axis=axis, keepdims=keepdims)
    exact = np.sqrt(np.sum(x.astype(np.float64) ** 2, axis, keepdims=keepdims))
    assert found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_l2_norm_of_special_numbers():
    assert jp.l2_norm(jnp.zeros(3)) == 0
    assert jp.l2_norm(jnp.zeros((0, 2)), axis=0).tolist() == [0, 0]
    assert jp.l2_norm(jnp.array([1.0, -jnp.inf])) == jnp.inf
    assert jnp.isnan(jp.l2_norm(jnp.array([1.0, jnp.nan])))
    half = jp.l2_norm(jnp.full(10_000, 100, jnp.float16))  # 65504 is the largest
    assert half.dtype == jnp.float32
    assert half == 10_000


@pytest.mark.parametrize(
    ("path", "shape", "keep", "axes"),
    [
        ("conv/kernel", (3, 3, 4, 5), "output", (0, 1, 2)),
        ("conv/kernel", (3, 3, 4, 5), "input", (0, 1, 3)),
        ("conv/weight", (5, 4, 3, 3), "output", (1, 2, 3)),
        ("conv/weight", (5, 4, 3, 3), "input", (0, 2, 3)),
        ("query/kernel", (4, 2, 3), "output", (0,)),
        ("out/kernel", (2, 3, 4), "output", (0, 1)),
        ("out/kernel", (2, 3, 4), "input", (2,)),
    ],
)
def test_channels_are_pooled_over_the_other_axes(path, shape, keep, axes):
    layer, name = path.split("/")
    tree = {layer: {name: jnp.asarray(np.abs(_normal(*shape)))}}
    exact = np.asarray(tree[layer][name], np.float64)
    total = _run(jp.pool_over_axes(keep=keep), tree)[layer][name]
    np.testing.assert_allclose(total, exact.sum(axes, keepdims=True), rtol=1e-5)
    norm = _run(jp.pool_over_axes(jp.l2_norm, keep=keep), tree)[layer][name]
    expected = np.sqrt((exact**2).sum(axes, keepdims=True))
    np.testing.assert_allclose(norm, expected, rtol=1e-5)


def test_filters_are_pruned_as_a_whole():
    w = np.ones((2, 2, 3, 4), np.float32) * np.array([3, 1, 4, 2], np.float32)
    pruner = (jp.score_by_magnitude(), jp.pool_over_axes(jp.l2_norm), jp.keep_top(0.5))
    chain = jp.select(_chain(*pruner), jp.is_kernel)
    masks = _run(chain, {"conv": jnp.asarray(w), "bias": jnp.ones(4)})
    assert masks["conv"].shape == (1, 1, 1, 4)
    assert masks["conv"].ravel().tolist() == [True, False, True, False]


def _chain(*links):
    """Without Optax: the links by hand, one after the other."""

    def update(updates, state, params, **extra):
        for link in links:
            updates, _ = link.update(updates, link.init(params), params, **extra)
        return updates, state

    return jp.Pruner(lambda params: (), update)


@pytest.mark.parametrize(
    ("shape", "block"),
    [((4, 6), (2, 3)), ((4, 6), (1, 6)), ((3, 4, 6), (2, 2)), ((4, 6), (3,))],
)
def test_blocks_against_a_loop(shape, block):
    x = _normal(*shape)
    found = np.asarray(_run(jp.pool_over_blocks(block), {"w": jnp.asarray(x)})["w"])
    grid = found.shape[len(shape) - len(block) :]
    assert found.shape[: len(shape) - len(block)] == shape[: len(shape) - len(block)]
    for i in np.ndindex(*grid):
        corner = tuple(slice(j * b, (j + 1) * b) for j, b in zip(i, block, strict=True))
        part = x[(..., *corner)].astype(np.float64)
        expected = part.sum(tuple(range(-len(block), 0)))
        np.testing.assert_allclose(found[(..., *i)], expected, rtol=1e-5, atol=1e-6)


def test_blocks_are_pruned_as_a_whole():
    w = np.kron([[4, 1, 3], [2, 6, 5]], np.ones((2, 2)))
    link = _chain(jp.pool_over_blocks((2, 2)), jp.keep_top(0.5))
    masks = _run(link, {"w": jnp.asarray(w, jnp.float32)})
    expected = np.kron([[1, 0, 0], [0, 1, 1]], np.ones((2, 2)))
    np.testing.assert_array_equal(masks["w"], expected.astype(bool))


@pytest.mark.parametrize("block", [(1, 1), (1,)])
def test_blocks_of_one_are_the_identity(block):
    x = {"w": jnp.asarray(_normal(3, 5))}
    np.testing.assert_array_equal(_run(jp.pool_over_blocks(block), x)["w"], x["w"])


def test_pooling_misuse_is_refused():
    for block in ((), (0, 2), (-4,), (1.5,)):
        with pytest.raises(jp.PruningError, match=r"positive integers, .* got block="):
            jp.pool_over_blocks(block)
    tree = {"layer": {"w": jnp.ones((4, 6))}}
    for block in ((3, 3), (2, 2, 2)):
        with pytest.raises(jp.PruningError, match=r"'layer/w', shape \(4, 6\)"):
            _run(jp.pool_over_blocks(block), tree)
    with pytest.raises(jp.PruningError, match="'output' or 'input'; got 'out'"):
        jp.pool_over_axes(keep="out")
    with pytest.raises(jp.PruningError, match=r"'layer/b' has shape \(4,\)"):
        _run(jp.pool_over_axes(), {"layer": {"b": jnp.ones(4)}})
    for link in (jp.pool_over_axes(), jp.normalize_by_lamp()):
        with pytest.raises(jp.PruningError, match="needs the params"):
            link.update(tree, link.init(tree))


@pytest.mark.parametrize("size", [1e38, 3e38, 2e-38, 1e-43])
def test_leaf_norms_at_the_ends_of_float32(size):
    x = np.float32(size) * np.float32([0.5, 1, 0, 0.25])
    exact = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))
    link = jp.normalize_by_leaf_norm()
    for run in (_run, jax.jit(_run, static_argnums=0)):
        np.testing.assert_allclose(run(link, {"w": x})["w"], exact, rtol=1e-6)
    # And of integers, as `score_by_random` returns them.
    whole = jnp.array([3, 0, 4], jnp.uint32)
    found = _run(link, {"w": whole})["w"]
    np.testing.assert_allclose(found, [0.6, 0, 0.8], rtol=1e-6)
    assert jp.l2_norm(whole) == 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_leaf_norms_are_one(dtype):
    x = {"a": jnp.full((300, 300), 300, dtype), "b": jnp.asarray(_normal(7), dtype)}
    found = _run(jp.normalize_by_leaf_norm(), x)
    for key in x:
        exact = np.asarray(x[key], np.float64)
        exact = exact / np.sqrt((exact**2).sum())
        assert found[key].dtype == jnp.float32  # 300 * 300 is no float16 number
        np.testing.assert_allclose(found[key], exact, rtol=1e-5)
    zeros = _run(jp.normalize_by_leaf_norm(), {"z": jnp.zeros(3, dtype)})
    assert zeros["z"].tolist() == [0, 0, 0]


def test_other_norms():
    x = {"w": jnp.array([[1.0, 3.0], [4.0, 8.0]])}
    found = _run(jp.normalize_by_leaf_norm(jnp.max), x)["w"]
    np.testing.assert_array_equal(found, [[0.125, 0.375], [0.5, 1]])


def _lamp(u):
    """Equation 4 in float64: u^2 over the sum of the squares not before it."""
    u = u.astype(np.float64).ravel()
    ascending = np.argsort(-u, kind="stable")[::-1]
    out = np.zeros_like(u)
    for i, at in enumerate(ascending):
        rest = np.sum(u[ascending[i:]] ** 2)
        out[at] = u[at] ** 2 / rest if rest else 0
    return out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 5e37, 1e-39])
def test_lamp_against_its_definition(dtype, scale):
    # At most 5: beyond 8.5e37 the inverse of a divisor is flushed to zero.
    x = jnp.asarray(np.abs(_normal(30, 17)) * scale, dtype)
    x = x.at[3].set(x[4])  # ties
    x = x.at[5].set(0)
    found = _run(jp.normalize_by_lamp(), {"w": x})["w"]
    assert found.dtype == jnp.float32
    exact = _lamp(np.asarray(x, np.float64)).reshape(30, 17)
    np.testing.assert_allclose(found, exact, rtol=3e-5, atol=1e-30)
    assert jnp.max(found) == 1
    assert jnp.sum(found == 1) == 1


def test_lamp_by_hand():
    found = _run(jp.normalize_by_lamp(), {"w": jnp.array([2.0, 1.0, 2.0, 0.0])})["w"]
    np.testing.assert_allclose(found, [1, 1 / 9, 0.5, 0], rtol=1e-6)
    zeros = _run(jp.normalize_by_lamp(), {"z": jnp.zeros(3), "e": jnp.zeros((0, 2))})
    assert zeros["z"].tolist() == [0, 0, 0]
    assert zeros["e"].shape == (0, 2)


def test_lamp_keeps_the_order_of_a_large_leaf():
    x = np.unique(np.abs(_normal(200_000)))
    found = np.asarray(_run(jp.normalize_by_lamp(), {"w": jnp.asarray(x)})["w"], float)
    best_before = np.maximum.accumulate(found)
    np.testing.assert_allclose(found, best_before, rtol=1e-6)  # up to rounding
    exact = x.astype(float) ** 2
    exact /= np.cumsum(exact[::-1])[::-1]
    np.testing.assert_allclose(found, exact, rtol=2e-6)


def test_lamp_leaves_the_largest_weight_of_every_leaf():
    tree = {"big": jnp.asarray(_normal(100)) * 1e3, "small": jnp.asarray(_normal(100))}
    link = _chain(
        jp.score_by_magnitude(),
        jp.normalize_by_lamp(),
        jp.keep_top(198 / 200, scope="global"),
    )
    for key, mask in _run(link, tree).items():
        assert np.flatnonzero(mask).tolist() == [int(np.argmax(np.abs(tree[key])))]


@pytest.mark.parametrize(
    ("coarse", "shape"),
    [
        ((2, 3), (4, 9)),
        ((2, 3), (2, 3)),
        ((1, 3), (4, 9)),
        ((2, 2, 3), (2, 4, 3)),
        ((1, 1), (4, 9)),
        ((), ()),
        ((0, 2), (0, 4)),
    ],
)
def test_spread_repeats_blocks_and_leaves_ones(coarse, shape):
    mask = np.random.default_rng(0).random(coarse) < 0.5
    expected = mask
    for axis, (m, n) in enumerate(zip(coarse, shape, strict=True)):
        if m > 1:
            expected = np.repeat(expected, n // m, axis)
    weight = jnp.zeros(shape)
    for spread in (links_lib.spread, jax.jit(links_lib.spread)):
        np.testing.assert_array_equal(spread(jnp.asarray(mask), weight), expected)
