"""Functions that the loops of learned masks share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import tree
from jprune._core import base


def descend(
    tx: optax.GradientTransformation, grads: Any, memory: Any, params: Any
) -> tuple[Any, Any]:
    """Returns the params after a step of an optimizer, and the optimizer's state."""
    updates, memory = tx.update(grads, memory, params)
    return optax.apply_updates(params, updates), memory


def prunable(where: tree.Where, params: base.Params) -> Callable[[Any], Any]:
    """Returns the function that hides the leaves which are never pruned in a tree."""
    prunable_leaves = tree.flags(where, params)
    return lambda x: tree.only(prunable_leaves, x)


def everywhere(where: tree.Where, params: base.Params, masks: base.Masks) -> base.Masks:
    """Returns the masks, with a scalar True for the leaves that are never pruned."""
    prunable_leaves = tree.flags(where, params)
    return jax.tree.map(
        lambda c, m: m if c else jnp.ones((), bool), prunable_leaves, masks
    )


def copied(state: Any) -> Any:
    """Returns a copy of a state, whose arrays a step may donate."""
    # They must not be the caller's, nor one array twice: some optimizers keep the very
    # params that they are given.
    return jax.tree.map(jnp.copy, state)
