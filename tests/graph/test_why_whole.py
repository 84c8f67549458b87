"""Why nothing was pruned: `explain` in one screen, and the errors of choices."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reasons import reasons

import jprune as jp
from jprune import graph as jg

HERE = pathlib.Path(__file__).name


def normal(*shape):
    draw = np.random.default_rng(shape).normal
    return jnp.asarray(draw(size=shape), jnp.float32)


CLOSED = {"a": normal(16, 24), "b": normal(24, 4)}


def reversed_layer(p, x):
    h = x @ p["a"]
    return (h + h[:, ::-1]) @ p["b"]


def called(p, x):
    h = x @ p["a"]
    h = jax.pure_callback(lambda a: np.asarray(a), h, h)
    return h @ p["b"]


# function; names of leaves; the first reason, its names; why compress refuses
WHOLE = {
    "a lone layer": (
        lambda p, x: x @ p["a"],
        "a",
        "frozen, keeps 384 weights whole: it is an axis of an input",
        "a[0]",
    ),
    "reversed": (
        reversed_layer,
        "ab",
        "frozen, keeps 480 weights whole: rev acts along this axis (",
        "a[1], b[0]",
    ),
    "a callback": (
        called,
        "ab",
        "frozen, keeps 384 weights whole: it is an axis of an input",
        "a[0]",
    ),
    "unused": (
        lambda p, x: 2 * x,
        "ab",
        "unused, keeps 480 weights whole: no result depends on it",
        "a, b",
    ),
    "closed over": (
        lambda p, x: x @ CLOSED["a"] @ CLOSED["b"],
        "",
        "closed over: the function multiplies by arrays that are not among its params",
        "float32[16, 24], float32[24, 4]",
    ),
    "cast": (
        lambda p, x: x @ CLOSED["a"].astype(jnp.bfloat16).astype(jnp.float32),
        "",
        "closed over: the function multiplies by arrays that are not among its params",
        "float32[16, 24]",
    ),
    "dequantized": (
        lambda p, x: x @ (0.5 * CLOSED["a"]),
        "",
        "closed over: the function multiplies by arrays that are not among its params",
        "float32[16, 24]",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_where_nothing_can_shrink_the_first_reason_is_the_largest(case):
    fn, names, why, concerned = WHOLE[case]
    params, x = {n: CLOSED[n] for n in names}, normal(5, 16)
    graph = jg.trace(fn, params, x)
    assert not graph.groups
    assert jg.explain(graph).startswith("Nothing can shrink")
    first, *_ = reasons(graph).items()
    assert first[0].startswith(why)
    assert first[1] == concerned
    with pytest.raises(jp.PruningError) as refused:
        jg.compress(fn, params, x)
    text = str(refused.value)
    assert text.startswith("No group may shrink. Nothing can shrink")
    assert jg.explain(graph, 3) in text


def test_arrays_beside_the_params_are_named_even_where_others_shrink():
    def fn(p, x):
        scaled = jnp.tanh(x @ p["a"]) * jnp.arange(1.0, 25)[None]  # no product
        return scaled @ CLOSED["b"]

    found = reasons(jg.trace(fn, {"a": CLOSED["a"]}, normal(5, 16)))
    (why,) = [why for why in found if why.startswith("closed over")]
    assert found[why] == "float32[24, 4]"
    assert f"{HERE}:{fn.__code__.co_firstlineno + 2}" in why


def test_what_is_no_group_though_free():
    """`shrinking` lets a result shrink, but nothing sums over its axis."""
    fn = lambda p, x: (x @ p["a"], p["s"] * x)  # noqa: E731
    params = {"a": CLOSED["a"], "s": jnp.ones(())}
    graph = jg.trace(fn, params, normal(5, 16), shrinking=lambda path, leaf: True)
    found = reasons(graph)
    (apart,) = [why for why in found if why.startswith("not summed over")]
    assert apart.startswith("not summed over, keeps 384 weights whole: ")
    assert found[apart] == "a[1]"
    assert found["one entry, keeps 1 weight whole: there is nothing to remove"] == "s"


def many(p, x):
    """Each layer is frozen for another reason, or has a mean over another size."""
    for w, wide in zip(p["layers"], p["wide"], strict=True):
        pairs = (x @ w).reshape(len(x), -1, 2)  # which meet 3 + the others
        x = x + pairs.sum((1, 2), keepdims=True)[0] + (x @ w)[:, :3].sum(-1)[:, None]
        x = x + jnp.max(x @ wide, -1, keepdims=True) + jnp.mean(x @ wide, -1)[:, None]
        x = x + jnp.sort(x, -1)
    return x


def test_hundreds_of_notes_fit_one_screen():
    params = {
        "layers": [normal(8, 8 + 2 * i) for i in range(40)],
        "wide": [normal(8, 4 + i) for i in range(40)],
    }
    graph = jg.trace(many, params, normal(3, 8))
    for most in (3, 6, 20):
        lines = jg.explain(graph, most).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 100
    every = jg.explain(graph, None)
    assert len(every.splitlines()) > 200
    for i in range(40):
        assert f"layers/{i}[" in every
        assert f"wide/{i}[1]" in every
    kept = [why for why in reasons(graph) if "keeps" in why]
    numbers = [int(why.split("keeps ")[1].split()[0].replace(",", "")) for why in kept]
    assert numbers == sorted(numbers, reverse=True)


def deep(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


DEEP = {"a": normal(4, 12), "b": normal(12, 40), "c": normal(40, 2)}


def test_a_target_out_of_reach_names_the_groups_in_the_way():
    """5 tokens: 5 (4 a + a b + 2 b) multiply-adds, 8 of a and b at least."""
    x = normal(5, 4)
    with pytest.raises(jp.PruningError) as refused:
        jg.compress(deep, DEEP, x, remove=0.9)
    text = str(refused.value)
    assert "cost 560, more than the budget of 304" in text
    a, b = 560 - 5 * (4 + 8 + 16), 560 - 5 * (32 + 8 + 2)  # what one entry saves
    assert f"a[1] keeps 8 of 12 entries ({a}), b[1] keeps 8 of 40 entries ({b})" in text
    with pytest.raises(jp.PruningError) as refused:
        jg.compress(deep, DEEP, x, remove=0.9, exclude="a")
    text = str(refused.value)
    whole = 5 * (48 + 96 + 16)
    saved = whole - 5 * (4 + 8 + 16)
    assert f"a[1] keeps 12 of 12 entries by where= or exclude= ({saved})" in text
    with pytest.raises(jp.PruningError, match="With one entry in every group it would"):
        jg.compress(deep, DEEP, x, remove=0.99)


def test_what_where_leaves_out_is_named():
    with pytest.raises(jp.PruningError, match=r"leaves out a\[1\] \(hidden, 12 ent"):
        jg.compress(deep, DEEP, normal(5, 4), exclude=["a", "b"])
    with pytest.raises(jp.PruningError, match="removes none"):
        jg.compress(deep, DEEP, normal(5, 4), remove=0.01, cost=None)


def test_integers_have_no_magnitude():
    params = jax.tree.map(lambda w: w.astype(jnp.int32), DEEP)
    fn = lambda p, x: deep(jax.tree.map(lambda w: w.astype(x.dtype), p), x)  # noqa: E731
    with pytest.raises(jp.PruningError, match=r"'learned_float' selects.*a int32"):
        jg.compress(fn, params, normal(5, 4))


@pytest.mark.others_code
def test_lines_are_those_of_the_user_where_a_framework_calls_jax():
    nnx = pytest.importorskip("flax.nnx")
    conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))

    def fn(conv, x):
        return conv(x).mean(axis=(1, 2))

    (why,) = (w for w in reasons(jg.trace(fn, conv, normal(2, 6, 6, 3))) if "spat" in w)
    assert f"({HERE}:" in why.replace(__file__, HERE)
    assert f":{fn.__code__.co_firstlineno + 1}:" in why
