"""What is coupled in named models, against float64 computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jprune import graph as jg

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def grouped_queries(p, x):
    q, k, v = (jnp.einsum("td,dhk->thk", x, p[n]) for n in "qkv")
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return jnp.einsum("thk,hkd->td", y, p["o"])


def test_a_head_of_keys_goes_with_all_queries_that_read_it():
    """6 heads of queries read 3 of keys; head 1 of the keys goes, head by head."""
    params = {"q": normal(5, 6, 4), "k": normal(5, 3, 4), "v": normal(5, 3, 4)}
    params["o"], x = normal(6, 4, 5), normal(7, 5)
    small = jg.compress(
        grouped_queries,
        params,
        x,
        remove=0.2,
        score=lambda graph, params: {
            n: jnp.array([2.0, 1, 3])[: g.size]
            if g.kind == "heads"
            else jnp.ones(g.size)
            for n, g in graph.groups.items()
        },
    )
    assert {n: w.shape for n, w in small.params.items()} == {
        "q": (5, 4, 4),
        "k": (5, 2, 4),
        "v": (5, 2, 4),
        "o": (4, 4, 5),
    }
    p = {n: np.asarray(w, np.float64) for n, w in params.items()}
    inputs = np.asarray(x, np.float64)
    wanted = np.zeros((7, 5))
    for query in (0, 1, 4, 5):  # those of heads 0 and 2 of the keys
        q, k = inputs @ p["q"][:, query], inputs @ p["k"][:, query // 2]
        logits = np.where(np.tri(7) > 0, q @ k.T / 2, -np.inf)  # 2 is the root of 4
        wanted += softmax(logits) @ (inputs @ p["v"][:, query // 2]) @ p["o"][query]
    np.testing.assert_allclose(small.fn(small.params, x), wanted, rtol=1e-4, atol=1e-4)


def normalized(x, groups):
    """Group normalization of (pixels, channels)."""
    y = x.reshape(len(x), groups, -1)
    y = y - y.mean((0, 2), keepdims=True)
    return (y / (y * y).mean((0, 2), keepdims=True) ** 0.5).reshape(x.shape)


def skip(p, x):
    """A skip around a narrower path, and a depthwise scale behind both."""
    down = jnp.tanh(normalized(x @ p["down"], 2))
    both = jnp.concatenate([jnp.tanh(down @ p["low"]), down], axis=1)
    return (both * p["depthwise"][None]) @ p["up"]


def test_a_skip_is_a_part_of_the_axis_behind_it():
    params = {"down": normal(3, 6), "low": normal(6, 4), "up": normal(10, 2)}
    params["depthwise"], x = normal(10), normal(9, 3)
    graph = jg.trace(skip, params, x)
    sizes = {name: group.size for name, group in graph.groups.items()}
    assert sizes == {"down[1]": 2, "down[1].1": 3, "low[1]": 4}  # 2 groups of 3
    keep = {"down[1].1": [0, 2], "low[1]": [1, 2]}
    small_fn, small = jg.shrink(graph, params, keep=keep)
    channels = [0, 2, 3, 5]
    behind = [1, 2, *(4 + np.array(channels))]
    p = {n: np.asarray(w, np.float64) for n, w in params.items()}
    by_hand = {
        "down": p["down"][:, channels],
        "low": p["low"][channels][:, [1, 2]],
        "depthwise": p["depthwise"][behind],
        "up": p["up"][behind],
    }
    for name, w in by_hand.items():
        np.testing.assert_allclose(small[name], w, rtol=1e-6)
    inputs = np.asarray(x, np.float64)
    down = np.tanh(normalized(inputs @ by_hand["down"], 2))
    both = np.concatenate([np.tanh(down @ by_hand["low"]), down], axis=1)
    wanted = (both * by_hand["depthwise"]) @ by_hand["up"]
    np.testing.assert_allclose(small_fn(small, x), wanted, rtol=1e-4, atol=1e-5)
