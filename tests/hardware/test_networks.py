"""Workloads: networks by their published sizes, traces, schedules, SpAtten's stages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import graph as jg
from jprune import hardware
from jprune import hardware as hw
from jprune.hardware import machines, networks, spatten, workload

# 10^9 multiply-adds: half of the FLOPs that papers and model cards give.
PUBLISHED = {
    "bert_base": (networks.bert_base(128), 22.5 / 2),
    "bert_large": (networks.bert_large(128), 79 / 2),
    "resnet50": (networks.resnet50(), 4.09),
    "vit_base": (networks.vit_base(), 17.6),
    # Weights of the layers, and 2 * 1024 * 1024 keys and values for each layer.
    "gpt2_medium": (networks.gpt2_medium(1, 1024), 0.302 + 24 * 2 * 1024**2 / 1e9),
    "gpt2_small": (networks.gpt2_small(1, 1024), 0.085 + 12 * 2 * 768 * 1024 / 1e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_their_published_multiply_adds(name):
    net, published = PUBLISHED[name]
    assert float(workload.multiply_adds(net)) / 1e9 == pytest.approx(
        published, rel=0.01
    )
    assert float(workload.dense_multiply_adds(net)) == float(
        workload.multiply_adds(net)
    )


def test_a_traced_transformer_is_the_one_by_hand():
    width, heads, hidden, tokens = 64, 4, 128, 24
    dim = width // heads

    def layer(params, x):
        def split(y):
            return y.reshape(tokens, heads, dim).transpose(1, 0, 2)

        qkv = x @ params["qkv"]
        q, k, v = (split(y) for y in jnp.split(qkv, 3, axis=1))
        p = jax.nn.softmax(jnp.einsum("hqd,hkd->hqk", q, k))
        y = jnp.einsum("hqk,hkd->hqd", p, v).transpose(1, 0, 2).reshape(tokens, width)
        y = y @ params["out"]
        return jax.nn.relu(y @ params["up"]) @ params["down"]

    shapes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32)
    graph = jg.trace(layer, params, x)
    found = hardware.from_graph(graph, bits=8)
    by_hand = networks.transformer_layer(
        tokens, width=width, heads=heads, hidden=hidden
    )
    for name in ("batch", "m", "n", "k", "input_bits"):
        ours, theirs = (np.asarray(getattr(net, name)) for net in (found, by_hand))
        if name in ("m", "n"):  # which operand comes first is up to the program
            continue
        np.testing.assert_array_equal(ours, theirs, name)
    np.testing.assert_array_equal(found.m * found.n, by_hand.m * by_hand.n)
    assert float(workload.multiply_adds(found)) == jg.multiply_adds(graph)


def test_a_traced_convolution_is_the_one_by_hand():
    def net(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["one"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x.mean((1, 2)) @ params["two"]

    params = {
        "one": jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.bfloat16),
        "two": jax.ShapeDtypeStruct((32, 10), jnp.bfloat16),
    }
    x = jax.ShapeDtypeStruct((2, 28, 28, 16), jnp.bfloat16)
    graph = jg.trace(net, params, x)
    found = hardware.from_graph(graph)
    conv = networks.convolution(28, 16, 32, stride=2, batch=2)
    for name in ("batch", "m", "n", "k"):
        assert float(getattr(found, name)[0]) == float(getattr(conv, name)[0])
    np.testing.assert_allclose(found.input_unique[0], conv.input_unique[0], rtol=1e-6)
    assert found.input_bits.tolist() == [16, 16]
    (name,) = [n for n, g in graph.groups.items() if g.size == 32]
    less = hardware.from_graph(graph, {name: 8})
    assert less.n.tolist() == [8, 10]
    assert less.k.tolist() == [144, 8]


COST = jax.jit(hw.cost)


def mlp(params, x):
    return jnp.tanh(jnp.tanh(x @ params["in"]) @ params["mid"]) @ params["out"]


@pytest.fixture
def graph():
    sizes = {"in": (64, 256), "mid": (256, 512), "out": (512, 8)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in sizes.items()}
    return jg.trace(mlp, params, jax.ShapeDtypeStruct((32, 64), jnp.float32))


def energy(found):
    return found.energy


def test_half_the_energy_of_a_machine_is_what_select_leaves(graph):
    rng = np.random.default_rng(0)
    scores = {n: rng.random(g.size) for n, g in graph.groups.items()}
    cost = hw.as_graph_cost(machines.eyeriss(), energy, bits=8)
    keep = jg.choose(graph, scores, 0.5, cost=cost)
    left = float(cost(graph, jg.sizes(graph, keep)) / cost(graph, {}))
    assert 0.48 < left <= 0.5


def test_soft_sizes_get_a_gradient_of_energy(graph):
    cost = hw.as_graph_cost(machines.eyeriss(), energy, bits=8, temperature=0.05)
    names = list(graph.groups)
    sizes = {n: jnp.float32(0.7 * graph.groups[n].size) for n in names}
    spent = jax.jit(lambda s: cost(graph, s))
    slopes = jax.grad(spent)(sizes)
    for n in names:
        step = 4.0
        ends = [spent(sizes | {n: sizes[n] + d}) for d in (step, -step)]
        difference = float(ends[0] - ends[1]) / (2 * step)
        assert float(slopes[n]) == pytest.approx(difference, rel=0.05)
        assert float(slopes[n]) > 0


@pytest.mark.others_code
def test_a_lagrangian_brings_the_energy_to_its_target(graph):
    """Soft sizes and multipliers descend together, as in training."""
    import optax

    from jprune.learned import controllers

    cost = hw.as_graph_cost(machines.eyeriss(), energy, bits=8, temperature=0.05)
    full = float(cost(graph, {}))
    names = list(graph.groups)

    def sizes(logits):
        return {n: graph.groups[n].size * jax.nn.sigmoid(logits[n]) for n in names}

    def loss(both):
        logits, multipliers = both
        saved = hw.saving(cost(graph, sizes(logits)), full)
        # The task: every unit is worth keeping.
        task = -0.1 * sum(jax.nn.sigmoid(logits[n]) for n in names)
        return task + controllers.lagrangian(saved, 0.3, multipliers)

    both = ({n: jnp.float32(2) for n in names}, controllers.init_multipliers())
    tx = optax.adam(0.05)

    @jax.jit
    def run(both):
        def step(carry, _):
            both, state = carry
            updates, state = tx.update(jax.grad(loss)(both), state)
            return (jax.tree.map(jnp.add, both, updates), state), None

        return jax.lax.scan(step, (both, tx.init(both)), length=1500)[0][0]

    logits, _ = run(both)
    saved = float(hw.saving(cost(graph, sizes(logits)), full))
    assert saved == pytest.approx(0.3, abs=0.006)  # 2 % of the target


def test_weights_are_worth_what_their_zeros_save(graph):
    chip = machines.eyeriss()._replace(skip=jnp.float32(1), compressed=jnp.float32(1))
    each = hw.worth(graph, chip, energy, bits=8)
    assert set(each) == {"in", "mid", "out"}
    # All zeros in one leaf: exactly what its weights are worth.
    dense, none = (
        COST(hardware.from_graph(graph, bits=8, density={"mid": d}), chip).energy
        for d in (1.0, 0.0)
    )
    np.testing.assert_allclose(256 * 512 * each["mid"], dense - none, rtol=1e-3)
    plain = hw.worth(graph, machines.a100(), lambda c: c.seconds, bits=8)
    assert set(plain.values()) == {0.0}  # it skips nothing
    # And as the budget of an allocation: what a budget of joules keeps.
    rng = np.random.default_rng(1)
    params = {
        k: jnp.asarray(rng.normal(size=s), jnp.float32)
        for k, s in {"in": (64, 256), "mid": (256, 512), "out": (512, 8)}.items()
    }
    unit = max(each.values()) / 2**15  # J: costs are integers up to 2^16
    cost = {k: max(1, round(x / unit)) for k, x in each.items()}
    whole = sum(cost[k] * params[k].size for k in params)
    pruner = jp.keep_within_budget(round(0.4 * whole), lambda path, w: cost[path])
    masks = pruner.update(jax.tree.map(jnp.abs, params), pruner.init(params), params)[0]
    spent = sum(cost[k] * int(masks[k].sum()) for k in params)
    assert 0.39 * whole < spent <= 0.4 * whole


@pytest.mark.parametrize("metric", ["seconds", "energy"])
def test_fit_meets_a_budget(metric):
    def spent(found):
        return getattr(found, metric)

    def smooth(net):
        return spent(hw.cost(net, chip, temperature=0.05))

    net, chip = networks.bert_base(128), machines.spatten()
    net = net._replace(keep=net.keep * jnp.linspace(0.8, 1, 4)[None])
    shares = jnp.array([0.9, 0.6, 0.4])

    @jax.jit
    def both(net):
        full = smooth(net)
        fitted = jax.vmap(lambda s: hw.fit(net, chip, spent, s * full))(shares)
        return fitted.keep, jax.vmap(smooth)(fitted) / full

    keep, found = both(net)
    np.testing.assert_allclose(found, shares, rtol=1e-3)
    assert (found <= shares * (1 + 1e-5)).all()
    for each in keep:  # one step down for all, from where they were
        steps = np.unique(np.asarray(net.keep - each).round(5))
        assert len(steps) == 1
        assert steps[0] > 0


def test_fit_changes_what_it_may_and_says_the_least_if_that_is_too_much():
    net, chip = networks.bert_base(128), machines.spatten()
    heads = jnp.array([True, False, False, False])
    found = hw.fit(net, chip, lambda c: c.energy, 0.0, where=heads, least=0.25)
    np.testing.assert_array_equal(found.keep[:, 0], np.float32(0.25))
    np.testing.assert_array_equal(found.keep[:, 1:], 1)
    with pytest.raises(
        jp.PruningError, match=r"least keep ratio has to be in \(0, 1\]; got 0"
    ):
        hw.fit(net, chip, lambda c: c.energy, 1.0, least=0)


def test_errors_name_what_is_wrong(graph):
    with pytest.raises(jp.PruningError, match="no matrix product"):
        hardware.from_graph(jg.trace(lambda p, x: x + p, jnp.ones(3), jnp.ones(3)))
    with pytest.raises(jp.PruningError, match=r"No product uses the leaves \['mud'\]"):
        hardware.from_graph(graph, density={"mud": 0.5})
    with pytest.raises(jp.PruningError, match=r"has no fields \['input_drum'\]"):
        hardware.from_graph(graph, input_drum=0.0)
    with pytest.raises(
        jp.PruningError, match="feature_group_count=3 does not divide 4"
    ):
        networks.convolution(8, 4, 6, feature_group_count=3)
    with pytest.raises(jp.PruningError, match="got 2 of tokens, 3 of heads"):
        networks.scheduled((4, 2), (1, 1, 1))


def test_the_tile_model_agrees_with_spattens_closed_form():
    """Scores and values of a summarization, where neither selection nor DRAM bounds."""
    chip = machines.spatten()
    for tokens, heads in [(128, 12), (384, 16), (64, 12), (177, 12)]:
        layer = spatten.Attention(tokens, float(tokens), float(tokens), heads)
        found = spatten.stages(layer, chip)
        fields = {"input_bits": 12, "weight_bits": 12}
        net = networks.attention(tokens, tokens, heads, **fields)
        # The closed form has no softmax, and counts keys and values in DRAM only.
        ample = chip._replace(softmax=jnp.float32(1e6))
        cycles = float(COST(net, ample).cycles)
        assert cycles == pytest.approx(float(spatten.overlapped(found)), rel=0.05)


def test_stages_of_a_generation_by_hand():
    layer = spatten.Attention(1.0, 1000.0, 200.0, 12.0, 6.0, 6.0, 4.0, 0.25)
    found = spatten.stages(layer, machines.spatten())
    bits = 12 * 64 * (1000 * (6 + 0.25 * 4) + 200 * 6)
    assert float(found.dram_bytes) == bits / 8
    assert float(found.dram) == bits / 8 / 512
    assert float(found.scores) == 12 * 1.25 * 125
    assert float(found.values) == 12 * 25
    assert float(found.drain) == 11 + 87 + 125 + 5
    summed = found.dram + found.scores + found.topk + found.drain
    assert float(spatten.summed(found)) == float(summed)
    longest = max(float(x) for x in found[1:5])
    assert float(spatten.overlapped(found)) == longest + float(found.drain)


@pytest.mark.parametrize("average", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("layers", [12, 24])
def test_ramps_have_their_average_and_never_rise(average, layers):
    shares = spatten.ramp(layers, average, least=0.01)
    assert np.mean(shares) == pytest.approx(average)
    assert all(a >= b for a, b in itertools.pairwise(shares))
    assert shares[: int(np.ceil(0.15 * layers))] == [1.0] * int(np.ceil(0.15 * layers))
    assert 0 < min(shares) <= max(shares) <= 1
