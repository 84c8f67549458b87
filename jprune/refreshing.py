"""Refresh the masks of `sparsify` from outside the training step."""

from typing import Any

import jax
import numpy as np

from jprune import base, tree
from jprune import masks as masks_lib
from jprune.select import select
from jprune.sparsify import SparsifyState


def refresh(
    pruner: base.Pruner,
    opt_state: Any,
    params: base.Params,
    grads: Any = None,
    *,
    where: base.Predicate = tree.is_kernel,
    **extra: Any,
) -> tuple[base.Params, Any]:
    """Refreshes the masks of `sparsify` from outside the training step.

    A refresh inside the step costs memory for the branch that is seldom taken.
    For a big model, give `sparsify` `every=None` and jit this function once,
    beside the step:

        refresh = jax.jit(functools.partial(jp.refresh, pruner))

    Frameworks that keep arrays in boxes may pass those. For Flax NNX's Optimizer,
    with its state and the model's `nnx.state(model, nnx.Param)` in, what comes out
    goes back by `nnx.update(model, params)` and
    `nnx.update(optimizer.opt_state, nnx.state(opt_state))`.

    Args:
      pruner: the pruner that was given to `sparsify`.
      opt_state: an optimizer state with one `SparsifyState` anywhere in it.
      params: the params.
      grads: what the pruner's first link takes, if it takes any.
      where: the predicate that was given to `sparsify`.
      **extra: what else a link asks for.

    Returns:
      The params with zeros where they are pruned, and the optimizer state with
      the new masks.

    Raises:
      PruningError: if the state does not hold exactly one `SparsifyState`, or
        the pruner gives masks of other shapes than those in it.
    """
    leaves, treedef = jax.tree.flatten(opt_state, is_leaf=_is_sparsify_state)
    found = [i for i, leaf in enumerate(leaves) if _is_sparsify_state(leaf)]
    if len(found) != 1:
        raise base.PruningError(
            f"refresh needs a state with one SparsifyState; it has {len(found)}."
        )
    state, chosen = leaves[found[0]], select(pruner, where)
    # A framework may keep the state's arrays in boxes of another kind than the
    # params': out of them for the pruner, and back into them.
    memory = _in_tree_of(jax.eval_shape(chosen.init, params), state.pruner)
    clock = {**extra, "step": jax.tree.leaves(state.count)[0]}
    masks, memory = chosen.update(grads, memory, params, **clock)
    packed = any(map(masks_lib.is_packed, jax.tree.leaves(state.masks)))
    held = masks_lib.pack(masks, params) if packed else masks
    held = _in_tree_of(state.masks, held)
    if _shapes(held) != _shapes(state.masks):
        raise base.PruningError(_OTHER_PRUNER)
    memory = _in_tree_of(state.pruner, memory)
    leaves[found[0]] = state._replace(masks=held, pruner=memory)
    return masks_lib.apply(params, masks), treedef.unflatten(leaves)


_OTHER_PRUNER = (
    "The pruner's masks or state have other shapes than those in the optimizer's "
    "state: pass refresh the pruner and the predicate that sparsify was given."
)


def _shapes(x: Any) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(x)]


def _in_tree_of(like: Any, x: Any) -> Any:
    leaves, treedef = jax.tree.leaves(x), jax.tree.structure(like)
    if len(leaves) != treedef.num_leaves:
        raise base.PruningError(_OTHER_PRUNER)
    return treedef.unflatten(leaves)


def _is_sparsify_state(x: Any) -> bool:
    return isinstance(x, SparsifyState)
