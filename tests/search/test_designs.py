"""Grids, draws and fronts of designs, against plain loops and their distributions."""

import re

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import jprune as jp
from jprune import search

FRONT = jax.jit(search.pareto)


def beats(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


@hypothesis.given(seed=st.integers(0, 2**31), points=st.integers(1, 40))
@hypothesis.settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # on a busy machine
)
def test_a_front_is_what_nothing_beats(seed, points):
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 6, (points, 3)).astype(np.float32)
    padded = np.full((40, 3), np.inf, np.float32)  # one shape for all: they never stay
    padded[:points] = costs
    found = FRONT(padded)
    expected = [not any(beats(b, a) for b in costs) for a in costs]
    assert found[:points].tolist() == expected
    assert not found[points:].any()


def test_a_grid_is_all_combinations_in_order():
    found = search.grid({"sram": [64, 1024], "dram_bandwidth": [8, 34, 100]})
    assert found["sram"].tolist() == [64] * 3 + [1024] * 3
    assert found["dram_bandwidth"].tolist() == 2 * [8, 34, 100]


def test_drawn_designs_are_log_uniform():
    drawn = search.random_designs(jax.random.key(0), 4000, {"a": (1, 100), "b": (2, 2)})
    assert drawn["a"].min() >= 1
    assert drawn["a"].max() <= 100
    assert float((drawn["a"] < 10).mean()) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(drawn["b"], 2)


def test_nonsense_is_refused():
    with pytest.raises(jp.PruningError, match="Bounds of sram have to be positive"):
        search.random_designs(jax.random.key(0), 3, {"sram": (0, 4)})
    for values in ([], 3):
        with pytest.raises(
            jp.PruningError, match=f"'rows' has {re.escape(str(values))}"
        ):
            search.grid({"columns": [1], "rows": values})
    with pytest.raises(jp.PruningError, match="at least one name"):
        search.grid({})
