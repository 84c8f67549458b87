"""Gates: differentiable masks in [0, 1] that multiply weights.

    straight_through      a hard mask with the derivative of a soft one
    threshold_gate        [s > threshold], with the derivative of a sigmoid
    sigmoid_gate          sigma(s / T)
    gumbel_gate           a sample of sigma((s + noise) / T)
    hard_concrete         a sample that is exactly 0 or 1 with positive probability
    hard_concrete_mean, hard_concrete_nonzero     without noise; probability of > 0
    HardConcrete          constants of this distribution
    expected_sparsity     the fraction of weights that gates remove in expectation
    polarization          how far gates are from 0 and 1
    weighted, is_gate     the gates of each leaf, with the number of weights per gate
    reverse_gradient      negates a derivative, for min-max problems

Gates act on arrays; map them over trees with `jax.tree.map`. To bring the expected
sparsity to a target see `jprune.learned.controllers`. Gates with a given sum over a
whole tree are `jprune.selection.soft_top_k`; to train gates, see
`jprune.learned.gated`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, precision


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
      temperature: positive, may be traced; as it goes to 0 the gate becomes [s > 0].

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


def polarization(gates: Any) -> jax.Array:
    """Returns the mean of p (1 - p) over the gates of a tree.

    It is 0 if and only if all gates are 0 or 1. As a penalty it drives soft gates to 0
    or 1.

    Args:
      gates: tree of arrays in [0, 1], or one array.

    Returns:
      A float32 scalar in [0, 1/4].

    Example:
      >>> import jax.numpy as jnp
      >>> float(polarization(jnp.array([0.0, 0.5, 1.0, 0.5])))
      0.125

    References:
      Related, for scaling factors that end at 0 or at one a > 0: Zhuang et al.,
      Neuron-level Structured Pruning using Polarization Regularizer, NeurIPS 2020.
    """
    wide = [p.astype(jnp.float32) for p in jax.tree.leaves(gates)]
    size = sum(math.prod(p.shape) for p in wide)
    total = sum((jnp.sum(p * (1 - p)) for p in wide), jnp.zeros((), jnp.float32))
    return total / float(max(1, size))


def expected_sparsity(params: base.Params, probabilities: Any) -> jax.Array:
    """Returns the fraction of weights that gates remove in expectation.

    1 - sum_l c_l sum p_l / sum_l n_l, where leaf l has n_l weights and each of its
    gates stands for c_l of them. With masks for probabilities it is
    `jprune.sparsity`.

    Args:
      params: any pytree of arrays.
      probabilities: the params' tree of arrays in [0, 1], each of which broadcasts to
        its leaf along whole axes (one gate per weight or per channel), or is a scalar
        for the whole leaf. Leaves with an `optax.MaskedNode` or a scalar boolean have
        no gates and do not count.

    Returns:
      A float32 scalar in [0, 1], differentiable; 0 if there are no gates.

    Raises:
      PruningError: if gates do not fit their leaf; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
      >>> gates = {"w": jnp.array([[1.0, 0.5]]), "b": jnp.array(True)}
      >>> float(expected_sparsity(params, gates))
      0.25
    """
    found = weighted(params, probabilities)
    size = sum(c * math.prod(np.shape(p)) for c, p in found)
    if size == 0:
        return jnp.zeros((), jnp.float32)
    kept = (c / size * jnp.sum(p, dtype=jnp.float32) for c, p in found)
    return 1 - sum(kept, jnp.zeros((), jnp.float32))


def weighted(params: base.Params, gates: Any) -> list[tuple[int, Any]]:
    """Returns the gates of each leaf, with the number of weights per gate.

    Args:
      params: any pytree of arrays.
      gates: tree of gates, as `probabilities` in `expected_sparsity`.

    Returns:
      A list of `(weights per gate, gates)`, for each leaf that has gates.

    Raises:
      PruningError: if gates do not fit their leaf; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> params, gates = {"w": jnp.ones((3, 2))}, {"w": jnp.array([[1.0, 0.5]])}
      >>> [(n, p.shape) for n, p in weighted(params, gates)]  # a gate per column
      [(3, (1, 2))]
    """
    found: list[tuple[int, Any]] = []

    def leaf(path: str, w: Any, gates: Any) -> None:
        for p in filter(is_gate, jax.tree.leaves(gates)):  # none in a MaskedNode
            shape, fits = np.shape(w), np.shape(p)
            if fits != () and not (
                len(fits) == len(shape)
                and all(a in (1, b) for a, b in zip(fits, shape, strict=True))
            ):
                raise base.PruningError(
                    f"The gates of {path!r} have shape {fits}, which does not "
                    f"broadcast to the parameter's shape {shape}: each axis needs "
                    "size 1 or the full size."
                )
            found.append((math.prod(shape) // max(1, math.prod(fits)), p))

    tree.map_with_path(leaf, params, gates)
    return found


def is_gate(p: Any) -> bool:
    """Returns True if a leaf holds gates, not the scalar mask of an unpruned leaf."""
    return np.shape(p) != () or jnp.result_type(p).kind != "b"


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


def _logistic(key: jax.Array, like: jax.Array) -> jax.Array:
    """Logistic noise in float32, from uniform numbers in the open interval (0, 1)."""
    bits = jax.random.bits(key, jnp.shape(like), jnp.uint32) >> 9
    u = (bits.astype(jnp.float32) + 0.5) * np.float32(2.0**-23)
    return jnp.log(u) - jnp.log1p(-u)


def _stretched(logits: jax.Array, constants: HardConcrete) -> jax.Array:
    width = constants.zeta - constants.gamma
    return jnp.clip(jax.nn.sigmoid(logits) * width + constants.gamma, 0, 1)
