"""Gains of filters against float64 NumPy, patch by patch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import graph as jg

RNG = np.random.default_rng(0)
DIMS = ("NHWC", "HWIO", "NHWC")


def _draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def _conv(x, kernel, stride=1, groups=1, padding="SAME", dims=DIMS):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=dims,
        feature_group_count=groups,
    )


def _patch_gains(x, kernel, stride, groups):
    """Of an odd kernel, padded by half of it."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size, inside, filters = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    half = size // 2
    x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    places = []
    for i in range(0, x.shape[1] - 2 * half, stride):
        for j in range(0, x.shape[2] - 2 * half, stride):
            patch = x[:, i : i + size, j : j + size]
            one = []
            for k in range(filters):
                first = k // (filters // groups) * inside
                mine = patch[..., first : first + inside]
                y = (mine * kernel[..., k]).sum((1, 2, 3))
                one.append(y.std() / mine.std())
            places.append(one)
    return np.mean(places, axis=0)


@pytest.mark.parametrize(
    ("size", "stride", "groups"),
    [(3, 1, 1), (3, 2, 1), (1, 1, 1), (3, 1, 2), (3, 1, 4)],
)
def test_convolutions_patch_by_patch(size, stride, groups):
    x, kernel = 2 + _draw(6, 7, 7, 4), _draw(size, size, 4 // groups, 8)
    pad = size // 2

    def net(p, x):
        y = _conv(x, p["kernel"], stride, groups, ((pad, pad), (pad, pad)))
        return jnp.tanh(y).mean((1, 2)) @ p["out"]

    params = {"kernel": kernel, "out": _draw(8, 2)}
    found = jg.gains(jg.trace(net, params, x), params, x)
    wanted = _patch_gains(x, kernel, stride, groups)
    wide = np.broadcast_to(wanted, kernel.shape)
    np.testing.assert_allclose(found["kernel"], wide, rtol=2e-4)


def test_other_layouts_and_views_of_a_kernel():
    """OIHW and NCHW, a transposed matrix, a reshaped and a cast one."""
    x, kernel = _draw(6, 5, 5, 3), _draw(3, 3, 3, 4)
    wanted = _patch_gains(x, kernel, 1, 1)

    def net(p, x):
        y = _conv(x, p["k"].transpose(3, 2, 0, 1), dims=("NCHW", "OIHW", "NCHW"))
        return y.sum()

    params = {"k": kernel}
    moved = x.transpose(0, 3, 1, 2)
    found = jg.gains(jg.trace(net, params, moved), params, moved)["k"]
    np.testing.assert_allclose(found, np.broadcast_to(wanted, kernel.shape), rtol=1e-4)

    rows = _draw(9, 6)
    exact = np.asarray(rows, np.float64)

    def dense(p, x):
        a = p["t"] @ x.T  # the kernel first
        b = x @ p["h"].reshape(6, 8)
        c = x @ p["c"].astype(jnp.float32)
        return a.sum() + jnp.tanh(b).sum() + c.sum()

    params = {
        "t": _draw(5, 6),
        "h": _draw(6, 2, 4),
        "c": _draw(6, 3).astype("bfloat16"),
    }
    found = jg.gains(jg.trace(dense, params, rows), params, rows)
    w = {n: np.asarray(x, np.float64) for n, x in params.items()}
    for name, y in (
        ("t", (exact @ w["t"].T).std(0)[:, None]),
        ("h", (exact @ w["h"].reshape(6, 8)).std(0).reshape(1, 2, 4)),
        ("c", (exact @ w["c"]).std(0)[None]),
    ):
        wide = np.broadcast_to(y / exact.std(), w[name].shape)
        rtol = 1e-2 if name == "c" else 1e-4
        np.testing.assert_allclose(np.float64(found[name]), wide, rtol=rtol)


def test_batches_of_kernels_see_their_own():
    """Experts, with the batch axis last in one operand and first in the other."""
    x, w = _draw(7, 5, 3), _draw(3, 5, 4)

    def net(p, x):
        return jnp.tanh(jnp.einsum("nie,eio->neo", x, p["w"])).sum()

    found = jg.gains(jg.trace(net, {"w": w}, x), {"w": w}, x)["w"]
    a, b = np.asarray(x, np.float64), np.asarray(w, np.float64)
    for e in range(3):
        wanted = (a[..., e] @ b[e]).std(0) / a[..., e].std()
        np.testing.assert_allclose(found[e], np.tile(wanted, (5, 1)), rtol=1e-4)


def test_hidden_layers_see_what_comes_before_and_uses_add_up():
    x = _draw(20, 3)
    params = {"a": _draw(3, 4), "b": _draw(4, 4)}

    def net(p, x):
        h = jnp.tanh(x @ p["a"])
        return jnp.tanh(h @ p["b"]) @ p["b"]

    found = jg.gains(jg.trace(net, params, x), params, x)
    a, b = (np.asarray(params[n], np.float64) for n in "ab")
    h = np.tanh(np.asarray(x, np.float64) @ a)
    g = np.tanh(h @ b)
    wanted = (h @ b).std(0) / h.std() + (g @ b).std(0) / g.std()
    np.testing.assert_allclose(found["b"], np.tile(wanted, (4, 1)), rtol=1e-4)


def test_other_batches_than_the_recorded_one_and_nothing_that_varies():
    params = {"in": _draw(3, 4), "out": _draw(4, 2)}
    net = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]  # noqa: E731
    graph = jg.trace(net, params, _draw(2, 3))
    more = _draw(50, 3)
    again = jg.gains(jg.trace(net, params, more), params, more)
    for name, each in jg.gains(graph, params, more).items():
        np.testing.assert_array_equal(each, again[name])
    still = jg.gains(graph, params, jnp.zeros((5, 3)))
    assert not any(map(np.any, still.values()))


def test_loops_are_left_out_and_misuse_is_named():
    params = {"stack": _draw(3, 4, 4), "in": _draw(2, 4)}

    def net(p, x):
        turn = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(turn, x @ p["in"], p["stack"])[0]

    x = _draw(5, 2)
    graph = jg.trace(net, params, x)
    assert set(jg.gains(graph, params, x)) == {"in"}
    with pytest.raises(jp.PruningError, match="two samples; in sees"):
        jg.gains(graph, params, x[:1])


def _network():
    """Two convolutions and a dense layer, in float64 too."""

    def net(p, x):
        x = jax.nn.relu(_conv(x, p["conv_1"]) + p["bias"].reshape(1, 1, 1, 8))
        return jax.nn.relu(_conv(x, p["conv_2"])).mean((1, 2)) @ p["head"]

    params = {"conv_1": _draw(3, 3, 2, 8), "bias": 0 * _draw(8)}
    params |= {"conv_2": _draw(3, 3, 8, 6), "head": _draw(6, 3)}
    return net, params, _draw(10, 6, 6, 2)


@pytest.mark.others_code
def test_beta_rank_by_numpy():
    net, params, x = _network()
    graph = jg.trace(net, params, x)
    found = jg.gains(graph, params, x)
    scores = jg.gain_scores(graph, jax.tree.map(jnp.abs, params), found)
    y = np.maximum(_conv(x, params["conv_1"]), 0)
    wanted = {}
    for name, seen in (("conv_1", x), ("conv_2", y)):
        sizes = np.abs(np.asarray(params[name], np.float64)).sum((0, 1, 2))
        rank = sizes * _patch_gains(seen, params[name], 1, 1)
        wanted[f"{name}[3]"] = (rank - rank.min()) / (rank.max() - rank.min())
    assert set(scores) == set(wanted)
    for name, each in wanted.items():
        np.testing.assert_allclose(scores[name], each, rtol=1e-3, atol=1e-4)
    pruned = jp.prune(params, jp.recipes.beta_rank(graph, 0.5, found))[1]
    together = np.concatenate(list(wanted.values()))
    stays = together >= np.sort(together)[7]
    keep = jg.kept_by(graph, pruned)
    np.testing.assert_array_equal(np.concatenate([keep[n] for n in wanted]), stays)


@pytest.mark.parametrize("factor", [1e-3, 64.0])
def test_ranks_do_not_depend_on_the_scale_of_the_input(factor):
    net, params, x = _network()
    graph = jg.trace(net, params, x)
    sizes = jax.tree.map(jnp.abs, params)
    one, other = (
        jg.gain_scores(graph, sizes, jg.gains(graph, params, each))
        for each in (x, factor * x)
    )
    for name, each in one.items():
        np.testing.assert_allclose(other[name], each, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(np.argsort(each), np.argsort(other[name]))


def test_groups_without_a_gain_are_left_alone():
    net, params, x = _network()
    graph = jg.trace(net, params, x)
    some = {"conv_2": jg.gains(graph, params, x)["conv_2"]}
    pruner = jp.recipes.beta_rank(graph, 0.5, some)
    keep = jg.kept_by(graph, jp.prune(params, pruner)[1])
    assert list(keep) == ["conv_2[3]"]
    with pytest.raises(jp.PruningError, match="No group may shrink"):
        jp.recipes.beta_rank(graph, 0.5, {})
    equal = jg.gain_scores(graph, jax.tree.map(jnp.ones_like, params), some)
    assert np.isfinite(equal["conv_2[3]"]).all()
