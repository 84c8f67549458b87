"""How far apart two trainings of one network end: distance, angle, barrier.

The measures of the lottery ticket papers. Of a ticket's *pruning stability*: `a` is
the ticket trained alone, `b` the trained dense network, `masks` the ticket's. Of
its *data-order stability*: `a` and `b` are the ticket trained on two orders of the
batches. All are pure functions, for `jit` and `vmap`.
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
    """Returns the Euclidean distance of two params, all leaves as one vector.

    ‖m (a - b)‖_2, summed in float32 (or wider, where the leaves are).

    Args:
      a: a tree of real arrays.
      b: a tree of the same structure and shapes.
      masks: only what these keep counts; a leaf with a scalar True counts as a
        whole. None for everything.

    Returns:
      A scalar, not negative.

    Raises:
      PruningError: if the masks do not fit.

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
    """Returns the angle between two params, all leaves as one vector, in radians.

    2 atan2(‖u - v‖, ‖u + v‖) with u = m a / ‖m a‖ and v = m b / ‖m b‖: accurate
    for small angles too, where the arccosine of a cosine in float32 sees nothing
    below 3e-4.

    Args:
      a: a tree of real arrays.
      b: a tree of the same structure and shapes.
      masks: as in `l2_distance`.

    Returns:
      A scalar in [0, pi]; NaN if one of both is all zeros. `jnp.degrees` of it is
      what papers plot.

    Raises:
      PruningError: if the masks do not fit.

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
    """Returns how far the loss rises on the straight line between two params.

    max over alpha of loss((1 - alpha) a + alpha b)
                      - [(1 - alpha) loss(a) + alpha loss(b)]

    This is the barrier of Entezari et al. The error barrier of Frankle et al.
    takes the mean of loss(a) and loss(b) from the maximum instead; where both
    losses are equal, as for two trainings of one ticket, so are the two barriers.

    Args:
      loss: `params -> scalar`, a loss or an error rate. With batch normalization
        it has to use statistics of the params that it is given, not stored ones.
      a: a tree of arrays. Leaves that are not floating point stay as they are.
      b: a tree of the same structure and shapes.
      points: how many alphas, evenly spaced, 0 and 1 among them; 2 or more.

    Returns:
      A scalar, not negative: 0 where the loss stays below the chord.

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
        raise base.PruningError(f"A line has 2 points or more; got {points}.")
    alphas = jnp.linspace(0.0, 1.0, points, dtype=jnp.float32)
    # One point after the other, so that memory does not grow with their number.
    losses = lax.map(lambda alpha: loss(_between(a, b, alpha)), alphas)
    # Above the chord, written so that it is exactly 0 at both ends.
    above = (1 - alphas) * (losses - losses[0]) + alphas * (losses - losses[-1])
    return jnp.max(above)


def _between(a: base.Params, b: base.Params, alpha: jax.Array) -> base.Params:
    """(1 - alpha) a + alpha b in the leaves' types; exact at both ends and if a = b."""

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
    """The masked params in float32, or as they are where they are wider."""
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
