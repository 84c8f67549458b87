"""Which groups lie inside of residual branches, by what the networks are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import detector, resnet, zoo
from jprune import graph as jg

pytestmark = pytest.mark.others_code


def _inner(graph):
    inner = jg.is_inner(graph)
    return {name for name, group in graph.groups.items() if inner(group)}


def test_first_convolutions_of_a_residual_network():
    params = resnet.init(jax.random.key(0), (8, 8, 1), depth=14, width=4)
    graph = jg.trace(resnet.apply, params, jnp.ones((2, 8, 8, 1)))
    wanted = {n for n in graph.groups if "/first/" in n}
    assert _inner(graph) == wanted
    assert len(wanted) == 6
    scores = jg.group_scores(graph, jax.tree.map(jnp.square, params))
    keep = jg.choose(graph, scores, 0.5, where=jg.is_inner(graph))
    assert set(keep) == wanted


def test_a_detector_has_two_sums():
    params = detector.init(jax.random.key(0), width=4)
    images = jnp.ones((2, 32, 32, 3))
    graph = jg.trace(lambda p, x: detector.forward(p, x).outputs, params, images)
    outer = set(graph.groups) - _inner(graph)
    assert outer == {f"{part}/cross/main/kernel[3]" for part in ("fine", "coarse")}


def _block(p, x):
    """Of a transformer: rotary positions, a mask of the inputs, GELU by tanh."""
    turn = jnp.linspace(0, 1, 4)
    q, k, v = (jnp.einsum("td,dhe->the", x, p[n]) for n in "qkv")
    q, k = (a * jnp.cos(turn) + jnp.roll(a, 2, -1) * jnp.sin(turn) for a in (q, k))
    logits = jnp.einsum("the,she->hts", q, k)
    logits = logits + jnp.where(x.sum(-1) > 0, 0.0, -9.0)[None, None]
    weights = jax.nn.softmax(logits)
    x = x + jnp.einsum("hts,she,hed->td", weights, v, p["o"])
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def _block_params(*first):
    shapes = dict.fromkeys("qkv", (6, 2, 4)) | {"o": (2, 4, 6)}
    shapes |= {"up": (6, 10), "down": (10, 6)}
    return {n: jnp.ones((*first, *shape)) for n, shape in shapes.items()}


@pytest.mark.parametrize("stacked", [False, True])
def test_streams_of_a_transformer_and_of_its_scan(stacked):
    def net(p, x):
        x = x @ p["in"]
        if stacked:
            x = jax.lax.scan(lambda x, w: (_block(w, x), None), x, p["block"])[0]
        else:
            x = _block(p["block"], x)
        return x @ p["out"]

    params = {"in": jnp.ones((3, 6)), "out": jnp.ones((6, 2))}
    params["block"] = _block_params(*((5,) if stacked else ()))
    graph = jg.trace(net, params, jnp.ones((7, 3)))
    outer = [graph.groups[n] for n in set(graph.groups) - _inner(graph)]
    streams = [g for g in outer if g.kind != "layer"]
    assert [g.size for g in streams] == [6]
    assert {graph.groups[n].size for n in _inner(graph)} >= {2, 10}
    assert len(outer) == 1 + stacked


def test_projected_shortcuts_tie_and_parallel_inputs_do_not():
    def net(p, x, y):
        a = jnp.tanh(x @ p["x"] + y @ p["y"])  # of two inputs: no residual sum
        b = jnp.tanh(a @ p["first"]) @ p["second"] + a @ p["short"]
        return jnp.tanh(b) @ p["head"]

    draw = np.random.default_rng(0).normal
    shapes = {"x": (3, 4), "y": (2, 4), "first": (4, 5), "second": (5, 6)}
    shapes |= {"short": (4, 6), "head": (6, 2)}
    params = {n: jnp.asarray(draw(size=s), jnp.float32) for n, s in shapes.items()}
    graph = jg.trace(net, params, jnp.ones((7, 3)), jnp.ones((7, 2)))
    sizes = {graph.groups[n].size for n in _inner(graph)}
    assert sizes == {4, 5}


@pytest.mark.parametrize("name", ["VGG (Linen)", "Maxout network (plain)"])
def test_without_sums_all_groups_are_inner(name):
    model = zoo.ARCHITECTURES[name](jax.random.key(0))
    graph = jg.trace(model.fn, model.params, *model.inputs)
    assert _inner(graph) == set(graph.groups)
