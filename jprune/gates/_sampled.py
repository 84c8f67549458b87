"""Gates that are sampled: from binary concrete and hard concrete distributions."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import base, precision
from jprune.gates._deterministic import sigmoid_gate, straight_through


def gumbel_gate(
    logits: jax.Array, key: jax.Array, temperature: base.Scalar, hard: bool = False
) -> jax.Array:
    """Samples from the binary concrete distribution, sigma((s + L) / T).

    L = log u - log(1 - u), u uniform in (0, 1): the difference of two Gumbel
    variables. A sample is above 1/2 with probability sigma(s), at any temperature.

    Args:
      logits: floating-point array of any shape.
      key: a `jax.random.key`.
      temperature: positive, may be traced.
      hard: static; return [sample > 1/2] with the derivative of the sample.

    Returns:
      Gates in [0, 1], with the shape and dtype of the logits.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> gates = gumbel_gate(jnp.zeros(1000), jax.random.key(0), 0.5, hard=True)
      >>> bool(jnp.all((gates == 0) | (gates == 1))), 450 < float(gates.sum()) < 550
      (True, True)

    References:
      Jang et al., Categorical Reparameterization with Gumbel-Softmax, 2017,
      arXiv:1611.01144. Maddison et al., The Concrete Distribution: A Continuous
      Relaxation of Discrete Random Variables, 2017, arXiv:1611.00712.
    """
    noisy = logits + _logistic(key, logits).astype(logits.dtype)
    soft = sigmoid_gate(noisy, temperature)
    return straight_through(noisy > 0, soft) if hard else soft


class HardConcrete(NamedTuple):
    """Constants of the hard concrete distribution, as Python numbers.

    Attributes:
      beta: temperature of the concrete distribution, in (0, 1).
      gamma: lower end of the stretched distribution, negative.
      zeta: upper end of the stretched distribution, above 1.
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1


_CONSTANTS = HardConcrete()


def hard_concrete(
    logits: jax.Array, key: jax.Array, constants: HardConcrete = _CONSTANTS
) -> jax.Array:
    """Samples gates that are exactly 0 or exactly 1 with positive probability.

    s = sigma((log u - log(1 - u) + log alpha) / beta), u uniform in (0, 1)
    z = min(1, max(0, s (zeta - gamma) + gamma))

    Args:
      logits: log alpha, floating-point array of any shape.
      key: a `jax.random.key`, a new one in each step.
      constants: constants of the distribution.

    Returns:
      Samples in [0, 1], with the shape and dtype of the logits. Their derivative is
      that of the formula, so it is 0 where z is 0 or 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits = jnp.array([-20.0, 20.0])
      >>> hard_concrete(logits, jax.random.key(0)).tolist()
      [0.0, 1.0]

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization,
      2018, arXiv:1712.01312, equations 10 and 11.
    """
    noisy = precision.wide(logits) + _logistic(key, logits)
    return _stretched(noisy / constants.beta, constants).astype(logits.dtype)


def hard_concrete_mean(
    logits: jax.Array, constants: HardConcrete = _CONSTANTS
) -> jax.Array:
    """Returns hard concrete gates without noise, for use after training.

    z = min(1, max(0, sigma(log alpha) (zeta - gamma) + gamma))

    The paper's estimate of the mean of the distribution, which is not equal to the
    mean: beta does not appear.

    Args:
      logits: log alpha, floating-point array of any shape.
      constants: constants of the distribution.

    Returns:
      Gates in [0, 1], with the shape and dtype of the logits.

    Example:
      >>> import jax.numpy as jnp
      >>> hard_concrete_mean(jnp.array([-9.0, 0.0, 9.0])).tolist()
      [0.0, 0.5, 1.0]

    References:
      Louizos et al., 2018, arXiv:1712.01312, equation 13.
    """
    return _stretched(precision.wide(logits), constants).astype(logits.dtype)


def hard_concrete_nonzero(
    logits: jax.Array, constants: HardConcrete = _CONSTANTS
) -> jax.Array:
    """Returns the probability that a hard concrete gate is not zero.

    P(z > 0) = sigma(log alpha - beta log(-gamma / zeta))

    The sum of these probabilities is the expected number of weights, the L0 penalty.

    Args:
      logits: log alpha, floating-point array of any shape.
      constants: constants of the distribution.

    Returns:
      Probabilities, with the shape and dtype of the logits.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(hard_concrete_nonzero(jnp.array(0.0))), 4)
      0.8318

    References:
      Louizos et al., 2018, arXiv:1712.01312, equation 12.
    """
    shift = constants.beta * math.log(-constants.gamma / constants.zeta)
    return jax.nn.sigmoid(precision.wide(logits) - shift).astype(logits.dtype)


def _logistic(key: jax.Array, like: jax.Array) -> jax.Array:
    """Logistic noise in float32, from uniform numbers in the open interval (0, 1)."""
    bits = jax.random.bits(key, jnp.shape(like), jnp.uint32) >> 9
    u = (bits.astype(jnp.float32) + 0.5) * np.float32(2.0**-23)
    return jnp.log(u) - jnp.log1p(-u)


def _stretched(logits: jax.Array, constants: HardConcrete) -> jax.Array:
    width = constants.zeta - constants.gamma
    return jnp.clip(jax.nn.sigmoid(logits) * width + constants.gamma, 0, 1)
