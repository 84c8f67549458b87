"""The benchmarks of the graph at tiny size, and what their claims say."""

import collections
import gc
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from experiments import ExperimentError
from experiments.benchmarks.graph import _garbage, _narrow
from experiments.benchmarks.graph import _timed as graph_timed
from experiments.benchmarks.graph import graph as graph_bench
from experiments.benchmarks.graph import shrink as shrink_bench
from experiments.models import bottleneck, usual
from experiments.models.usual import mamba2, transformers
from experiments.models.zoo import residual
from jprune import graph as jg

pytestmark = pytest.mark.others_code

TINY = graph_bench.Settings(
    seeds=(0,), steps=1, networks=("tiny",), side=32, growing="tiny", depths=(1, 2)
)


# The graph.


def test_parts_of_the_way_add_up(monkeypatch):
    monkeypatch.setattr(graph_bench, "peer_python", lambda: None)
    outcome = graph_bench.run(TINY, None, Progress(disable=True))
    times = outcome.figures["milliseconds"]["tiny"]
    parts = [times[part][0] for part in graph_bench.PARTS if part != "whole"]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(times["whole"][0], rel=0.1)
    facts = outcome.figures["facts"]
    # Patches and stream, and in each block MLP, heads, queries and keys, values.
    assert facts["2 layers"]["groups"] - facts["1 layers"]["groups"] == 4
    assert facts["2 layers"]["equations"] > facts["1 layers"]["equations"]
    assert "not installed" in outcome.tables["main"].caption
    for table in outcome.tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_half_of_the_entries_of_the_tiny_network_go():
    module = graph_timed.NETWORKS["tiny"].module(1)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    first, second = (graph_timed.drawn(shapes, seed) for seed in (0, 1))
    assert not np.array_equal(*(jax.tree.leaves(p)[-1] for p in (first, second)))
    parts, graph = graph_timed.once(module.apply, first, images, True)
    assert set(parts) == {*graph_bench.PARTS, "collection"}
    assert 0 <= parts["collection"] <= parts["whole"]
    assert len(graph.groups) > 0


def test_ratios_to_the_peer_are_claimed_only_where_it_is():
    settings = graph_bench.Settings()
    alone, both = (graph_bench.claims(settings, peer) for peer in (False, True))
    # Of four networks and of their growth; against the peer, each at two times.
    assert len(alone) == 5
    assert [c.claim for c in both[:5]] == [c.claim for c in alone]
    assert len(both) == 13
    names = settings.networks
    times = {"whole": [100.0], "first whole": [400.0], "analysis": [30.0]}
    figures = {
        "milliseconds": dict.fromkeys(names, times),
        "peer_milliseconds": {
            name: {"whole": [200.0], "first whole": [200.0]} for name in names
        },
        "growth_milliseconds": {"12": {"analysis": [10]}, "96": {"analysis": [60]}},
    }
    checked = [claim.check(figures) for claim in both]
    assert [c["ours"] for c in checked] == [30] * 4 + [6] + [0.5] * 4 + [2] * 4
    bounds = ["<= 8", "<= 0.5", "<= 0.5", "<= 0.5", "<= 0.25"]
    assert [c["target"] for c in checked][4:9] == bounds


def test_blocks_under_jit_are_the_same_network():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    jitted = [graph_timed.blocks_under_jit() for _ in range(2)]
    assert jitted[0].block is not jitted[1].block
    found = []
    for module in (graph_timed.RESNET50, jitted[0]):
        params = jax.eval_shape(module.init, jax.random.key(0), images)
        graph = jg.trace(module.apply, params, images)
        found.append({str(group): axes(group) for group in graph.groups.values()})
    assert len(found[0]) == 37
    assert found[0] == found[1]


def axes(group):
    return [(member.path, member.axis) for member in group.members]


def test_what_a_peer_needs_is_its_pruner_and_its_step():
    rows = {}
    facts = graph_bench.note(
        rows, "a", {"init": [1.0, 0.1], "step": [2.0, 0.2], "count": 3}
    )
    assert facts == {"count": 3}
    assert rows["a"]["whole"] == [300]
    assert rows["a"]["first whole"] == [3000]


def test_only_full_collections_within_the_block_are_recorded():
    before = list(gc.callbacks)
    gc.disable()  # no others than these
    try:
        with _garbage.full_collections() as seconds:
            gc.collect(1)
            assert seconds == []
            gc.collect()
            gc.collect()
        gc.collect()
    finally:
        gc.enable()
    assert len(seconds) == 2
    assert all(s > 0 for s in seconds)
    assert gc.callbacks == before


def test_the_collections_of_a_first_whole_have_a_row():
    times = {part: [1.0] for part in graph_bench.PARTS}
    rows = {"tiny": times | {"first whole": [400.0], "first collection": [90.0]}}
    figures = {
        "milliseconds": rows,
        "peer_milliseconds": {},
        "facts": {"tiny": {"groups": 3}},
    }
    table = graph_bench.table(figures, TINY)
    assert table.rows[-2][1].startswith("400")
    assert table.rows[-1] == ("of which full collections of garbage", "90.00")


def test_an_interpreter_without_the_peer_is_named():
    with pytest.raises(ExperimentError, match="no/python cannot run Torch-Pruning"):
        graph_bench.measured_peer("no/python", "ResNet-50", TINY)


# Smaller arrays.


NINE = list(shrink_bench.SHARES)
NARROW = list(_narrow.SMALLER)


def operations(fn, params, inputs):
    """How often each primitive occurs, in nested jaxprs too."""

    def walk(jaxpr):
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            inner = [x for x in jax.tree.leaves(eqn.params) if hasattr(x, "eqns")]
            yield from [] if inner else [eqn.primitive.name]
            yield from itertools.chain.from_iterable(map(walk, inner))

    return collections.Counter(walk(jax.make_jaxpr(fn)(params, *inputs)))


@pytest.mark.parametrize("name", NINE)
def test_half_goes_by_default_in_multiples_and_without_further_operations(name):
    fn, params, inputs, *_ = usual.TINY[name](jax.random.key(0))
    small = jg.compress(fn, params, *inputs)
    assert 0.2 < small.cost_after / small.cost_before <= 0.5
    for group, mask in small.keep.items():
        if small.graph.groups[group].kind != "heads":
            assert mask.size < 8 or mask.sum() % 8 == 0
    further = operations(small.fn, small.params, inputs)
    further.subtract(operations(fn, params, inputs))
    assert not +further, "operations that the full network does not need"


def test_the_shrunk_program_is_the_one_that_is_written_at_the_small_size():
    """XLA's operations and their shapes, after its optimizations."""

    def compiled(fn, params, words):
        text = jax.jit(fn).lower(params, words).compile().as_text()
        return collections.Counter(re.findall(r"= (\S+) ([a-z-]+)\(", text))

    full, half = (
        transformers.t5(jax.random.key(0), transformers.T5(1, 32, h, 8, 6 * h, 30), 5)
        for h in (4, 2)
    )
    graph = jg.trace(full.fn, full.params, *full.inputs)
    where = jg.whole_heads(graph)
    groups = [n for n, group in graph.groups.items() if where(group)]
    keep = {n: np.arange(graph.groups[n].size // 2) for n in groups}
    small_fn, small = jg.shrink(graph, full.params, keep=keep)
    assert jax.tree.map(np.shape, small) == jax.tree.map(np.shape, half.params)
    small_program = compiled(small_fn, small, *full.inputs)
    assert small_program == compiled(half.fn, half.params, *half.inputs)


def test_the_state_space_dual_is_the_recurrence():
    rng = np.random.default_rng(0)
    x, b, c = (rng.normal(size=(2, 12, *s)) for s in ((3, 4), (5,), (5,)))
    decay = -rng.uniform(0.1, 1, (2, 12, 3))
    state, expected = np.zeros((2, 3, 4, 5)), []
    for t in range(12):
        drive = x[:, t, :, :, None] * b[:, t, None, None]
        state = np.exp(decay[:, t])[..., None, None] * state + drive
        expected.append(np.einsum("nhds,ns->nhd", state, c[:, t]))
    arrays = (jnp.asarray(y, jnp.float32) for y in (x, decay, b, c))
    found = jax.jit(mamba2.state_space_dual, static_argnums=4)(*arrays, 4)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NARROW)
def test_at_most_half_of_the_multiply_adds_are_left(name):
    fn, params, inputs, *_ = _narrow.TINY[name](jax.random.key(0))
    shrink = _narrow.SMALLER[name]
    *_, whole, left = shrink(fn, params, *inputs, multiple_of=1)
    assert 0.4 < left / whole <= 0.5
    *_, whole, left = shrink(fn, params, *inputs)
    assert left / whole <= 0.5


def test_two_ways_to_convolve_give_one_network():
    fn, params, inputs, *_ = _narrow.TINY[_narrow.BY_PATCHES](jax.random.key(0))
    other, *_ = _narrow.TINY[_narrow.BY_LAX_CONV](jax.random.key(0))
    np.testing.assert_allclose(
        jax.jit(fn)(params, *inputs),
        jax.jit(other)(params, *inputs),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_study_of_smaller_arrays_leaves_its_ratios():
    names = ("T5-base encoder", _narrow.GPT2)
    settings = shrink_bench.Settings(
        seeds=(0,), steps=1, multiples=(1,), networks=names, tiny=True
    )
    outcome = shrink_bench.run(settings, None, Progress(disable=True))
    for one in outcome.figures["networks"].values():
        assert one["ratio"][0] == pytest.approx(
            one["full"][0] / one["small"][0], rel=0.1
        )
        (whole, left), *_ = one["million_multiply_adds"]
        assert one["share"][0] == pytest.approx(one["ratio"][0] * left / whole, rel=0.1)
        assert one["params"][0][1] < one["params"][0][0]
    assert [row[0] for row in outcome.tables["main"].rows] == list(names)
    assert [row[0] for row in outcome.tables["multiples"].rows] == list(names[:1])
    for table in outcome.tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    claims = {claim.claim.split(": ")[1]: claim for claim in shrink_bench.STUDY.claims}
    assert list(claims) == NINE + NARROW
    assert all(claims[name].check(outcome.figures)["ours"] > 0 for name in names)


def test_the_residual_network_without_its_module_is_the_same():
    module = residual.ResNet(residual.Bottleneck, (2, 1), (4, 8), pool=True)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(1), images)
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    variables = treedef.unflatten(
        [
            jax.random.uniform(k, s.shape) + 0.5
            for k, s in zip(keys, leaves, strict=True)
        ]
    )
    np.testing.assert_allclose(
        bottleneck.apply(variables, images, depths=(2, 1)),
        module.apply(variables, images),
        rtol=1e-5,
    )
