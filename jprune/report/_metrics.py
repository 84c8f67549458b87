"""Sparsities as a flat dict of scalars, computed inside a jitted step for a logger."""

from typing import Any

import jax
import numpy as np

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.training import masks_of


def metrics(opt_state: Any, params: base.Params) -> dict[str, jax.Array]:
    """Returns the sparsity in force, in total and per leaf, for a logger.

    With n weights in a leaf, of which k are kept, its sparsity is (n - k) / n; the
    total is the sum of n - k over the sum of n. Only leaves that can be pruned count.
    The masks in an optimizer state are read, not the weights. Nothing leaves the
    device, so that it can be part of a jitted step:

        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, {"loss": loss} | jp.metrics(opt_state, params)

    It works under `vmap` and in `lax.scan`, too, and the keys depend on the params'
    tree alone.

    Args:
      opt_state: optimizer state with masks at any depth, as for `masks_of`.
      params: the params, or their shapes as `jax.ShapeDtypeStruct`s.

    Returns:
      `{"sparsity": total, "sparsity/<path>": of the leaf, ...}`, float32 scalars in
      [0, 1], with the leaves in tree order; the total is 0 if nothing can be pruned.

    Raises:
      PruningError: if the state contains no masks, or they do not fit the params.

    Example:
      >>> import jax.numpy as jnp, optax, jprune as jp
      >>> tx = jp.sparsify(optax.adam(1e-3), jp.recipes.magnitude(0.75), end=0)
      >>> params = {"dense": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> {name: float(value) for name, value in metrics(state, params).items()}
      {'sparsity': 0.75, 'sparsity/dense/kernel': 0.75}
    """
    return mask_metrics(params, masks_of(opt_state, params))


def mask_metrics(params: base.Params, masks: base.Masks) -> dict[str, jax.Array]:
    """Returns the same scalars as `metrics`, for masks that no optimizer holds.

    Args:
      params: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      masks: masks of the params, as from `prune` or the state of an `Algorithm`.

    Returns:
      `{"sparsity": total, "sparsity/<path>": of the leaf, ...}`, as `metrics` does.

    Raises:
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params, masks = jp.prune({"kernel": jnp.eye(4)}, jp.recipes.magnitude(0.5))
      >>> float(mask_metrics(params, masks)["sparsity/kernel"])
      0.5
    """
    shares = tree.by_path(masks_lib.sparsity_per_leaf(params, masks))
    prunable = [np.shape(m) != () for m in jax.tree.leaves(masks)]
    each = zip(shares.items(), prunable, strict=True)
    leaves = {f"sparsity/{path}": share for (path, share), p in each if p}
    return {"sparsity": masks_lib.sparsity(params, masks), **leaves}
