"""`explain`: each reason once, with a line of code, and what becomes of constants."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.reasons import reasons

from jprune import graph as jg

HERE = pathlib.Path(__file__).name


def normal(*shape):
    draw = np.random.default_rng(shape).normal
    return jnp.asarray(draw(size=shape), jnp.float32)


def net(p, x):
    for w in p["convs"]:
        x = jnp.tanh(lax.conv_general_dilated(x, w, (1, 1), "SAME"))
    return x


def test_equal_reasons_are_one():
    params = {"convs": [normal(4, 4, 3, 3) for _ in range(10)]}
    graph = jg.trace(net, params, normal(2, 4, 6, 6))
    found = reasons(graph)
    assert len(found) == 3
    (why, windows), *_ = [item for item in found.items() if "spatial axis" in item[0]]
    assert why.startswith("frozen: it is a spatial axis of a convolution (")
    assert windows == ", ".join(f"convs/{i}[2, 3]" for i in range(10))
    few = reasons(graph, 5)
    (windows,) = [n for why, n in few.items() if "spatial axis" in why]
    assert windows.endswith("convs/4[2, 3] and 5 more")


def rolled(h):  # an array that is added to itself, each entry one further
    return h + jnp.concatenate([h[:, 1:], h[:, :1]], axis=1)


COMES_FROM = {
    "sort": lambda h: jnp.sort(h, axis=-1),
    "a gather": lambda h: jnp.take(h, jnp.argsort(h[0])[:5], axis=1),
    "a dynamic slice": lambda h: lax.dynamic_slice_in_dim(h, h[0, 0].astype(int), 5, 1),
    "a strided slice": lambda h: h[:, 1:6:3],
    "a padding": lambda h: lax.pad(h, 0.0, ((0, 0, 0), (0, 0, 1))),
}


@pytest.mark.parametrize("name", COMES_FROM)
def test_what_an_axis_comes_from_has_a_line(name):
    """The axis of `b` meets a result; the reason names the line that made it."""

    def fn(p, x):
        h = x @ p["a"]
        made = COMES_FROM[name](h)
        return made * p["b"][None, : made.shape[1]]

    params = {"a": normal(3, 6), "b": normal(11)}
    found = reasons(jg.trace(fn, params, normal(2, 3)))
    frozen = [why for why in found if why.startswith("frozen")]
    assert len(frozen) == 3
    assert all(HERE in why for why in frozen if " axis of " not in why)


def test_an_axis_of_two_uses_has_the_line_where_they_meet():
    def fn(p, x):
        h = jnp.concatenate([x @ p["a"], x @ p["b"]], axis=1)  # 5 + 7
        return (h.reshape(-1, 3, 4) * p["c"]).sum((1, 2))

    params = {"a": normal(3, 5), "b": normal(3, 7), "c": normal(1, 3, 4)}
    graph = jg.trace(fn, params, normal(2, 3))
    (why,) = [why for why in reasons(graph) if "is used both as" in why]
    assert "an axis of size 12 is used both as 5 + 7 and as 3 x 4" in why
    line = fn.__code__.co_firstlineno + 2
    assert f"{HERE}:{line}" in why


def mean(p, x):
    return (x @ p["w"]).mean(-1)


def attention(p, x, before):
    q, k, v = (jnp.einsum("tn,nhd->thd", x, p[name]) for name in "qkv")
    scale = 1 / math.sqrt(q.shape[-1])
    q = q * scale if before else q
    logits = jnp.einsum("qhd,khd->hqk", q, k)
    logits = logits if before else logits * scale
    return jnp.einsum("hqk,khd->qd", jax.nn.softmax(logits), v)


CONSTANTS = {
    "divisors": (mean, {"w": (6, 12)}, "w[1]", 12),
    "attention_scale": (attention, dict.fromkeys("qkv", (6, 2, 9)), "k[2]", 9),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("treated", ["keep", "rescale"])
@pytest.mark.parametrize("option", CONSTANTS)
def test_it_says_what_becomes_of_a_constant(option, treated, before):
    """Against the constant itself, which is what a small function multiplies by."""
    fn, shapes, name, size = CONSTANTS[option]
    if option == "attention_scale":
        fn = lambda p, x: attention(p, x, before)  # noqa: E731
    params = {n: normal(*shape) for n, shape in shapes.items()}
    x = normal(4, 6)
    graph = jg.trace(fn, params, x, options=jg.Options()._replace(**{option: treated}))
    said = [why for why, names in reasons(graph).items() if "a constant was" in why]
    (why,) = [w for w in said if f"from the size {size} of" in w]
    assert reasons(graph)[why] == name
    assert HERE in why
    small, p = jg.shrink(graph, params, keep={name: [0, 2, 3]})
    same = np.allclose(small(p, x), fn(p, x), rtol=1e-5)  # its constant is 1 / 3
    assert same == (treated == "rescale")
    assert why.startswith("rescaled" if same else "kept")
    assert ("and follows it" in why) == same
    assert (f'stays: Options.{option} is "keep"' in why) != same


def test_a_scale_of_no_heads_is_not_mentioned():
    """The width 16 has no mark of a head dimension, so 1 / 4 is a number."""

    def fn(p, x):
        return jnp.tanh(x @ p["a"]) * 0.25 @ p["b"]

    for treated in ("keep", "rescale"):
        options = jg.Options(attention_scale=treated)
        params = {"a": normal(3, 16), "b": normal(16, 2)}
        graph = jg.trace(fn, params, normal(2, 3), options=options)
        assert not any("a constant was" in why for why in reasons(graph))
        assert not graph.notes
