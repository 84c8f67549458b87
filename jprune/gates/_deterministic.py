"""Gates without noise, and operations with derivatives of their own."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core import base


@jax.custom_jvp
def straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
    """Returns `hard` with the derivative of `soft`.

    Forward h, tangent ds. Exact in every dtype, where the common s + stop(h - s) is
    wrong in bfloat16 from |s| of about 256 on, and twice differentiable in any mode,
    which a custom vjp is not. With masks from `jprune.selection` it is the top-k gate
    of methods that learn scores: `jax.tree.map(straight_through, masks, scores)`.

    Args:
      hard: value of any shape, such as a mask. Its derivative is not used.
      soft: floating-point array of the same shape, whose derivative is used.

    Returns:
      `hard` in the dtype of `soft`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> scores = jnp.array([0.2, -0.3])
      >>> gate = lambda s: jnp.sum(3 * straight_through(s > 0, s))
      >>> float(gate(scores)), jax.grad(gate)(scores).tolist()
      (3.0, [3.0, 3.0])

    References:
      Bengio et al., Estimating or Propagating Gradients Through Stochastic
      Neurons for Conditional Computation, 2013, arXiv:1308.3432.
    """
    return jnp.asarray(hard).astype(jnp.result_type(soft))


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    hard, soft = primals
    return straight_through(hard, soft), tangents[1]


def sigmoid_gate(logits: jax.Array, temperature: base.Scalar = 1.0) -> jax.Array:
    """Returns the logistic function of the logits, sigma(s / T).

    Args:
      logits: floating-point array of any shape.
      temperature: positive number, may be traced. The lower it is, the closer the gate
        is to 1 where the logit is positive, and to 0 where it is negative.

    Returns:
      Gates in [0, 1], with the shape and dtype of the logits.

    Example:
      >>> import jax.numpy as jnp
      >>> sigmoid_gate(jnp.array([-1.0, 0.0, 1.0]), 0.01).tolist()
      [0.0, 0.5, 1.0]
    """
    return jax.nn.sigmoid(logits / jnp.asarray(temperature, logits.dtype))


def threshold_gate(
    scores: jax.Array, threshold: base.Scalar, temperature: base.Scalar = 1.0
) -> jax.Array:
    """Returns [s > threshold] with the derivative of sigma((s - threshold) / T).

    Args:
      scores: floating-point array of any shape.
      threshold: scalar in the unit of the scores, may be traced; differentiable.
      temperature: positive, may be traced; width of the sigmoid, in the unit of the
        scores.

    Returns:
      Zeros and ones, with the shape and dtype of the scores.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> threshold_gate(jnp.array([-1.0, 1.0]), 0.5).tolist()
      [0.0, 1.0]
      >>> float(jax.grad(threshold_gate)(jnp.array(0.5), 0.5))
      0.25

    References:
      Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
      arXiv:2005.07683: soft movement pruning keeps weights whose score, or its
      sigmoid, is above a threshold, with the derivative of the identity. Here it is
      that of the sigmoid, so that scores far from the threshold stay.
    """
    distance = scores - jnp.asarray(threshold, scores.dtype)
    return straight_through(distance > 0, sigmoid_gate(distance, temperature))


@jax.custom_jvp
def reverse_gradient(x: Any) -> Any:
    """Returns the argument with its derivative negated.

    Forward x, tangent -dx. Minimizing a function of the result maximizes it over x, so
    one optimizer solves a min-max problem.

    Args:
      x: tree of floating-point arrays.

    Returns:
      The tree `x`.

    Example:
      >>> import jax
      >>> float(jax.grad(lambda x: 3 * reverse_gradient(x))(2.0))
      -3.0

    References:
      Ganin and Lempitsky, Unsupervised Domain Adaptation by Backpropagation, 2015,
      arXiv:1409.7495.
    """
    return x


@reverse_gradient.defjvp
def _reverse_gradient_jvp(primals, tangents):
    return reverse_gradient(primals[0]), jax.tree.map(jnp.negative, tangents[0])
