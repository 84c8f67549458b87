"""The study of architectures: what it counts, and when it says that they agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from experiments.models import zoo
from experiments.studies.structural import architectures as study

pytestmark = pytest.mark.others_code

NAMES = ("MLP (plain)", "ResNet-18 in train mode (Linen)")


@pytest.fixture(scope="module")
def outcome():
    settings = study.STUDY.settings._replace(architectures=NAMES)
    return study.run(settings, None, Progress(disable=True))


def test_small_arrays_give_the_numbers_of_full_ones(outcome):
    found = outcome.figures["architectures"]
    assert tuple(found) == NAMES
    for name, one in found.items():
        architecture = zoo.ARCHITECTURES[name](jax.random.key(0))
        assert one["params"][0] == study.size(architecture.params) > one["params"][1]
        assert one["groups"] > 0
        assert one["unchanged_error"] == 0
        assert one["error"] < study.AGREE
        assert one["gradient_error"] < 1e-4
    claims = [claim.check(outcome.figures) for claim in study.STUDY.claims]
    assert claims[0]["ours"] == 2
    assert not claims[0]["holds"]  # of two architectures there are no thirty
    assert claims[2]["holds"]


def test_the_table_has_a_row_for_each(outcome):
    rows = outcome.tables["main"].rows
    assert [row[0] for row in rows] == list(NAMES)
    assert all(len(row) == len(outcome.tables["main"].columns) for row in rows)
    assert "→" in rows[0][2]


def test_flops_are_those_of_the_products():
    count = lambda n: study.compiled(  # noqa: E731
        lambda p, x: x @ p, jnp.ones((64, n)), jnp.ones((32, 64))
    )[1]
    assert count(16) == 2 * 32 * 64 * 16
    assert count(8) == count(16) / 2


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2.0, 4.5], [2.0, 4.0], 0.125),
        ([1, 2, 3], [1, 2, 4], 1.0),
        ([1, 2], [1, 2], 0.0),
    ],
)
def test_errors_are_relative_to_the_largest_number(ours, theirs, expected):
    one, other = {"a": jnp.asarray(ours)}, {"a": jnp.asarray(theirs)}
    assert study.error(one, other) == pytest.approx(expected)


def test_an_array_that_is_all_but_zero_is_measured_by_the_others():
    theirs = {"key bias": np.array([1e-9], np.float32), "kernel": np.array([1.0])}
    ours = {**theirs, "key bias": np.array([3e-9], np.float32)}
    assert study.error(ours, theirs) == pytest.approx(2e-7)


def test_results_of_other_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        study.error([jnp.ones(2)], [jnp.ones(3)])


def test_half_of_each_group_is_chosen_and_no_group_is_emptied():
    architecture = zoo.ARCHITECTURES[NAMES[0]](jax.random.key(0))
    graph = study.jg.trace(architecture.fn, architecture.params, *architecture.inputs)
    for share in (0.5, 0.0):
        keep = study.halves(graph, 0, share)
        for name, group in graph.groups.items():
            assert keep[name].sum() == max(1, int(share * group.size))
