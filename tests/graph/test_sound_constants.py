"""Constants follow a size only if they were computed from it; the others are noted.

The oracle is the function itself on the small arrays, with the number n that it takes
for the size: that of the small arrays where the constant follows, else the full one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.reasons import reasons

from jprune import graph as jg
from tests.support.graph_cases import double  # noqa: F401


def normal(*shape):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape))


def agree(fn, params, x, name, keep, n, options=None):
    """Asserts that three ways agree, and returns what `explain` says of constants.

    Args:
      fn: `(params, x, n) -> results`; n stands for a size, and None for the true one.
      params: full params.
      x: input.
      name: group that shrinks.
      keep: its entries that are kept.
      n: the size that the small function has to use, or None.
      options: options of the graph.
    """
    full = lambda p, x: fn(p, x, None)  # noqa: E731
    graph = jg.trace(full, params, x, options=options or jg.Options())
    mask = np.isin(np.arange(graph.groups[name].size), keep)
    small, p = jg.shrink(graph, params, keep={name: mask})
    without = jg.without_entries(graph, {name: mask})
    both = jax.jit(lambda: (fn(p, x, n), small(p, x), without(params, x)))
    wanted, *found = both()
    for each in found:
        np.testing.assert_allclose(each, wanted, rtol=1e-9, atol=1e-12)
    return [
        why
        for why, names in reasons(graph).items()
        if "a constant" in why and name in names
    ]


def standardized(h, n):
    """Weight standardization of NFNets (arXiv:2101.08692), with the fan-in n."""
    mean, var = jnp.mean(h, -1, keepdims=True), jnp.var(h, -1, keepdims=True)
    return (h - mean) * lax.rsqrt(jnp.maximum(var * n, 1e-4))


def fast_standardized(h, n):
    mean = jnp.mean(h, -1, keepdims=True)
    var = jnp.maximum(0.0, jnp.mean(h * h, -1, keepdims=True) - mean**2)
    return (h - mean) / jnp.sqrt(var * n)


def norm(h):
    return jnp.linalg.norm(h, axis=-1, keepdims=True)


def inverse(h):
    return lax.rsqrt((h * h).sum(-1, keepdims=True) + 1e-6)


def lse(h):
    return jax.nn.logsumexp(h, axis=-1)


def thirds(h, n):
    """A mean over two axes, one sum after the other."""
    return h.reshape(h.shape[0], -1, 2).sum(2).sum(1) / n


SURE = {
    "fan-in": (16, standardized),
    "fan-in of a fast variance": (16, fast_standardized),
    "norm times root": (12, lambda h, n: h / norm(h) * math.sqrt(n)),
    "norm times JAX's root": (16, lambda h, n: h / norm(h) * jnp.sqrt(n)),
    "inverse norm times root": (12, lambda h, n: h * inverse(h) * n**0.5),
    "norm by root": (16, lambda h, n: h + norm(h) / math.sqrt(n)),
    "times JAX's reciprocal": (16, lambda h, n: h.sum(-1) * (1 / jnp.asarray(n * 1.0))),
    "sum by root": (12, lambda h, n: h.sum(-1) / math.sqrt(n)),
    "sum by JAX's root": (16, lambda h, n: h.sum(-1) / jnp.sqrt(n)),
    "divided before": (16, lambda h, n: (h / n).sum(-1)),
    "divided twice": (16, lambda h, n: (h / 5 / n).sum()),
    "divided twice, in turn": (12, lambda h, n: (h / n / 5).sum(1).sum(0)),
    "divided by the product": (16, lambda h, n: (h / (5 * n)).sum(1).sum(0)),
    "divided between sums": (12, lambda h, n: (h.sum(0) / n).sum()),
    "divided after weighing": (16, lambda h, n: (h / 5 * jnp.tanh(h) / n).sum(-1)),
    "divided and moved": (16, lambda h, n: (h / n).T[:, :, None].sum(0)),
    "sum after sum": (12, thirds),
    "mean of exponentials": (12, lambda h, n: lse(h) - math.log(n)),
    "JAX's logarithm": (16, lambda h, n: lse(h) - jnp.log(n)),
    "negative logarithm": (12, lambda h, n: lse(h) + -math.log(n)),
    "a logarithm less a logarithm": (12, lambda h, n: math.log(n) - lse(h)),
    "a mean in two steps": (16, lambda h, n: h.reshape(5, 1, -1).sum((0, 2)) / 5 / n),
    "a multiple of a mean": (16, lambda h, n: 3.0 * h.sum(-1) / n),
    "variance": (16, lambda h, n: jnp.var(h, -1)),
    "deviation": (16, lambda h, n: jnp.std(h, -1, ddof=1)),
}


def summed(act):
    """A network of one hidden layer that calls `act(hidden, n)`."""

    def fn(p, x, n):
        h = x @ p["w"]
        found = act(h, n or h.shape[-1])
        return jnp.tanh(found) @ p["o"] if found.shape == h.shape else found

    return fn


def hidden(size):
    return {"w": normal(6, size), "o": normal(size, 3)}, normal(5, 6), "w[1]"


@pytest.mark.parametrize("name", SURE)
def test_what_was_computed_from_a_size_follows(name):
    size, act = SURE[name]
    params, x, group = hidden(size)
    if name == "sum after sum":
        group = next(iter(jg.trace(summed(act), params, x, None).groups))
    keep = [0, 2, 3, 5]
    said = agree(summed(act), params, x, group, keep, None)
    assert said
    assert all(why.startswith("rescaled") for why in said)


CHANCE = {
    "half of a sum of four": (4, lambda h, n: 0.5 * jax.nn.relu(h).sum(-1)),
    "a quarter of a sum of four": (4, lambda h, n: h.sum(-1) * 0.25),
    "a quarter of a sum of 16": (16, lambda h, n: 0.25 * h.sum(-1)),
    "a tenth of a sum of 100": (100, lambda h, n: 0.1 * h.sum(-1)),
    "an eighth of a sum of 64": (64, lambda h, n: h.sum(-1) / 8),
    "twice a softmax of four": (4, lambda h, n: 2.0 * jax.nn.softmax(h, -1)),
    "four times a softmax of four": (4, lambda h, n: 4.0 * jax.nn.softmax(h, -1)),
    "a reciprocal": (12, lambda h, n: h.sum(-1) * (1 / n)),
    "a hard sigmoid of six": (6, lambda h, n: jax.nn.hard_sigmoid(h.sum(-1))),
    "one entry less": (12, lambda h, n: jnp.square(h).sum(-1) / (n - 1)),
    "a temperature of 16": (16, lambda h, n: h / norm(h) * 4.0),
    "a reciprocal before": (12, lambda h, n: (h * (1 / n)).sum(-1)),
    "logits divided twice": (
        16,
        lambda h, n: (h / 5 / 16) @ jnp.ones((h.shape[-1], 2)),
    ),
    "divided, weighed, and summed": (16, lambda h, n: (h / n * jnp.tanh(h)).sum(-1)),
    "divided, weighed, summed twice": (
        16,
        lambda h, n: (h / n * jnp.tanh(h)).sum(0).sum(0),
    ),
    "divided, weighed, and contracted": (
        16,
        lambda h, n: (h / n * jnp.tanh(h)) @ jnp.ones((h.shape[-1], 2)),
    ),
    "a mean of logits": (16, lambda h, n: (h / 16) @ jnp.ones((h.shape[-1], 2))),
    "a multiple by a norm": (12, lambda h, n: h * math.sqrt(n) / norm(h)),
    "a sum and a term": (16, lambda h, n: (jnp.square(h).sum(-1) + 0.1) / n),
}


@pytest.mark.parametrize("name", CHANCE)
def test_what_equals_a_size_by_chance_stays_and_is_noted(name):
    size, act = CHANCE[name]
    params, x, group = hidden(size)
    said = agree(summed(act), params, x, group, [0, 2, 3], size)
    assert all(why.startswith("kept: a constant equals") for why in said)
    assert said or name == "a hard sigmoid of six"


def attention(where):
    def fn(p, x, d):
        q, k, v = (jnp.einsum("tn,nhd->thd", x, p[name]) for name in "qkv")
        d = d or q.shape[-1]
        if where == "both sides":
            q, k = q * d**-0.25, k / d**0.25
        if where == "both sides by JAX's root":
            q, k = (y / jnp.sqrt(jnp.sqrt(d)) for y in (q, k))
        logits = jnp.einsum("qhd,khd->hqk", q, k)
        later = ~jnp.tri(5, dtype=bool)[None]
        if where == "reciprocal":
            logits = logits / d
        if where == "after masking":
            logits = jnp.where(later, jnp.array(-1e9), logits) / math.sqrt(d)
        if where == "after a bias":
            logits = (logits + p["b"]) * d**-0.5
        return jnp.einsum("hqk,khd->qd", jax.nn.softmax(logits), v)

    return fn


@pytest.mark.parametrize("treated", ["rescale", "keep"])
@pytest.mark.parametrize(
    "where",
    [
        "both sides",
        "both sides by JAX's root",
        "reciprocal",
        "after masking",
        "after a bias",
    ],
)
def test_every_scale_of_attention_has_its_option(where, treated):
    params = {name: normal(6, 2, 9) for name in "qkv"} | {"b": normal(2, 5, 5)}
    said = agree(
        attention(where),
        params,
        normal(5, 6),
        "k[2]",
        [0, 2, 5, 8],
        None if treated == "rescale" else 9,
        jg.Options(attention_scale=treated),
    )
    assert said
    assert all(
        why.startswith({"rescale": "rescaled", "keep": "kept"}[treated]) for why in said
    )


def test_a_slope_after_a_hundred_inputs_is_no_scale():
    def fn(p, x, n):
        h = jnp.tanh(x @ p["w"]) @ p["m"]
        return jnp.where(h > 0, h, 0.1 * h)

    params = {"w": normal(6, 100), "m": normal(100, 3)}
    options = jg.Options(attention_scale="rescale")
    agree(fn, params, normal(5, 6), "w[1]", range(30), None, options)


@pytest.mark.parametrize(
    "name", ["fan-in", "norm by root", "divided before", "mean of exponentials"]
)
def test_divisors_that_are_to_stay_do(name):
    """The mean and the variance inside of `fan-in` stay, too: their ratio cancels."""
    size, act = SURE[name]
    params, x, group = hidden(size)
    act = standing if name == "fan-in" else act
    options = jg.Options(divisors="keep")
    said = agree(summed(act), params, x, group, [0, 2, 3, 5], size, options)
    assert said
    assert all(why.startswith("kept") for why in said)


def standing(h, n):
    """Weight standardization, of which every divisor is n."""
    mean = h.sum(-1, keepdims=True) / n
    var = jnp.square(h - mean).sum(-1, keepdims=True) / n
    return (h - mean) * lax.rsqrt(jnp.maximum(var * n, 1e-4))


def test_convolutions_of_nfnets_follow_their_fan_in():
    def fn(p, x, n):
        for w in (p["a"], p["b"]):
            fan_in = math.prod(w.shape[:-1])
            mean = jnp.mean(w, (0, 1, 2), keepdims=True)
            var = jnp.var(w, (0, 1, 2), keepdims=True)
            scale = lax.rsqrt(jnp.maximum(var * fan_in, 1e-4))
            w = w * scale - mean * scale
            x = lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.gelu(x)
        return x

    params = {"a": normal(3, 3, 2, 8), "b": normal(3, 3, 8, 4)}
    x = normal(2, 5, 5, 2)
    said = agree(fn, params, x, "a[3]", [0, 2, 3, 5, 6], None)
    assert all(why.startswith("rescaled") for why in said)
    (why,) = said
    assert why.count("(test_") == 3
