"""Genetic search: known optima, and projections against their conditions and SciPy."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies as st

import jprune as jp
from jprune import search

PROJECT = jax.jit(search.project_to_mean)


@hypothesis.given(
    wanted=st.lists(st.floats(-1, 2, width=32), min_size=5, max_size=5),
    mean=st.floats(0.05, 0.8),
)
@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
def test_a_projection_is_the_nearest_point(wanted, mean):
    given = np.asarray(wanted, np.float32)
    found = np.asarray(PROJECT(given, np.float32(mean), 0.0, np.float32(0.9)))
    assert found.min() >= 0
    assert found.max() <= 0.9
    assert found.mean() == pytest.approx(mean, abs=1e-5)
    # Optimal: what is not at a bound has moved by one shift, what is at the lower
    # bound would have moved by more, what is at the upper one by less.
    moved = found - given
    inner = (found > 1e-5) & (found < 0.9 - 1e-5)
    if inner.any():
        shift = moved[inner].mean()
        np.testing.assert_allclose(moved[inner], shift, atol=1e-5)
        assert (moved[found <= 1e-5] >= shift - 1e-5).all()
        assert (moved[found >= 0.9 - 1e-5] <= shift + 1e-5).all()


def test_a_projection_is_what_a_quadratic_program_gives():
    """With bounds of each entry, by SciPy."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        given = rng.normal(size=4)
        low, high = np.sort(rng.uniform(0, 1, (2, 4)), axis=0)
        mean = rng.uniform(low.mean(), high.mean())
        expected = scipy.optimize.minimize(
            lambda x, given=given: np.sum((x - given) ** 2),
            (low + high) / 2,
            jac=lambda x, given=given: 2 * (x - given),
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda x, m=mean: x.mean() - m},
            method="SLSQP",
        )
        found = search.project_to_mean(jnp.asarray(given), mean, low, high)
        np.testing.assert_allclose(found, expected.x, atol=1e-4)


def nearest_distribution(point):
    """The Euclidean projection onto the simplex, by sorting (Duchi et al., 2008)."""
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - excess[np.flatnonzero(falling > excess)[-1]], 0)


def test_the_search_finds_the_nearest_point_of_a_set():
    """The loss is a distance, so the minimum over the simplex is a projection."""
    point = np.array([0.9, 0.4, -0.2, 0.1])
    expected = nearest_distribution(point)
    run = jax.jit(
        lambda key: search.genetic(
            key,
            lambda x: jnp.sum((x - point.astype(np.float32)) ** 2),
            jnp.full(4, 0.25),
            project=lambda x: search.project_to_mean(x, 0.25, 0.0, 1.0),
            population=48,
            generations=60,
        )
    )
    for seed in range(3):
        found = run(jax.random.key(seed))
        np.testing.assert_allclose(found.best, expected, atol=0.02)
        assert float(found.best.sum()) == pytest.approx(1, abs=1e-5)
        distance = np.sum((np.asarray(found.best) - point) ** 2)
        assert float(found.loss) == pytest.approx(distance, rel=1e-4)
        assert float(found.path[-1]) == float(found.loss)
        assert (np.diff(found.path) <= 0).all()  # the best one is never lost


def test_what_is_rounded_is_searched_too():
    """A loss without gradients, whose least value is known from all combinations."""
    table = np.random.default_rng(0).random((6, 6, 6)).astype(np.float32)

    def loss(x):
        i = jnp.clip(jnp.round(x), 0, 5).astype(jnp.int32)
        return jnp.asarray(table)[i[0], i[1], i[2]]

    found = search.genetic(
        jax.random.key(1), loss, jnp.full(3, 2.5), population=64, step=1.5
    )
    rank = int((table < float(found.loss)).sum())
    assert rank <= 1  # of 216 combinations


def test_the_start_is_a_candidate():
    found = search.genetic(
        jax.random.key(0), lambda x: jnp.abs(x).max(), jnp.zeros(3), generations=1
    )
    np.testing.assert_array_equal(found.best, 0)


def test_too_few_candidates_are_refused():
    for size in ({"population": 7}, {"generations": 0}):
        with pytest.raises(jp.PruningError, match="at least 8 and at least 1"):
            search.genetic(jax.random.key(0), jnp.sum, jnp.zeros(2), **size)
