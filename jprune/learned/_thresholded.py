"""Weights that are shrunk by trained thresholds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import links, selection
from jprune._core import base, precision
from jprune.learned import controllers, effective
from jprune.learned._reparameterization import Reparameterization, masks_by


def thresholded(
    sparsity: base.Sparsity, *, final: base.Sparsity | None = None
) -> Reparameterization:
    """Shrinks the weights of each leaf by a trained threshold, sigmoid(s).

        z = sign(w) relu(|w| - sigmoid(s)),   dL/ds = -sigmoid'(s) sum sign(z) g

    Each s follows its gradient. Then `jprune.learned.controllers.shift_thresholds` adds
    one constant to all of them, so that the fraction of all weights below their
    threshold is `sparsity`: the method learns how the leaves share it.

    Args:
      sparsity: fraction of all weights to remove, in [0, 1]; may be traced, or a
        schedule of the step.
      final: sparsity for `finish`; None for that of the step at which it is called.

    Returns:
      A `Reparameterization` for `learn_masks`, whose aux is a scalar s for each leaf,
      initially 0.

    Raises:
      PruningError: if a sparsity is a number outside [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - 2 * x[:, 3:]) ** 2)
      >>> method = jp.learned.learn_masks(
      ...     loss, jp.learned.thresholded(jp.cubic(0.75, begin=0, steps=20)),
      ...     weights=optax.adam(0.1), scores=optax.sgd(0.1))
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(1))
      >>> for _ in range(20):
      ...   state, info = method.step(state, x)
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, False, False, True]

    References:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
      Sparsity, 2020, arXiv:2002.03231, equations 3 and 4. In the paper weight decay
      of s drives the sparsity, which is then an outcome.
    """
    selection.check_sparsity(sparsity)
    last = sparsity if final is None else final
    best = links.keep_top(last, scope="global")

    def init(params: base.Params, key: jax.Array) -> Any:
        del key
        return jax.tree.map(lambda w: jnp.zeros((), jnp.float32), params)

    def settle(params: base.Params, s: Any, step: base.Scalar) -> Any:
        return _shifted(params, s, sparsity, step)

    def shrunk(params: base.Params, s: Any, m: Any = None, key: Any = None):
        del m, key
        return jax.tree.map(effective.soft_thresholded, params, s)

    def masks(params: base.Params, s: Any, before: Any, step: base.Scalar):
        del before, step
        return jax.tree.map(lambda z: z != 0, shrunk(params, s))

    def finish(params: base.Params, s: Any, m: Any, step: base.Scalar):
        del m
        s = _shifted(params, s, last, step)
        # Thresholds, which are below 1, cannot tell larger weights apart, nor equal
        # ones: by how far a weight passes can.
        passed = jax.tree.map(_distance, params, s)
        return shrunk(params, s), masks_by(best, passed, step)

    return Reparameterization(init, masks, shrunk, finish, settle=settle)


def _shifted(
    params: base.Params, s: Any, sparsity: base.Sparsity, step: base.Scalar
) -> Any:
    """The thresholds, shifted to the sparsity."""
    n = sum(np.size(w) for w in jax.tree.leaves(params))
    value = sparsity(step) if callable(sparsity) else sparsity
    return controllers.shift_thresholds(params, s, selection.kept_count(n, value))


def _distance(w: jax.Array, s: jax.Array) -> jax.Array:
    return jnp.abs(precision.wide(w)) - jax.nn.sigmoid(s)
