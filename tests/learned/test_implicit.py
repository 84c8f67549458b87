"""Hypergradients by the implicit function theorem against float64 with matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import ridge

from jprune import PruningError
from jprune.learned import bilevel, implicit

GAMMAS = [1e-2, 0.1, 1.0]
CG = implicit.conjugate_gradient(tol=1e-7)
_START = np.random.default_rng(1).normal(size=ridge.SIZE)


def _found(inverse, w, m, gamma, upper=ridge.jax_loss):
    return implicit.implicit_gradient_with(
        inverse, ridge.jax_loss, upper, ridge.f32(w), ridge.f32(m), gamma=gamma
    )


def _near(found, expected, rtol):
    assert np.linalg.norm(found - expected) < rtol * np.linalg.norm(expected)


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_the_formula_is_what_solving_anew_gives(gamma):
    """Of the oracle itself: in float64, at the solution."""
    w = ridge.solve(ridge.MASK, gamma)
    exact = ridge.exact_gradient(w, ridge.MASK, gamma)
    _near(ridge.solved_anew(ridge.MASK, gamma), exact, 1e-8)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_conjugate_gradients_at_the_solution(gamma):
    w = ridge.solve(ridge.MASK, gamma)
    exact = ridge.exact_gradient(w, ridge.MASK, gamma)
    _near(_found(CG, w, ridge.MASK, gamma), exact, 2e-3 if gamma < 0.1 else 1e-4)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_conjugate_gradients_away_from_it(gamma):
    """And for masks that are any real numbers."""
    for m in (ridge.MASK, np.abs(_START) / 2):
        exact = ridge.exact_gradient(_START, m, gamma)
        _near(_found(CG, _START, m, gamma), exact, 2e-3 if gamma < 0.1 else 1e-4)


def test_the_upper_loss_may_be_another():
    upper = lambda z: jnp.sum(jnp.square(z - 1))  # noqa: E731
    gamma, m = 0.1, ridge.MASK
    w = ridge.solve(m, gamma)
    exact = ridge.exact_gradient(w, m, gamma, lambda z: 2 * (z - 1))
    anew = ridge.solved_anew(m, gamma, lambda z: np.sum((z - 1) ** 2))
    _near(anew, exact, 1e-8)
    _near(_found(CG, w, m, gamma, upper), exact, 1e-4)


@pytest.mark.parametrize("terms", [1, 2, 7])
def test_the_series_term_by_term(terms):
    """eta sum over i < terms of (1 - eta H)^i b, by powers of a matrix."""
    gamma, rate, m = 0.5, 0.1, ridge.MASK
    w = _START
    hessian = m[:, None] * ridge.hessian(m * w) * m + gamma * np.eye(ridge.SIZE)
    g = ridge.gradient(m * w)
    step = np.eye(ridge.SIZE) - rate * hessian
    v = rate * sum(np.linalg.matrix_power(step, i) @ (m * g) for i in range(terms))
    cross = np.diag(g) + m[:, None] * ridge.hessian(m * w) * w
    found = _found(implicit.neumann(terms=terms, rate=rate), w, m, gamma)
    _near(found, w * g - cross.T @ v, 1e-5)


def test_the_series_converges():
    gamma, m = 1.0, ridge.MASK
    w = ridge.solve(m, gamma)
    exact = ridge.exact_gradient(w, m, gamma)
    _near(_found(implicit.neumann(terms=60, rate=0.4), w, m, gamma), exact, 1e-4)


def test_one_term_without_the_hessian_is_the_closed_form():
    """Of a loss whose Hessian is zero; the rate is 1 / gamma."""
    c, gamma = ridge.f32(_START), 0.25
    linear = lambda z: jnp.sum(c * z)  # noqa: E731
    w, m = c[::-1], ridge.f32(ridge.MASK)
    found = implicit.implicit_gradient_with(
        implicit.neumann(terms=1, rate=1 / gamma), linear, linear, w, m, gamma=gamma
    )
    closed = bilevel.implicit_gradient(w, m > 0, c, gamma=gamma)
    np.testing.assert_allclose(found, closed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"terms": 0, "rate": 0.1}, {"terms": 2, "rate": 0}])
def test_a_series_of_nothing_is_refused(wrong):
    with pytest.raises(PruningError, match="terms >= 1 and rate > 0"):
        implicit.neumann(**wrong)
