"""The masks that training starts from: they keep everything."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks as masks_lib
from jprune._core import base, compat


def all_kept(
    prune: Callable[[base.Params], base.Masks], params: base.Params
) -> base.Masks:
    """Returns masks of True, in the shapes and shardings of those that will follow.

    So the state of a training keeps its types when it is pruned for the first time.

    Args:
      prune: params -> the masks of a pruner. It runs on shapes only.
      params: any pytree of arrays.

    Returns:
      The params' tree of masks.

    Raises:
      PruningError: if what the pruner makes are not masks of the params.
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
