"""Uses of a pruner: on some leaves only (`select`), and once on params (`prune`)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.links import _common


def select(pruner: base.Pruner, where: tree.Where) -> base.Pruner:
    """Restricts a pruner to some leaves.

    The other leaves are hidden from the pruner, as `optax.masked` hides them, and get a
    scalar True as their mask.

    Args:
      pruner: links from gradients to masks.
      where: the leaves: a predicate `(path, leaf) -> bool` such as `jprune.is_kernel`,
        a pattern such as "block.*", a list of patterns, or a tree of bools with the
        params' structure, as `optax.masked` takes it (`jprune.tree.Where`).

    Returns:
      A pruner whose masks have exactly the params' tree.

    Raises:
      PruningError: if the pruner is not an Optax transform, or `where` is none of its
        forms; at `init`, if `where` selects no leaf, one of its patterns matches no
        leaf, or its tree is not the params'; at `update`, if the gradients have other
        leaves than the params, or the pruner returns other things than masks. Names
        the first leaf.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> pruner = jp.select(jp.recipes.magnitude(0.5), jp.is_kernel)
      >>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.ones(2)}
      >>> pruner.update(None, pruner.init(params), params)[0]["bias"]
      Array(True, dtype=bool)
    """
    pruner, where = _common.as_pruner(pruner), tree.check_where(where)

    def init(params: base.Params) -> Any:
        return pruner.init(tree.only(tree.flags(where, params), params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError(
                "A pruner needs the params: call update(grads, state, params)."
            )
        chosen = tree.flags(where, params)
        found, state = pruner.update(
            tree.only(chosen, updates, "gradients"),
            state,
            tree.only(chosen, params),
            **extra,
        )
        _check_boolean(found)
        everywhere = jax.tree.map(
            lambda c, m: m if c else jnp.ones((), bool), chosen, found
        )
        return everywhere, state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_boolean(found: Any) -> None:
    if all(jnp.result_type(m).kind == "b" for m in jax.tree.leaves(found)):
        return
    for path, m in tree.by_path(found).items():
        if jnp.result_type(m).kind != "b":
            raise base.PruningError(
                f"The pruner returned {jnp.result_type(m)} at {path!r}, not a mask. It "
                "ends with a keep_* link, and is the second argument of "
                "sparsify(optimizer, pruner) and prune(params, pruner)."
            )


def prune(
    params: base.Params,
    pruner: base.Pruner,
    grads: Any = None,
    *,
    where: tree.Where = tree.is_kernel,
    **extra: Any,
) -> tuple[base.Params, base.Masks]:
    """Prunes params once: runs a pruner and applies its masks.

    Args:
      params: any pytree of arrays.
      pruner: links from gradients to masks, such as a recipe.
      grads: gradients of the loss at `params`, for pruners that need them. The first
        link gets them, so scores of your own may be passed to a pruner that begins
        with `keep_*`.
      where: the leaves to prune, a `jprune.tree.Where`.
      **extra: keyword arguments for the links.

    Returns:
      The params with zeros where they are pruned, and the masks.

    Raises:
      PruningError: if the pruner, `where` or the gradients do not fit the params, or
        the arguments are swapped.
      NonFiniteScoreError: if a score is NaN; names the leaf.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> prune(params, jp.recipes.magnitude(0.5))[0]["kernel"].tolist()
      [[3.0, 0.0], [0.0, 2.0]]
    """
    if _common.is_transform(params) and not _common.is_transform(pruner):
        raise base.PruningError("prune takes the params first: prune(params, pruner).")
    chosen = select(pruner, where)
    masks, _ = chosen.update(grads, chosen.init(params), params, **extra)
    # Other leaves are passed on: to multiply each of their shapes by True takes as long
    # to compile as to prune it.
    pruned = jax.tree.map(
        lambda meant, w, m: masks_lib.apply(w, m) if meant else w,
        tree.flags(where, params),
        params,
        masks_lib.check(params, masks),
    )
    return pruned, masks
