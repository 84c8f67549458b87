"""NSGA-II: fronts that are known by formula or from all designs, limits, refusals."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import search


def test_a_front_is_that_of_the_formula():
    """ZDT1 (Zitzler, Deb and Thiele, 2000): f2 = 1 - sqrt(f1) where g = 1."""

    def judge(design):
        x, y = design["x"], design["y"]
        g = 1 + 9 * (y - 0.1) / 0.9
        return jnp.stack([x, g * (1 - jnp.sqrt(x / g))]) + 1, 0.0

    bounds = {"x": (1e-3, 1), "y": (0.1, 1)}
    front = search.nsga2(judge, bounds, population=32, generations=40)
    first, second = np.asarray(front.objectives, np.float64).T - 1
    assert len(first) >= 24
    np.testing.assert_allclose(second, 1 - np.sqrt(first), atol=0.03)
    assert first.min() < 0.01
    assert first.max() > 0.9
    assert (np.diff(first) >= 0).all()


def test_a_front_of_few_designs_is_that_of_all_of_them():
    """Numbers are rounded, so all 64 designs can be compared by a plain loop."""
    table = np.random.default_rng(0).uniform(1, 2, (8, 8, 2)).astype(np.float32)

    def judge(design):
        i, j = (jnp.round(design[name]).astype(jnp.int32) - 1 for name in "ij")
        costs = jnp.asarray(table)[i, j]
        return costs, jnp.stack([costs[0] / 1.8])

    allowed = [
        table[i, j]
        for i, j in itertools.product(range(8), repeat=2)
        if table[i, j, 0] <= 1.8
    ]
    best = {
        tuple(a)
        for a in allowed
        if not any((b <= a).all() and (b < a).any() for b in allowed)
    }
    bounds = {"i": (1, 8), "j": (1, 8)}
    front = search.nsga2(judge, bounds, population=64, generations=60)
    assert {tuple(x) for x in front.objectives} == best


def test_limits_bend_the_front():
    """Less of both is better, but their product has to reach 1: a hyperbola."""

    def judge(design):
        a, b = design["a"], design["b"]
        return jnp.stack([a, b]), 1 / (a * b)

    bounds = {"a": (0.1, 10), "b": (0.1, 10)}
    front = search.nsga2(judge, bounds, population=32, generations=40)
    product = front.designs["a"] * front.designs["b"]
    assert (product >= 1).all()
    assert np.median(product) < 1.05
    assert product.max() < 1.2
    assert front.designs["a"].min() < 0.2
    assert front.designs["b"].min() < 0.2


def test_bad_arguments_are_refused():
    def judge(design):
        return jnp.stack([design["a"]]), 0.0

    with pytest.raises(jp.PruningError, match="fix every number"):
        search.nsga2(judge, {"a": (2, 2)})
    with pytest.raises(jp.PruningError, match="of a"):
        search.nsga2(judge, {"a": (3, 2)})
    for size in ({"population": 3}, {"generations": 0}):
        with pytest.raises(jp.PruningError, match="at least 4 designs and at least 1"):
            search.nsga2(judge, {"a": (1, 2)}, **size)


def test_a_search_ends_where_all_children_are_duplicates():
    """Bounds one rounding apart: there are two designs, so no child is a new one."""
    high = float(np.nextafter(np.float32(1), np.float32(2)))
    judge = lambda design: (jnp.stack([design["x"], 2 / design["x"]]), 0.0)  # noqa: E731
    front = search.nsga2(judge, {"x": (1.0, high)}, population=4, generations=3)
    assert 1.0 <= front.designs["x"].min() <= front.designs["x"].max() <= high


def test_designs_with_nan_rank_last_and_zeros_first():
    """Half of the designs have no cost; of the others, the smallest costs nothing."""

    def judge(design):
        x = jnp.maximum(design["x"] - 1, 0)
        spent = jnp.where(design["x"] > 3, jnp.nan, 0)
        return jnp.stack([x, jnp.where(design["x"] > 2, jnp.nan, 4 - x)]), spent

    front = search.nsga2(judge, {"x": (0.5, 4)}, population=16, generations=20)
    assert np.isfinite(front.objectives).all()
    assert front.objectives[0, 0] == 0
    assert len(front.objectives) >= 12
    assert front.designs["x"].max() <= 2
    assert front.designs["x"].max() > 1.8


def test_negative_objectives_are_refused():
    judge = lambda design: (jnp.stack([1 - design["x"]]), 0.0)  # noqa: E731
    with pytest.raises(jp.PruningError, match=r"not be negative; got -0\.\d"):
        search.nsga2(judge, {"x": (1.1, 1.9)}, population=4, generations=1)
