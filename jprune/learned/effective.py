"""Effective weights, and the gradient at them from which all others follow.

A network computes with effective weights z = R(w, ...): weights under a mask, or
another reparameterization. From g = dL/dz, computed once per batch, follow

    m g                      the gradient of the kept weights (masked training)
    g                        the dense, straight-through gradient; RigL's growth score
    w g                      the gradient of the mask; |w g| at a mask of ones is SNIP,
                             its sum over steps is movement
    (w - m g / gamma) g      BiP's hypergradient, see `jprune.learned.bilevel`

and, by pulling g back through R, the gradients of scores, thresholds and gates. No
method runs the network twice on the same batch.

    gradient_at_effective                           L, g and the pullback through R
    masked_gradient, mask_gradient                  m g and w g
    masked, soft_masked                             z = w where m;  z = p w
    score_masked, size_masked, sign_masked          with a gradient for scores behind m
    soft_thresholded                                z = sign(w) relu(|w| - sigmoid(s))

The last three rows are functions of one leaf: use `jax.tree.map`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import masks as masks_lib
from jprune._core import base, precision
from jprune._core.products import mask_gradient as mask_gradient
from jprune.gates import straight_through


class Effective(NamedTuple):
    """Result of `gradient_at_effective`.

    Attributes:
      value: the loss.
      aux: the loss's auxiliary output, or None.
      weights: the effective weights z, in the params' tree.
      grads: g = dL/dz, in the params' tree.
      pullback: `g -> (gradients of R's inputs, ...)`.
    """

    value: jax.Array
    aux: Any
    weights: base.Params
    grads: base.Params
    pullback: Callable[[Any], tuple[Any, ...]]


def gradient_at_effective(
    loss: Callable[..., Any],
    reparameterize: Callable[..., base.Params],
    inputs: tuple[Any, ...],
    *args: Any,
    has_aux: bool = False,
) -> Effective:
    """Returns the loss, its gradient at z = R(*inputs), and the pullback through R.

    Args:
      loss: `(params, *args) -> scalar`, or `-> (scalar, aux)` with `has_aux`.
      reparameterize: R, from the inputs to the tree that the loss takes.
      inputs: arguments of R, such as params, masks and scores; pytrees.
      *args: further arguments of the loss, such as a batch.
      has_aux: whether the loss returns a pair.

    Returns:
      Value, aux, effective weights, g, and the pullback. For boolean inputs (masks)
      the pullback gives float0: use `mask_gradient` instead.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w, m = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> found = gradient_at_effective(lambda z: jnp.sum((z - 3) ** 2), masked, (w, m))
      >>> found.grads.tolist(), found.pullback(found.grads)[0].tolist()
      ([-4.0, -6.0], [-4.0, 0.0])
    """
    weights, pullback = jax.vjp(reparameterize, *inputs)
    found, grads = jax.value_and_grad(loss, has_aux=has_aux)(weights, *args)
    value, aux = found if has_aux else (found, None)
    return Effective(value, aux, weights, grads, pullback)


def masked_gradient(grads: base.Params, masks: base.Masks) -> base.Params:
    """Returns m g: the gradient of the kept weights.

    Args:
      grads: g, in the params' tree.
      masks: masks of the params.

    Returns:
      The tree of g, zero where the masks are False.

    Raises:
      PruningError: if the trees differ or a mask does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> g, m = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([True, False])}
      >>> masked_gradient(g, m)["w"].tolist()
      [3.0, 0.0]
    """
    return masks_lib.apply(grads, masks)


def masked(w: jax.Array, m: jax.Array) -> jax.Array:
    """Returns z = w where m, else 0.

    Args:
      w: a leaf of the params.
      m: its mask.

    Returns:
      The leaf's shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> masked(jnp.array([2.0, -1.0]), jnp.array([True, False])).tolist()
      [2.0, 0.0]
    """
    return jnp.where(m, w, jnp.zeros_like(w))


def soft_masked(w: jax.Array, p: jax.Array) -> jax.Array:
    """Returns z = p w, with the gradients p g for w and w g for p.

    Args:
      w: a leaf of the params.
      p: soft mask in [0, 1], floating, that broadcasts to the leaf.

    Returns:
      The leaf's shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> w, p = jnp.array([[4.0, 8.0], [2.0, 6.0]]), jnp.array([[0.25], [0.5]])
      >>> soft_masked(w, p).tolist()
      [[1.0, 2.0], [1.0, 3.0]]
    """
    # Broadcast before rounding, so that its gradient is summed in its own dtype.
    return w * jnp.broadcast_to(p, w.shape).astype(w.dtype)


def score_masked(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = w where m, with the gradient w g for the scores that m ranks.

    Args:
      w: a leaf of the params.
      m: the mask made of the scores, taken as a constant.
      s: the scores, in the leaf's shape.

    Returns:
      The leaf's shape and dtype; its gradient is m g for w and, straight through
      the mask, w g for s.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w, m = jnp.array([2.0, 3.0]), jnp.array([True, False])
      >>> s = jnp.array([0.5, 0.25])
      >>> score_masked(w, m, s).tolist()
      [2.0, 0.0]
      >>> jax.grad(lambda s: score_masked(w, m, s).sum())(s).tolist()  # g = 1
      [2.0, 3.0]

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299, equation 4.
    """
    z = masked(w, m)
    return straight_through(z, z + jax.lax.stop_gradient(w) * s.astype(w.dtype))


def size_masked(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = w where m, with the gradient sign(s) w g: m ranks |s|.

    Args:
      w: a leaf of the params.
      m: the mask made of |s|, taken as a constant.
      s: signed scores, in the leaf's shape.

    Returns:
      The leaf's shape and dtype; its gradient is m g for w and, straight through
      the mask, sign(s) w g for s.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w, m = jnp.array([2.0, 3.0]), jnp.array([True, False])
      >>> s = jnp.array([-0.5, 0.25])
      >>> size_masked(w, m, s).tolist()
      [2.0, 0.0]
      >>> jax.grad(lambda s: size_masked(w, m, s).sum())(s).tolist()  # g = 1
      [-2.0, 3.0]

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299: the released code ranks |s|.
    """
    return score_masked(w, m, jnp.abs(s))


def sign_masked(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = w sign(s) where m: each weight is kept, hidden or inverted.

    Args:
      w: a leaf of the params.
      m: its mask, taken as a constant.
      s: signed scores, in the leaf's shape.

    Returns:
      The leaf's shape and dtype; its gradient is m sign(s) g for w and, straight
      through both the sign and the mask, w g for s.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w, m = jnp.array([2.0, 3.0]), jnp.array([True, False])
      >>> s = jnp.array([-0.5, 0.25])
      >>> sign_masked(w, m, s).tolist()
      [-2.0, 0.0]
      >>> jax.grad(lambda s: sign_masked(w, m, s).sum())(s).tolist()  # g = 1
      [2.0, 3.0]

    References:
      Koster et al., Signing the Supermask: Keep, Hide, Invert, 2022,
      arXiv:2201.13361.
    """
    # sign(0) is 1: a value of 0 would act as a second mask.
    sign = jnp.where(s < 0, jnp.full_like(w, -1), jnp.ones_like(w))
    return score_masked(w * sign, m, s * sign.astype(s.dtype))


def soft_thresholded(w: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = sign(w) relu(|w| - sigmoid(s)), with a learned threshold.

    Args:
      w: a leaf of the params.
      s: logit of the threshold, a scalar or an array that broadcasts to the leaf.

    Returns:
      The leaf's shape and dtype; zero where |w| <= sigmoid(s).

    Example:
      >>> import jax.numpy as jnp
      >>> soft_thresholded(jnp.array([2.0, -1.0, 0.25]), jnp.float32(0.0)).tolist()
      [1.5, -0.5, 0.0]

    References:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
      Sparsity, 2020, arXiv:2002.03231, equation 3.
    """
    # In float32: thresholds rounded to bfloat16 could not separate weights.
    x = precision.wide(w)
    threshold = jnp.broadcast_to(jax.nn.sigmoid(s), w.shape).astype(x.dtype)
    return (jnp.sign(x) * jax.nn.relu(jnp.abs(x) - threshold)).astype(w.dtype)
