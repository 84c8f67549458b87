"""What scores have in common: their type, their checks, links without state."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jprune import tree
from jprune._core import base


def stateless(
    score: Callable[[Any, base.Params], base.Scores], needs_grads: bool
) -> base.Pruner:
    """Returns a link without state.

    Args:
      score: `(grads, params) -> scores`.
      needs_grads: whether there have to be gradients.

    Returns:
      A link; its `init` refuses leaves that are not floating point.
    """

    def init(params: base.Params) -> optax.EmptyState:
        floating(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        require(updates, params, needs_grads)
        return score(updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def require(grads: Any, params: Any, needs_grads: bool) -> None:
    """Checks that a criterion was given what it scores by.

    Args:
      grads: the gradients, or None.
      params: the params, or None.
      needs_grads: whether there have to be gradients.

    Raises:
      PruningError: if something is missing.
    """
    if params is None:
        raise base.PruningError("A criterion needs the params: update(..., params).")
    if needs_grads and grads is None:
        raise base.PruningError(
            "This criterion scores by gradients and got none: pass grads."
        )


def floating(params: base.Params) -> base.Params:
    """Returns a tree of which all leaves are floating point.

    Args:
      params: any pytree of arrays.

    Returns:
      The same tree.

    Raises:
      PruningError: if a leaf is of another type; names it.
    """

    def leaf(path: str, w: Any) -> None:
        if not tree.is_float(path, w):
            raise base.PruningError(
                f"{path!r} has type {jnp.result_type(w)}: only floating-point leaves "
                "can be pruned. Choose them with jprune.select."
            )

    tree.map_with_path(leaf, params)
    return params
