"""Sparsities of blocks under a mean: a search with known optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jprune as jp
from jprune.attention import allot

WEIGHTS = np.array([0.3, 1.0, 2.0, 5.0, 9.0, 0.6], np.float32)


def damage(sparsities):
    """A sum of squares, so that its optimum is water-filling."""
    return jnp.sum(WEIGHTS * sparsities**2)


def optimum(mean, least, most):
    """By SciPy, with the bounds and the mean as constraints."""
    found = scipy.optimize.minimize(
        lambda s: float(np.sum(WEIGHTS * s**2)),
        np.full(6, mean),
        jac=lambda s: 2 * WEIGHTS * s,
        bounds=list(zip(least, most, strict=True)),
        constraints={"type": "eq", "fun": lambda s: s.mean() - mean},
        method="SLSQP",
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("mean", [0.2, 0.45])
def test_the_search_finds_the_optimum_of_a_known_damage(mean):
    least, most = (
        np.zeros(6),
        np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.0]),
    )  # the last stays
    search = jax.jit(
        lambda key: allot.search(
            key, damage, 6, mean, least=least, most=most, population=48, generations=60
        )
    )
    start = jp.search.project_to_mean(jnp.full(6, mean), mean, least, most)
    uniform = float(damage(start))
    best = optimum(mean, least, most)
    for seed in range(3):
        found = search(jax.random.key(seed))
        assert float(found.sparsities[-1]) == 0
        assert float(found.sparsities.mean()) == pytest.approx(mean, abs=1e-5)
        assert float(damage(found.sparsities)) == pytest.approx(float(found.loss))
        assert best - 1e-5 <= float(found.loss) <= best + 0.02 * (uniform - best)
        assert (np.diff(found.path) <= 0).all()  # the best one is never lost


def test_a_loss_that_is_nan_is_the_worst():
    def half_bad(sparsities):
        return jnp.where(sparsities[0] > 0.3, jnp.nan, damage(sparsities))

    found = allot.search(jax.random.key(0), half_bad, 6, 0.3)
    assert float(found.sparsities[0]) <= 0.3
    assert np.isfinite(float(found.loss))


def test_what_cannot_be_met_is_refused():
    with pytest.raises(jp.PruningError, match=r"mean sparsity of 0\.95"):
        allot.search(jax.random.key(0), damage, 6, 0.95)
    with pytest.raises(jp.PruningError, match="at least 8"):
        allot.search(jax.random.key(0), damage, 6, 0.3, population=4)
