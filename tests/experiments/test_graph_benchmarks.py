"""The benchmarks of the graph at tiny size, and what their claims say."""

import gc

import jax
import numpy as np
import pytest
from rich.progress import Progress

from experiments import ExperimentError
from experiments.benchmarks.graph import _garbage
from experiments.benchmarks.graph import _timed as graph_timed
from experiments.benchmarks.graph import graph as graph_bench
from experiments.benchmarks.graph import shrink as shrink_bench
from experiments.models import bottleneck
from experiments.models.zoo import residual
from jprune import graph as jg

pytestmark = pytest.mark.others_code

TINY = graph_bench.Settings(
    seeds=(0,), steps=1, networks=("tiny",), side=32, growing="tiny", depths=(1, 2)
)
SMALL = shrink_bench.Settings(
    seeds=(0,), steps=1, batch=2, depth=8, length=6, width=64, heads=4
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
    # Of three networks and of their growth; against the peer, each at two times.
    assert len(alone) == 4
    assert [c.claim for c in both[:4]] == [c.claim for c in alone]
    assert len(both) == 10
    names = ("ResNet-50", "ResNet-50, no module", "ViT-B")
    times = {"whole": [100.0], "first whole": [400.0], "analysis": [30.0]}
    figures = {
        "milliseconds": dict.fromkeys(names, times),
        "peer_milliseconds": {
            name: {"whole": [200.0], "first whole": [200.0]} for name in names
        },
        "growth_milliseconds": {"12": {"analysis": [10]}, "96": {"analysis": [60]}},
    }
    checked = [claim.check(figures) for claim in both]
    assert [c["ours"] for c in checked] == [30] * 3 + [6] + [0.5] * 3 + [2] * 3
    bounds = ["<= 8", "<= 1", "<= 1", "<= 0.25"]
    assert [c["target"] for c in checked][3:7] == bounds


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


@pytest.mark.parametrize("name", shrink_bench.NETWORKS)
def test_at_most_half_of_the_multiply_adds_are_left(name):
    fn, params, inputs = shrink_bench.NETWORKS[name].build(SMALL, 0)
    graph = jg.trace(fn, params, *inputs)
    whole = jg.multiply_adds(graph)
    keep = shrink_bench.narrowed(graph, params, 0.5, 1, 0)
    assert 0.4 < jg.multiply_adds(graph, jg.sizes(graph, keep)) / whole <= 0.5
    rounded = shrink_bench.narrowed(graph, params, 0.5, 8, 0)
    assert all(mask.sum() % 8 == 0 for mask in rounded.values() if mask.size >= 8)


def test_two_ways_to_convolve_give_one_network():
    fn, params, inputs = shrink_bench.resnet(SMALL, 0)
    other, *_ = shrink_bench.resnet_by_lax_conv(SMALL, 0)
    np.testing.assert_allclose(
        jax.jit(fn)(params, *inputs),
        jax.jit(other)(params, *inputs),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_study_of_smaller_arrays_leaves_its_ratios():
    outcome = shrink_bench.run(SMALL, None, Progress(disable=True))
    for one in outcome.figures["networks"].values():
        assert one["ratio"][0] == pytest.approx(
            one["full"][0] / one["small"][0], rel=0.1
        )
        assert one["params"][1] < one["params"][0]
    rows = outcome.tables["main"].rows
    assert [row[0] for row in rows] == list(shrink_bench.NETWORKS)


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
