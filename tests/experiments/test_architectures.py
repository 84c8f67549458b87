"""The study of architectures: what it counts, and when it says that they agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from experiments.models import zoo
from experiments.models.zoo.base import Architecture
from experiments.studies.structural import _exports
from experiments.studies.structural import architectures as study

pytestmark = pytest.mark.others_code

NAMES = (
    "MLP (plain)",
    "Gated attention (plain)",
    "Streamed recurrent cell (plain)",
)


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
        assert 0 < one["error"] < 1e-5
        assert 0 < one["gradient_error"] < 1e-4
        assert one["export_error"] < 1e-6
        assert ("state_error" in one) == architecture.stateful
    assert found[NAMES[2]]["state_error"] < 1e-5
    claims = [claim.check(outcome.figures) for claim in study.STUDY.claims]
    assert claims[0]["ours"] == 3
    assert not claims[0]["holds"]  # of three architectures there are no sixty
    assert all(claim["holds"] for claim in claims[1:])


def test_the_table_has_a_row_for_each(outcome):
    rows = outcome.tables["main"].rows
    assert [row[0] for row in rows] == list(NAMES)
    assert all(len(row) == len(outcome.tables["main"].columns) for row in rows)
    assert "→" in rows[0][2]
    assert [row[8:10] for row in rows] == [("yes", "b"), ("yes", "b, t"), ("yes", "t")]
    assert [row[6] != "" for row in rows] == [False, False, True]


def test_the_prunable_share_is_that_of_weights_with_an_entry():
    """By hand: of a (3, 4) kernel, (4, 2) kernel and (2,) bias, the bias stays."""

    def fn(p, x):
        return jnp.tanh(x @ p["in"]) @ p["out"] + p["bias"]

    shapes = {"in": (3, 4), "out": (4, 2), "bias": (2,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    graph = study.jg.trace(fn, params, jnp.ones((5, 3)))
    assert study.prunable(graph) == pytest.approx(20 / 22)


def test_the_oracle_is_in_double_precision_and_cut_to_what_is_kept():
    """By hand: one of two units is left, and the gradient is that of its weights."""

    def fn(p, x):
        return jnp.sin(x @ p["in"]).sum(-1), {"in": p["in"] * x.mean()}

    kernel, x = np.array([[0.1, 0.7]], np.float32), np.array([[0.3]], np.float32)
    a = Architecture(fn, {"in": jnp.asarray(kernel)}, (jnp.asarray(x),), stateful=True)
    graph = study.traced(a)
    keep = {"in[1]": np.array([False, True])}
    plan = study.jg.make_plan(graph, keep)
    (out, state), slopes = study.oracle(lambda: a, keep, plan, True)
    w, x = np.float64(kernel[0, 1]), np.float64(x[0, 0])
    np.testing.assert_allclose(out, [np.sin(w * x)], 1e-14)
    np.testing.assert_allclose(state["in"], [[w * x]], 1e-14)
    slope = 1.3 * np.cos(1.3 * np.sin(w * x) + 0.1) * np.cos(w * x) * x
    np.testing.assert_allclose(slopes["in"], [[slope]], 1e-14)


def test_choices_of_symbolic_dimensions():
    """The static sizes, then all but a length, then all."""
    x, words = jnp.ones((3, 7, 5)), jnp.ones((2, 7))
    a = Architecture(None, {}, (x, words), dimensions=("b, t, _", "c, t"))
    each = _exports.choices(a)
    assert [names for names, _ in each] == ["", "b, c", "b, t, c"]
    assert [axes for _, axes in each[1:]] == [("b, _, _", "c, _"), ("b, t, _", "c, t")]
    shapes = [_exports.abstract(a.inputs, axes) for _, axes in each]
    assert [str(s.shape) for s in shapes[0]] == ["(3, 7, 5)", "(2, 7)"]
    assert [str(s.shape) for s in shapes[2]] == ["(b, t, 5)", "(c, t)"]
    assert [n for n, _ in _exports.choices(a._replace(dimensions=()))] == ["", "b"]


@pytest.mark.parametrize(
    ("dense", "expected"),
    [(lambda p, x: p[:, 0] * x, "no"), (lambda p, x: x[: int(x.sum())], "dense no")],
)
def test_what_does_not_export_is_said_to_be_ours_or_the_dense_function_s(
    dense, expected
):
    def small(p, x):
        raise ValueError("not today\nnor tomorrow")

    p = jnp.ones((3, 2))
    found = _exports.try_exports(Architecture(dense, p, (jnp.ones(3),)), small, p)
    assert found.found[""] == expected
    assert found.messages[""] == "ValueError: not today"
    assert found.results is None


def test_claims_count_what_only_the_dense_function_exports():
    def one(**export):
        return {"export": {"": "yes", **export}}

    figures = {"architectures": {"a": one(b="no"), "b": one(b="dense no"), "c": one()}}
    assert study._lost(False, figures) == (1, None)
    assert study._lost(True, figures) == (0, None)
    assert study.symbolic({"": "yes", "b": "yes", "b, t": "no"}) == "b; b, t: no"
    assert study.symbolic({"": "yes", "b": "yes", "b, t": "yes"}) == "b, t"


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
        ([1.0, np.nan], [1.0, 2.0], np.inf),
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
