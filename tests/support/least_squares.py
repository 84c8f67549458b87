"""Five batches of a linear regression: its loss in JAX, its gradient in float64."""

import jax
import jax.numpy as jnp
import numpy as np

_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(5, 4))
_X, _Y = _RNG.normal(size=(5, 8, 5)), _RNG.normal(size=(5, 8, 4))
PARAMS = {"kernel": jnp.asarray(W, jnp.float32)}
BATCHES = [
    (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    for x, y in zip(_X, _Y, strict=True)
]
KEY = jax.random.key(0)


def loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(x @ params["kernel"] - y))


def gradient(z, step):
    """The gradient of the loss of a batch, at the weights z."""
    return _X[step].T @ (2 * (_X[step] @ z - _Y[step]) / _Y[step].size)
