"""A lower level that is solved exactly: logistic regression in float64.

    L(z) = mean log(1 + exp(-y x.z)),   w*(m) = argmin L(m w) + gamma/2 |w|^2

with the gradient of F(m) = L(m w*(m)) by the implicit function theorem, Hessian and
all, and by solving anew for masks that differ a little.
"""

import jax.numpy as jnp
import numpy as np
from sklearn import datasets

_DATA = datasets.load_breast_cancer()
_X = (_DATA.data - _DATA.data.mean(0)) / _DATA.data.std(0)
_Y = 2.0 * _DATA.target - 1
SIZE = _X.shape[1]
MASK = np.random.default_rng(0).permutation(np.arange(SIZE) % 2).astype(np.float64)


def jax_loss(z):
    margin = jnp.asarray(_Y, jnp.float32) * (jnp.asarray(_X, jnp.float32) @ z)
    return jnp.mean(jnp.logaddexp(0, -margin))


def loss(z):
    return np.logaddexp(0, -_Y * (_X @ z)).mean()


def gradient(z):
    return -(_X.T @ (_Y / (1 + np.exp(_Y * (_X @ z))))) / len(_Y)


def hessian(z):
    p = 1 / (1 + np.exp(-_X @ z))
    return (_X.T * (p * (1 - p))) @ _X / len(_Y)


def solve(m, gamma):
    w = np.zeros(SIZE)
    for _ in range(50):
        slope = m * gradient(m * w) + gamma * w
        w -= np.linalg.solve(_lower_hessian(w, m, gamma), slope)
    assert np.max(np.abs(m * gradient(m * w) + gamma * w)) < 1e-12
    return w


def _lower_hessian(w, m, gamma):
    return m[:, None] * hessian(m * w) * m + gamma * np.eye(SIZE)


def exact_gradient(w, m, gamma, upper_gradient=gradient):
    """dF/dm = w g - C^T H^-1 (m g), with matrices."""
    g = upper_gradient(m * w)
    cross = np.diag(gradient(m * w)) + m[:, None] * hessian(m * w) * w
    return w * g - cross.T @ np.linalg.solve(_lower_hessian(w, m, gamma), m * g)


def solved_anew(m, gamma, upper_loss=loss):
    """dF/dm by differences: knows of no formula."""
    found = np.zeros(SIZE)
    for i in range(SIZE):
        step = 1e-5 * np.eye(SIZE)[i]
        ends = [m + step, m - step]
        up, down = (upper_loss(end * solve(end, gamma)) for end in ends)
        found[i] = (up - down) / 2e-5
    return found


def f32(x):
    return jnp.asarray(x, jnp.float32)
