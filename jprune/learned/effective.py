"""The gradient at the effective weights, from which every method's own follows.

A network computes with effective weights z = R(w, ...): the weights under a mask, or
any other reparameterization. With g = dL/dz, found once for a batch,

    m g                      the gradient of the weights that stay  (masked training)
    g                        the dense, straight-through gradient, and RigL's growth
    w g                      the gradient of the mask; |w g| is SNIP at mask one, its
                             sum over steps movement
    (w - m g / gamma) g      BiP's hypergradient, see `jprune.bilevel`

and what else R depends on (scores, thresholds, gates) gets its gradient by pulling
g back through R. So no method runs the network twice for the same batch.

The reparameterizations below are functions of one leaf; `jax.tree.map` them.
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
    """What `gradient_at_effective` found.

    Attributes:
      value: the loss.
      aux: what the loss returned beside it, or None.
      weights: the effective weights z, in the params' tree.
      grads: g = dL/dz, in the params' tree.
      pullback: `g -> gradients of R's inputs`, as a tuple.
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
    """Returns the loss and its gradient at z = R(*inputs), and the way back through R.

    Args:
      loss: `(params, *args) -> scalar`, or `-> (scalar, aux)` with `has_aux`.
      reparameterize: R, from the inputs to the tree that the loss takes.
      inputs: params, masks, scores: whatever R takes; pytrees.
      *args: what the loss takes beside the params.
      has_aux: whether the loss returns a pair.

    Returns:
      Value, aux, effective weights, g, and the pullback. Boolean inputs (masks) have
      gradients of type float0: use `mask_gradient`.

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
    """Returns m g: the gradient of the weights where the masks are True.

    Args:
      grads: g, in the params' tree.
      masks: their masks.

    Returns:
      The tree of g with zeros where pruned.
    """
    return masks_lib.apply(grads, masks)


def masked(w: jax.Array, m: jax.Array) -> jax.Array:
    """Returns z = w where m, else 0.

    Args:
      w: a leaf.
      m: its mask.

    Returns:
      The leaf's shape and dtype.
    """
    return jnp.where(m, w, jnp.zeros_like(w))


def soft_masked(w: jax.Array, p: jax.Array) -> jax.Array:
    """Returns z = p w, with the gradients p g for w and w g for p.

    Args:
      w: a leaf.
      p: a floating mask in [0, 1] that broadcasts to it.

    Returns:
      The leaf's shape and dtype.
    """
    # Spread before it is rounded: then its gradient is summed in its own type.
    return w * jnp.broadcast_to(p, w.shape).astype(w.dtype)


def score_masked(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = w where m, with the gradient w g for the scores that m ranks.

    Args:
      w: a leaf.
      m: the mask made of the scores, taken as a constant.
      s: the scores, in the leaf's shape.

    Returns:
      The leaf's shape and dtype; its gradient is m g for w and, straight through
      the mask, w g for s.

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299, equation 4.
    """
    z = masked(w, m)
    return straight_through(z, z + jax.lax.stop_gradient(w) * s.astype(w.dtype))


def size_masked(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = w where m, with the gradient sign(s) w g: m ranks |s|.

    Args:
      w: a leaf.
      m: the mask made of |s|, taken as a constant.
      s: signed scores, in the leaf's shape.

    Returns:
      The leaf's shape and dtype; its gradient is m g for w and, straight through
      the mask, sign(s) w g for s.

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299: the released code ranks |s|.
    """
    return score_masked(w, m, jnp.abs(s))


def sign_masked(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = w sign(s) where m: each weight is kept, hidden or inverted.

    Args:
      w: a leaf.
      m: its mask, taken as a constant.
      s: signed scores, in the leaf's shape.

    Returns:
      The leaf's shape and dtype; its gradient is m sign(s) g for w and, straight
      through both the sign and the mask, w g for s.

    References:
      Koster et al., Signing the Supermask: Keep, Hide, Invert, 2022,
      arXiv:2201.13361.
    """
    # An s of zero has a sign too: a third value would be a second mask.
    sign = jnp.where(s < 0, jnp.full_like(w, -1), jnp.ones_like(w))
    return score_masked(w * sign, m, s * sign.astype(s.dtype))


def soft_thresholded(w: jax.Array, s: jax.Array) -> jax.Array:
    """Returns z = sign(w) relu(|w| - sigmoid(s)), with a learned threshold.

    Args:
      w: a leaf.
      s: a scalar, or what broadcasts to the leaf.

    Returns:
      The leaf's shape and dtype; zero where |w| <= sigmoid(s).

    References:
      Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
      Sparsity, 2020, arXiv:2002.03231, equation 3.
    """
    # In float32: thresholds rounded to bfloat16 could not tell weights apart.
    x = precision.wide(w)
    threshold = jnp.broadcast_to(jax.nn.sigmoid(s), w.shape).astype(x.dtype)
    return (jnp.sign(x) * jax.nn.relu(jnp.abs(x) - threshold)).astype(w.dtype)
