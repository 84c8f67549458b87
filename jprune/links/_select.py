"""Uses of a pruner: on some leaves only (`select`), and once on params (`prune`)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base


def select(pruner: base.Pruner, where: base.Predicate) -> base.Pruner:
    """Restricts a pruner to some leaves.

    The other leaves are hidden from the pruner, as `optax.masked` hides them, and get a
    scalar True as their mask.

    Args:
      pruner: links from gradients to masks.
      where: predicate `(path, leaf) -> bool` that selects the leaves, such as
        `jprune.is_kernel` or `jprune.matching("block.*")`.

    Returns:
      A pruner whose masks have exactly the params' tree.

    Raises:
      PruningError: at `init`, if the predicate selects no leaf, or one of its patterns
        matches no leaf.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> pruner = jp.select(jp.recipes.magnitude(0.5), jp.is_kernel)
      >>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.ones(2)}
      >>> pruner.update(None, pruner.init(params), params)[0]["bias"]
      Array(True, dtype=bool)
    """
    pruner = optax.with_extra_args_support(pruner)

    def init(params: base.Params) -> Any:
        return pruner.init(tree.only(tree.flags(where, params), params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError(
                "A pruner needs the params: call update(grads, state, params)."
            )
        chosen = tree.flags(where, params)
        found, state = pruner.update(
            tree.only(chosen, updates), state, tree.only(chosen, params), **extra
        )
        everywhere = jax.tree.map(
            lambda c, m: m if c else jnp.ones((), bool), chosen, found
        )
        return everywhere, state

    return optax.GradientTransformationExtraArgs(init, update)


def prune(
    params: base.Params,
    pruner: base.Pruner,
    grads: Any = None,
    *,
    where: base.Predicate = tree.is_kernel,
    **extra: Any,
) -> tuple[base.Params, base.Masks]:
    """Prunes params once: runs a pruner and applies its masks.

    Args:
      params: any pytree of arrays.
      pruner: links from gradients to masks, such as a recipe.
      grads: gradients of the loss at `params`, for pruners that need them. The first
        link gets them, so scores of your own may be passed to a pruner that begins
        with `keep_*`.
      where: predicate that selects the leaves to prune.
      **extra: keyword arguments for the links.

    Returns:
      The params with zeros where they are pruned, and the masks.

    Raises:
      PruningError: if the pruner or the predicate does not fit the params.
      NonFiniteScoreError: if a score is NaN; names the leaf.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> prune(params, jp.recipes.magnitude(0.5))[0]["kernel"].tolist()
      [[3.0, 0.0], [0.0, 2.0]]
    """
    chosen = select(pruner, where)
    masks, _ = chosen.update(grads, chosen.init(params), params, **extra)
    return masks_lib.apply(params, masks), masks
