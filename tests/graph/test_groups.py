"""Groups of known architectures, by hand, and numbers that mean a size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jprune import graph as jg

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / 2, jnp.float32)


def tree(**shapes):
    return {name: normal(*shape) for name, shape in shapes.items()}


def groups(fn, params, x=X):
    """Members of each group, and its size."""
    graph = jg.trace(fn, params, x)
    return {(*sorted(map(str, g.members)), g.size) for g in graph.groups.values()}


def attend(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def test_grouped_queries():
    """Four heads of queries for two of keys: each key's head, and those of it."""

    def fn(p, x):
        q = jnp.einsum("btn,nhd->bthd", x, p["q"])
        k, v = (jnp.einsum("btn,nhd->bthd", x, p[i]) for i in "kv")
        k, v = jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2)
        return jnp.einsum("bthd,hdn->btn", attend(q, k, v), p["o"])

    params = tree(q=(6, 4, 8), k=(6, 2, 8), v=(6, 2, 3), o=(4, 3, 6))
    assert groups(fn, params) == {
        ("k[1]", "o[0]", "q[1]", "v[1]", 2),
        ("o[0]", "q[1]", 2),
        ("k[2]", "q[2]", 8),
        ("o[1]", "v[2]", 3),
    }


LAYOUTS = {
    "split": lambda u: [a.reshape(2, 5, 2, 4) for a in jnp.split(u, 3, -1)],
    "slices": lambda u: [
        u[..., i * 8 : i * 8 + 8].reshape(2, 5, 2, 4) for i in (0, 1, 2)
    ],
    "3 h d": lambda u: list(jnp.moveaxis(u.reshape(2, 5, 3, 2, 4), 2, 0)),
    "h 3 d": lambda u: list(jnp.moveaxis(u.reshape(2, 5, 2, 3, 4), 3, 0)),
    "h d 3": lambda u: list(jnp.moveaxis(u.reshape(2, 5, 2, 4, 3), 4, 0)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_queries_keys_and_values(layout):
    def fn(p, x):
        q, k, v = LAYOUTS[layout](x @ p["w"])
        return attend(q, k, v).reshape(2, 5, 8) @ p["o"]

    params = tree(w=(6, 24), o=(8, 6))
    found = groups(fn, params)
    heads = ("o[0]", "w[1]", 2)
    if layout in ("split", "slices"):  # values may have other entries than keys
        assert found == {heads, ("w[1]", 4), ("o[0]", "w[1]", 4)}
    else:
        assert found == {heads, ("o[0]", "w[1]", 4)}
    graph = jg.trace(fn, params, X)
    keep = {n: [g.size - 1] for n, g in graph.groups.items()}
    small, p = jg.shrink(graph, params, jg.make_plan(graph, keep))
    masks = {n: np.arange(g.size) == g.size - 1 for n, g in graph.groups.items()}
    full = jg.without_entries(graph, masks)
    np.testing.assert_allclose(small(p, X), full(params, X), rtol=1e-4, atol=1e-5)
    assert p["o"].shape == (1, 6)


def test_halves_of_one_matrix_gate_each_other():
    def fn(p, x):
        a, b = jnp.split(x @ p["w"], 2, -1)
        return (jax.nn.silu(a) * b) @ p["o"]

    params = tree(w=(6, 16), o=(8, 6))
    assert groups(fn, params) == {("o[0]", "w[1]", 8)}
    graph = jg.trace(fn, params, X)
    plan = jg.make_plan(graph, {"w[1]": [1, 6]})
    assert plan["w"][1].tolist() == [1, 6, 9, 14]
    assert plan["o"][0].tolist() == [1, 6]


def test_tied_embedding_and_rotary_halves():
    angles = np.outer(np.arange(5), 10.0 ** -np.arange(4)).astype(np.float32)
    sin, cos = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.sin, np.cos))

    def turn(x):
        a, b = jnp.split(x, 2, -1)
        return x * cos[None] + jnp.concatenate([-b, a], -1) * sin[None]

    def fn(p, words):
        h = p["e"][words]
        q, k = (turn(jnp.einsum("btn,nhd->bthd", h, p[i])) for i in "qk")
        return (
            attend(q, k, jnp.einsum("btn,nhd->bthd", h, p["v"])).sum((2, 3))[..., None]
            + h @ p["e"].T
        )

    params = tree(e=(7, 6), q=(6, 2, 8), k=(6, 2, 8), v=(6, 2, 3))
    words = jnp.array([[1, 2, 3, 0, 6]])
    assert groups(fn, params, words) == {
        ("e[1]", "k[0]", "q[0]", "v[0]", 6),
        ("k[1]", "q[1]", "v[1]", 2),
        ("k[2]", "q[2]", 4),  # of 8: an angle's sine and cosine go together
        ("v[2]", 3),
    }
    graph = jg.trace(fn, params, words)
    name = next(n for n, g in graph.groups.items() if g.size == 4)
    plan = jg.make_plan(graph, {name: [0, 3]})
    assert plan["q"][2].tolist() == [0, 3, 4, 7]
    small, p = jg.shrink(graph, params, plan)
    full = jg.without_entries(graph, {name: np.array([True, False, False, True])})
    np.testing.assert_allclose(
        small(p, words), full(params, words), rtol=1e-5, atol=1e-6
    )


def conv(x, w, groups=1):
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups
    )


def test_convolutions():
    """Groups, concatenation, squeeze and excitation, and a flattened image."""

    def fn(p, x):
        h = conv(x, p["a"])
        h = conv(h, p["g"], groups=h.shape[-1] // p["g"].shape[2])
        h = jnp.concatenate([h, jax.nn.relu(conv(h, p["c"]))], -1)
        s = jax.nn.sigmoid(jax.nn.relu(h.mean((1, 2)) @ p["s"]) @ p["e"])
        h = h * s[:, None, None]
        return h.reshape(h.shape[0], -1) @ p["o"]

    params = tree(
        a=(3, 3, 3, 8), g=(3, 3, 4, 6), c=(1, 1, 6, 5), s=(11, 4), e=(4, 11), o=(99, 2)
    )
    x = normal(2, 3, 3, 3)
    assert groups(fn, params, x) == {
        ("a[3]", "c[2]", "e[1]", "g[3]", "o[0]", "s[0]", 2),
        ("a[3]", "g[2]", 4),
        ("c[2]", "e[1]", "g[3]", "o[0]", "s[0]", 3),
        ("c[3]", "e[1]", "o[0]", "s[0]", 5),
        ("e[0]", "s[1]", 4),
    }
    graph = jg.trace(fn, params, x)
    keep = {n: range(1, g.size) for n, g in graph.groups.items()}
    plan = jg.make_plan(graph, {n: list(k) for n, k in keep.items()})
    small, p = jg.shrink(graph, params, plan)
    assert p["o"].shape == (9 * (2 + 4), 2)
    np.testing.assert_allclose(small(p, x), fn(p, x), rtol=1e-4, atol=1e-5)


def test_a_recurrent_state_and_the_depth_of_a_scan():
    def fn(p, x):
        def cell(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((x.shape[0], p["u"].shape[0]), x.dtype)
        (h, _), _ = lax.scan(cell, (start, start), jnp.swapaxes(x, 0, 1))
        h, _ = lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, p["l"])
        return h @ p["o"]

    params = tree(w=(6, 16), u=(4, 16), l=(3, 4, 4), o=(4, 2))
    assert groups(fn, params) == {
        ("l[0]", 3),
        ("l[1]", "l[2]", "o[0]", "u[0]", "u[1]", "w[1]", 4),
    }
    graph = jg.trace(fn, params, X)
    kinds = {g.kind for g in graph.groups.values()}
    assert "layer" in kinds
    keep = {n: [0, 2] for n in graph.groups}
    small, p = jg.shrink(graph, params, jg.make_plan(graph, keep))
    np.testing.assert_allclose(small(p, X), fn(p, X), rtol=1e-4, atol=1e-5)


DIVIDED = {
    "mean": lambda h: h.mean(-1),
    "var": lambda h: jnp.var(h, -1),
    "std": lambda h: jnp.std(h, -1, ddof=1),
    "root": lambda h: h.sum(-1, keepdims=True) / math.sqrt(h.shape[-1]),
    "squares": lambda h: jnp.einsum("btn,btn->bt", h, h) / h.shape[-1],
}


@pytest.mark.parametrize("name", DIVIDED)
def test_divisors_follow_sizes(name):
    def fn(p, x):
        return DIVIDED[name](x @ p["w"])

    params = tree(w=(6, 12))
    for divisors in ("rescale", "keep"):
        graph = jg.trace(fn, params, X, options=jg.Options(divisors=divisors))
        plan = jg.make_plan(graph, {"w[1]": [0, 3, 4, 7, 10]})
        small, p = jg.shrink(graph, params, plan)
        found, wanted = small(p, X), fn(p, X)
        if divisors == "rescale":
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
            assert "from the size 12 of a sum" in jg.explain(graph)
        elif name in ("mean", "squares"):
            np.testing.assert_allclose(found, wanted * 5 / 12, rtol=1e-5)


@pytest.mark.parametrize("place", ["queries", "logits"])
def test_attention_scale_is_kept_or_follows(place):
    def fn(p, x, d=None):
        q, k, v = (jnp.einsum("btn,nhd->bthd", x, p[i]) for i in "qkv")
        d = d or q.shape[-1]
        q = q / math.sqrt(d) if place == "queries" else q
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        logits = logits * d**-0.5 if place == "logits" else logits
        return jnp.einsum("bhqk,bkhd->bqd", jax.nn.softmax(logits), v)

    params = tree(q=(6, 2, 9), k=(6, 2, 9), v=(6, 2, 9))
    for scale, d in (("keep", 9), ("rescale", None)):
        options = jg.Options(attention_scale=scale)
        graph = jg.trace(fn, params, X, options=options)
        name = next(n for n, g in graph.groups.items() if n.endswith("[2]"))
        plan = jg.make_plan(graph, {name: [0, 2, 5, 8]})
        small, p = jg.shrink(graph, params, plan)
        np.testing.assert_allclose(small(p, X), fn(p, X, d), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slope", [0.1, 10**0.5])
def test_a_slope_is_not_the_size_of_ten_inputs(slope):
    def fn(p, x):
        hidden = jnp.tanh(x @ p["in"]) @ p["mid"]
        return jnp.where(hidden > 0, hidden, slope * hidden) @ p["out"]

    params = tree(**{"in": (6, 10), "mid": (10, 4), "out": (4, 2)})
    graph = jg.trace(fn, params, X, options=jg.Options(attention_scale="rescale"))
    plan = jg.make_plan(graph, {"in[1]": [0, 3, 4]})
    small, p = jg.shrink(graph, params, plan)
    np.testing.assert_allclose(small(p, X), fn(p, X), rtol=1e-5, atol=1e-6)


def test_one_inner_function_on_two_groups():
    inner = jax.jit(lambda x, w: jnp.tanh(x @ w))

    def fn(p, x):
        return inner(inner(inner(x, p["a"]), p["b"]), p["c"])

    params = tree(a=(6, 6), b=(6, 6), c=(6, 6))
    assert groups(fn, params) == {("a[1]", "b[0]", 6), ("b[1]", "c[0]", 6)}
