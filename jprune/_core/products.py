"""Products of weights and gradients that several packages need."""

import jax

from jprune._core import base, precision


def mask_gradient(params: base.Params, grads: base.Params) -> base.Params:
    """Returns w g: the gradient of the loss with respect to each entry of the mask.

    With z = m w and g = dL/dz, dL/dm = w g, for pruned entries too: there it says
    what bringing the weight back would do to the loss.

    Args:
      params: the weights w, not the effective ones.
      grads: g, in the params' tree.

    Returns:
      The params' tree, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> w, g = {"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([3.0, 4.0])}
      >>> mask_gradient(w, g)["w"].tolist()
      [6.0, -4.0]

    References:
      Lee et al., SNIP: Single-shot Network Pruning based on Connection
      Sensitivity, 2019, arXiv:1810.02340, equation 4.
    """
    return jax.tree.map(
        lambda w, g: precision.wide(w) * precision.wide(g), params, grads
    )
