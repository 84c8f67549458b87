"""The picture of a Pareto front, by the data in it."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jprune as jp
from jprune import search


def beaten(point, points):
    return any((p <= point).all() and (p < point).any() for p in points)


def test_the_front_is_that_of_a_brute_force(tmp_path):
    rng = np.random.default_rng(0)
    costs = 10.0 ** rng.integers(0, 400, (60, 2)) ** 0.2
    costs[3] = np.nan, 0.1
    names = [f"design {i}" for i in range(60)]
    path = tmp_path / "front.png"
    axes = search.draw_pareto(costs, ["time (s)", "area"], path, labels=names)
    usable = costs[np.isfinite(costs).all(1)]
    wanted = np.unique([p for p in usable if not beaten(p, usable)], axis=0)
    drawn = axes.get_lines()[0].get_xydata()
    np.testing.assert_array_equal(np.unique(drawn, axis=0), wanted)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(drawn))
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), usable)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (s)", "area")
    for text in axes.texts:
        np.testing.assert_array_equal(text.xy, costs[names.index(text.get_text())])
        assert list(text.xy) in wanted.tolist()
    assert 0 < len(axes.texts) <= len(wanted)
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_axes_are_logarithmic_where_costs_spread():
    costs = [[1.0, 5.0], [1000.0, 4.0], [30.0, 4.5]]
    axes = search.draw_pareto(costs, ["a", "b"], Figure().subplots())
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    axes = search.draw_pareto([[0.0, 1.0], [9e9, 0.0]], ["a", "b"], Figure().subplots())
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_costs_that_are_no_plane_are_refused():
    axes = Figure().subplots()
    for costs, titles, labels, message in (
        (np.ones((3, 3)), ["a", "b"], None, r"\(designs, 2\).*got shape \(3, 3\)"),
        (np.ones((3, 2)), ["a"], None, "two titles"),
        (np.ones((3, 2)), ["a", "b"], ["x"], "1 labels for 3 designs"),
        (np.full((3, 2), np.inf), ["a", "b"], None, "None of 3 designs"),
    ):
        with pytest.raises(jp.PruningError, match=message):
            search.draw_pareto(costs, titles, axes, labels=labels)
