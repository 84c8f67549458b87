"""The initial masks of a training, which keep everything."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks as masks_lib
from jprune._core import base, compat


def all_kept(
    prune: Callable[[base.Params], base.Masks], params: base.Params
) -> base.Masks:
    """Returns masks of True, in the shapes and shardings of a pruner's masks.

    With them, the state of a training has the same types before and after the first
    pruning.

    Args:
      prune: `params -> masks`, the pruner; only its shapes are evaluated.
      params: any pytree of arrays.

    Returns:
      The params' tree of masks.

    Raises:
      PruningError: if the pruner's masks do not fit the params.
    """
    found = jax.eval_shape(prune, params)
    masks_lib.check(params, found)
    return jax.tree.map(
        lambda w, m: (
            jnp.ones_like(w, dtype=bool)  # keeps the leaf's sharding
            if m.shape == np.shape(w)
            else compat.auto_partition(lambda w: jnp.ones(m.shape, bool), w, like=m)
        ),
        params,
        found,
    )
