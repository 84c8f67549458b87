"""Measures of how far apart two trainings of one network end.

They are those of the lottery ticket papers. For *pruning stability*, `a` is the trained
ticket, `b` the trained dense network, and `masks` are the ticket's. For *data-order
stability*, `a` and `b` are the ticket trained on two orders of the batches. All are
pure functions, for `jit` and `vmap`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base


def l2_distance(
    a: base.Params, b: base.Params, masks: base.Masks | None = None
) -> jax.Array:
    """Returns the Euclidean distance of two params, with all leaves as one vector.

    ‖m (a - b)‖_2, computed in float32, or wider where the leaves are.

    Args:
      a: a tree of real arrays.
      b: a tree of the same structure and shapes.
      masks: masks m of the entries to compare; a scalar True compares a whole leaf.
        None compares everything.

    Returns:
      A non-negative scalar.

    Raises:
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = {"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([0.0, -3.0])}
      >>> float(l2_distance(a, b))
      5.0
      >>> float(l2_distance(a, b, {"w": jnp.array([True, False])}))
      3.0

    References:
      Frankle et al., Stabilizing the Lottery Ticket Hypothesis, 2019,
      arXiv:1903.01611.
    """
    a, b = _wide(a, masks), _wide(b, masks)
    return _norm(jax.tree.map(jnp.subtract, a, b))


def angle(a: base.Params, b: base.Params, masks: base.Masks | None = None) -> jax.Array:
    """Returns the angle between two params, with all leaves as one vector, in radians.

    2 atan2(‖u - v‖, ‖u + v‖) with u = m a / ‖m a‖ and v = m b / ‖m b‖. It is accurate
    for small angles too; the arccosine of a float32 cosine cannot resolve angles below
    3e-4.

    Args:
      a: a tree of real arrays.
      b: a tree of the same structure and shapes.
      masks: as in `l2_distance`.

    Returns:
      A scalar in [0, pi]; NaN if either is all zeros. Papers plot its `jnp.degrees`.

    Raises:
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}
      >>> float(jnp.degrees(angle(a, b)))
      90.0

    References:
      Frankle et al., Stabilizing the Lottery Ticket Hypothesis, 2019,
      arXiv:1903.01611. Kahan, How Futile are Mindless Assessments of
      Roundoff in Floating-Point Computation?, 2006 (the formula).
    """
    u, v = _unit(_wide(a, masks)), _unit(_wide(b, masks))
    apart = _norm(jax.tree.map(jnp.subtract, u, v))
    along = _norm(jax.tree.map(jnp.add, u, v))
    return 2 * jnp.arctan2(apart, along)


def interpolation_barrier(
    loss: Callable[[base.Params], jax.Array],
    a: base.Params,
    b: base.Params,
    *,
    points: int = 11,
) -> jax.Array:
    """Returns the height of the loss barrier on the line between two params.

    max over alpha of loss((1 - alpha) a + alpha b)
                      - [(1 - alpha) loss(a) + alpha loss(b)]

    This is the barrier of Entezari et al. The error barrier of Frankle et al. is the
    maximum minus the mean of loss(a) and loss(b). Both are equal where the two losses
    are, as for two trainings of one ticket.

    Args:
      loss: `params -> scalar`, a loss or an error rate. With batch normalization it
        must use statistics of the params that it is given, not stored ones.
      a: a tree of arrays. Leaves that are not floating point are not interpolated.
      b: a tree of the same structure and shapes.
      points: number of evenly spaced alphas from 0 to 1, at least 2.

    Returns:
      A non-negative scalar: 0 if the loss stays below the chord.

    Raises:
      PruningError: if there are fewer than 2 points.

    Example:
      >>> import jax.numpy as jnp
      >>> barrier = interpolation_barrier(lambda w: jnp.cos(w), 0.0, 2 * jnp.pi)
      >>> float(barrier), float(interpolation_barrier(jnp.cos, jnp.pi, 3 * jnp.pi))
      (0.0, 2.0)

    References:
      Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis,
      2020, arXiv:1912.05671. Entezari et al., The Role of Permutation Invariance in
      Linear Mode Connectivity of Neural Networks, 2022, arXiv:2110.06296.
    """
    if points < 2:
        raise base.PruningError(f"points must be at least 2; got {points}.")
    alphas = jnp.linspace(0.0, 1.0, points, dtype=jnp.float32)
    # One point at a time, so that memory does not grow with their number.
    losses = lax.map(lambda alpha: loss(_between(a, b, alpha)), alphas)
    # The height above the chord, written so that it is exactly 0 at both ends.
    above = (1 - alphas) * (losses - losses[0]) + alphas * (losses - losses[-1])
    return jnp.max(above)


def _between(a: base.Params, b: base.Params, alpha: jax.Array) -> base.Params:
    """(1 - alpha) a + alpha b in the leaves' dtype; exact at both ends and if a = b."""

    def leaf(path: str, x: Any, y: Any) -> jax.Array:
        x, y = jnp.asarray(x), jnp.asarray(y)
        if not tree.is_float(path, x):
            return x
        w, z = _wide_leaf(x), _wide_leaf(y)
        t = alpha.astype(w.dtype)
        return jnp.where(t < 0.5, w + t * (z - w), z - (1 - t) * (z - w)).astype(
            x.dtype
        )

    return tree.map_with_path(leaf, a, b)


def _wide(params: base.Params, masks: base.Masks | None) -> base.Params:
    """The masked params in float32, or in their own dtype where it is wider."""
    if masks is not None:
        params = masks_lib.apply(params, masks)
    return jax.tree.map(_wide_leaf, params)


def _wide_leaf(w: Any) -> jax.Array:
    w = jnp.asarray(w)
    wide = jnp.issubdtype(w.dtype, jnp.floating) and w.dtype.itemsize >= 4
    return w if wide else w.astype(jnp.float32)


def _norm(params: base.Params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params)))


def _unit(params: base.Params) -> base.Params:
    norm = _norm(params)
    return jax.tree.map(lambda w: w / norm.astype(w.dtype), params)
