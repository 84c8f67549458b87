"""Routers lose the same experts as their networks; other positions freeze an axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.reasons import reasons

import jprune as jp
from jprune import graph as jg

EXPERTS, TOKENS, WIDTH, HIDDEN = 8, 12, 6, 5
KEPT = np.array([1, 2, 5, 7])


def normal(*shape):
    draw = np.random.default_rng(shape).normal
    return jnp.asarray(draw(size=shape), jnp.float32)


PARAMS = {
    "router": normal(WIDTH, EXPERTS),
    "up": normal(EXPERTS, WIDTH, HIDDEN),
    "down": normal(EXPERTS, HIDDEN, WIDTH),
}


def mix(p, weights, x):
    hidden = jnp.tanh(jnp.einsum("td,edh->teh", x, p["up"]))
    return x + jnp.einsum(
        "te,ted->td", weights, jnp.einsum("teh,ehd->ted", hidden, p["down"])
    )


def top_two(p, x):
    gates = jax.nn.softmax(x @ p["router"])
    best, chosen = lax.top_k(gates, 2)
    hot = jax.nn.one_hot(chosen, gates.shape[-1])
    return mix(p, jnp.einsum("tk,tke->te", best / best.sum(-1, keepdims=True), hot), x)


def switch(p, x):
    """One expert for each token (arXiv:2101.03961)."""
    gates = jax.nn.softmax(x @ p["router"])
    return mix(p, gates * jax.nn.one_hot(jnp.argmax(gates, -1), gates.shape[-1]), x)


def least_first(p, x):
    """The expert of the least distance, in a loop, and with its number as an int8."""

    def layer(x, _):
        far = x @ p["router"]
        near = jnp.argmin(far, axis=-1)[:, None].astype(jnp.int8)
        hot = near == jnp.arange(far.shape[-1], dtype=jnp.int8)[None]
        return mix(p, hot.astype(x.dtype) * far, x), None

    return lax.scan(layer, x, length=2)[0]


def by_hand(p, x, kept, name):
    """In float64, token by token, over the experts that are left."""
    p = {n: np.asarray(w, np.float64) for n, w in p.items()}
    x = np.asarray(x, np.float64)
    for _ in range(2 if name == "least first" else 1):
        x = np.array([one_token(p, t, kept, name) for t in x])
    return x


def one_token(p, x, kept, name):
    logits = x @ p["router"][:, kept]
    gates = np.exp(logits - logits.max())
    gates /= gates.sum()
    order = np.argsort(-logits)
    if name == "top two":
        chosen, weights = order[:2], gates[order[:2]] / gates[order[:2]].sum()
    elif name == "switch":
        chosen, weights = order[:1], gates[order[:1]]
    else:
        chosen, weights = order[-1:], logits[order[-1:]]
    experts = kept[chosen]
    outputs = [np.tanh(x @ p["up"][e]) @ p["down"][e] for e in experts]
    return x + sum(w * y for w, y in zip(weights, outputs, strict=True))


ROUTERS = {"top two": top_two, "switch": switch, "least first": least_first}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_loses_the_experts_of_its_network(name):
    fn, x = ROUTERS[name], normal(TOKENS, WIDTH)
    graph = jg.trace(fn, PARAMS, x)
    (experts,) = [g for g in graph.groups.values() if g.kind == "expert"]
    assert experts.name == "router[1]"
    assert {str(m) for m in experts.members} == {"router[1]", "up[0]", "down[0]"}
    small_fn, small = jg.shrink(graph, PARAMS, keep={experts.name: KEPT})
    assert small["router"].shape == (WIDTH, 4)
    mask = np.isin(np.arange(EXPERTS), KEPT)
    without = jg.without_entries(graph, {experts.name: mask})
    wanted = by_hand(PARAMS, x, KEPT, name)
    both = jax.jit(lambda: (small_fn(small, x), without(PARAMS, x)))
    for found in both():
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    slope = jax.jit(jax.grad(lambda p, f: f(p, x).sum()), static_argnums=1)
    for a, b in zip(
        jax.tree.leaves(slope(small, small_fn)),
        jax.tree.leaves(slope(small, fn)),  # the network itself reads its shapes
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_as_many_experts_stay_as_a_token_needs():
    x = normal(TOKENS, WIDTH)
    graph = jg.trace(top_two, PARAMS, x)
    group = graph.groups["router[1]"]
    assert group.least == 2
    with pytest.raises(
        jp.PruningError, match="would keep 1 of 8 entries, but a router"
    ):
        jg.make_plan(graph, {"router[1]": [3]})
    scores = {n: np.arange(g.size) for n, g in graph.groups.items()}
    only = lambda g: g.kind == "expert"  # noqa: E731
    keep = jg.choose(graph, scores, 0.99, where=only)
    assert keep["router[1]"].tolist() == 6 * [False] + 2 * [True]
    assert jg.fit_widths(graph, {"router": 0.01}, where=only) == {"router[1]": 2}


OTHER_USES = {
    "returned": lambda p, x: (top_two(p, x), lax.top_k(x @ p["router"], 2)[1]),
    "indexed": lambda p, x: jnp.einsum(
        "td,tkdh->tkh", x, p["up"][lax.top_k(x @ p["router"], 2)[1]]
    ),
    "a number": lambda p, x: mix(
        p, x @ p["router"] * (jnp.argmax(x @ p["router"], -1) / 7)[:, None], x
    ),
    "other sizes": lambda p, x: jax.nn.one_hot(lax.top_k(x @ p["router"], 2)[1], 9),
    "values only": lambda p, x: mix(
        p, jnp.maximum(x @ p["router"], lax.top_k(x @ p["router"], 2)[0][:, 1:]), x
    ),
    "all": lambda p, x: mix(
        p,
        jax.nn.one_hot(lax.top_k(x @ p["router"], EXPERTS)[1], EXPERTS).sum(1),
        x,
    ),
}


@pytest.mark.parametrize("name", OTHER_USES)
def test_other_positions_freeze_the_axis(name):
    found = reasons(jg.trace(OTHER_USES[name], PARAMS, normal(TOKENS, WIDTH)))
    whole = [names for why, names in found.items() if why.startswith("frozen")]
    assert any("router[1]" in names or "router[0, 1]" in names for names in whole)


def test_an_axis_of_unknown_size_is_frozen():
    """Positions in a sequence of any length, compared with positions in it."""

    def fn(p, x):
        where = jnp.argmax(x @ p["score"], axis=0)
        hot = where == jnp.arange(x.shape[0])
        return jnp.where(hot[:, None], x @ p["up"], 0) @ p["down"]

    params = {"score": normal(6), "up": normal(6, 8), "down": normal(8, 3)}
    (t,) = jax.export.symbolic_shape("t")
    graph = jg.trace(fn, params, jax.ShapeDtypeStruct((t, 6), jnp.float32))
    assert list(graph.groups) == ["up[1]"]


def test_a_plan_with_fewer_experts_than_a_router_takes_is_refused():
    params, x = PARAMS, normal(TOKENS, WIDTH)
    graph = jg.trace(top_two, params, x)
    kept = np.array([1])
    plan = {"router": {1: kept}, "up": {0: kept}, "down": {0: kept}}
    with pytest.raises(jp.PruningError, match="chooses 2 of them at once"):
        jg.shrink(graph, params, plan)
