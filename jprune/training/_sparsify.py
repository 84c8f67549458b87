"""The training wrapper: joins a pruner to any optimizer.

    tx = sparsify(optax.adamw(1e-3), pruner, every=100, begin=1_000, end=20_000)

The result is an ordinary Optax optimizer. Its state is one pytree inside the optimizer
state, so that checkpoints, sharding and `lax.scan` work unchanged.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base, events
from jprune.links import as_pruner, select
from jprune.training._initial import all_kept


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      count: int32 scalar, updates so far.
      masks: the masks in force; as bits (`jprune.masks.pack`) with `packed`.
      pruner: state of the pruner.
      track: state of the transform that sees the gradients of every step.
      inner: state of the optimizer.
    """

    count: base.Scalar
    masks: base.Masks
    pruner: Any
    track: Any
    inner: Any


def sparsify(
    tx: optax.GradientTransformation,
    pruner: base.Pruner,
    *,
    every: int | None = 1,
    begin: int | None = None,
    end: int | None = None,
    where: tree.Where = tree.is_kernel,
    track: optax.GradientTransformation | None = None,
    moments: Literal["keep", "zero"] = "keep",
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Joins a pruner to an optimizer, so that it trains sparse weights.

    With m the masks, w the weights and u the optimizer's update for the masked
    gradient m g, the update is u where m, and -w elsewhere. Pruned weights are
    exactly zero after each step in spite of momentum and weight decay, and no further
    call is needed. (An infinite or NaN weight becomes NaN, so that it is noticed.)

    The masks are refreshed before the optimizer's step in the updates begin,
    begin + every, ... and end, counted from 0. That number is the step of the
    pruner's schedules, so a schedule that reaches its target at or before `end` always
    reaches it, whether or not `every` divides the interval. A schedule that knows its
    interval, such as `jprune.cubic`, gives the begin and the end. `end=begin` prunes
    once.

    In an `optax.chain`, put it last: a link after it would change the -w.

    A step without a refresh is the optimizer's own, with the masks fused into its
    loops. Only the masks and the pruner's state cross the branch of a refresh, so
    a step that donates params and state copies nothing.

    Args:
      tx: any optimizer.
      pruner: links from gradients to masks, such as a recipe of `jprune.recipes`.
      every: number of updates between refreshes; None for no refresh inside the step,
        to call `jprune.refresh` outside instead.
      begin: first update with a refresh; nothing is pruned before it. None for the
        begin of the pruner's schedule if that has one, as `jprune.cubic`,
        `jprune.geometric` and the recipe `gradual_magnitude` do, else 0.
      end: last update with a refresh. None for the end of such a schedule, after which
        the masks stay as they are, else for no end. A later end goes on ranking the
        weights at the final sparsity.
      where: the leaves that can be pruned: a predicate, a pattern, a list of patterns
        or a tree of bools (`jprune.tree.Where`); floating-point kernels by default.
      track: transform that sees the gradients of these leaves at every step, not
        masked, as `score_by_movement()` or `optax.ema` must. At a refresh, the pruner
        gets its output in place of the gradients.
      moments: what the optimizer remembers of pruned weights. "keep" changes nothing:
        its moments decay. With "zero" the optimizer sees zeros where a weight is
        pruned: in the gradient, in the weight, and in every part of its state that has
        the params' tree and the weight's shape (not Adafactor's factors, but the
        anchor of an inner `rewind`). The moments are then exactly zero after every
        step, up to an epsilon that the optimizer may add, and a weight that grows back
        starts fresh.
      packed: whether the state holds the masks as bits, an eighth of a byte per
        weight. `masks_of` then needs the params to unpack them.

    Returns:
      An optimizer. `update` needs `params`, and passes further keyword arguments to
      both the optimizer and the pruner.

    Raises:
      PruningError: if a number is out of range, or an argument is not what it should
        be, such as a recipe that was not called; at `init`, if the pruner or `where`
        does not fit the params, optimizer and pruner are swapped, or `end` is before
        the end of the pruner's schedule; at `update`, if the gradients have other paths
        or shapes than the params. Names the first leaf.

    Example:
      >>> import jax.numpy as jnp, optax, jprune as jp
      >>> tx = sparsify(optax.adamw(1e-3), jp.recipes.magnitude(0.5), end=0)
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> [[w != 0 for w in row]
      ...  for row in optax.apply_updates(params, updates)["kernel"].tolist()]
      [[True, False], [False, True]]
    """
    events.check(every, begin or 0, end)
    if moments not in ("keep", "zero"):
        raise base.PruningError(f'moments is "keep" or "zero"; got {moments!r}.')
    tx = as_pruner(tx, "optimizer")
    watch = optax.with_extra_args_support(track or optax.identity())
    chosen, where = select(pruner, where), tree.check_where(where)

    def init(params: base.Params) -> SparsifyState:
        visible = tree.only(tree.flags(where, params), params)
        count, memory = jnp.zeros((), jnp.int32), chosen.init(params)
        _interval(memory, every, begin, end)

        def first(params: base.Params) -> base.Masks:
            watched, _ = watch.update(visible, watch.init(visible), visible)
            return chosen.update(watched, memory, params, step=count)[0]

        masks = stored(all_kept(first, params), params)
        return SparsifyState(count, masks, memory, watch.init(visible), tx.init(params))

    def stored(masks: base.Masks, params: base.Params) -> Any:
        return masks_lib.pack(masks, params) if packed else masks

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError("sparsify needs the params: update(..., params).")
        grads = tree.in_tree_of(params, updates, "gradients", shapes=True)
        meant = tree.flags(where, params)
        watched, track_state = watch.update(
            tree.only(meant, grads), state.track, tree.only(meant, params), **extra
        )

        def fresh() -> tuple[Any, Any]:
            clock = {**extra, "step": state.count}
            masks, memory = chosen.update(watched, state.pruner, params, **clock)
            return stored(masks, params), memory

        due = events.is_due(
            state.count, every, *_interval(state.pruner, every, begin, end)
        )
        held, memory = events.when(due, fresh, lambda: (state.masks, state.pruner))
        # Unpacked outside the branch, where it is fused into what follows.
        masks = masks_lib.unpack(held, params)
        inner, weights = state.inner, params
        if moments == "zero":
            # Before the update: after it, XLA would compute the moments twice and copy
            # the old ones, which the optimizer's update has to see.
            inner = _without_pruned(inner, masks, params)
            weights = masks_lib.apply(params, masks)
        updates, inner = tx.update(
            masks_lib.apply(grads, masks), inner, weights, **extra
        )
        updates = jax.tree.map(_to_zero, updates, masks, params)
        count = optax.safe_increment(state.count)
        return updates, SparsifyState(count, held, memory, track_state, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _interval(
    memory: Any, every: int | None, begin: int | None, end: int | None
) -> tuple[int, int | None]:
    """The first and the last refresh, by default those of the pruner's schedules."""
    rise = events.interval_in(memory)
    if rise is None:
        return begin or 0, end
    first = rise.begin if begin is None else begin
    last = max(first, rise.end) if end is None else end
    if every is not None and last < rise.end:
        raise base.PruningError(
            f"The pruner's schedule reaches its target at step {rise.end}, after the "
            f"last refresh at end={end}: pass end={rise.end} or later, or no end."
        )
    return first, last


def masks_of(opt_state: Any, params: base.Params | None = None) -> base.Masks:
    """Returns the masks in an optimizer state, at any depth.

    Args:
      opt_state: state that contains a `SparsifyState`: alone, in a chain, under
        `optax.MultiSteps`, or several under `optax.partition`, whose masks are
        merged.
      params: the params, or their shapes; required for packed masks.

    Returns:
      The params' tree of masks; leaves of other optimizers have a scalar True.

    Raises:
      PruningError: if the state contains no masks, or they are packed and the params
        are missing.

    Example:
      >>> import jax.numpy as jnp, optax, jprune as jp
      >>> tx = sparsify(optax.sgd(0.1), jp.recipes.magnitude(0.5), end=0)
      >>> tx = optax.chain(optax.clip(1.0), tx)
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "bias": jnp.ones(2)}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> masks = masks_of(state)
      >>> masks["kernel"].tolist(), masks["bias"].tolist()
      ([[True, False], [False, True]], True)
    """
    found = [
        leaf.masks
        for leaf in jax.tree.leaves(opt_state, is_leaf=_is_sparsify_state)
        if _is_sparsify_state(leaf)
    ]
    if not found:
        raise base.PruningError("The optimizer state contains no SparsifyState.")
    masks = jax.tree.map(
        lambda *m: next((x for x in m if not _is_hidden(x)), jnp.ones((), bool)),
        *found,
        is_leaf=_is_hidden,
    )
    if params is not None:
        return masks_lib.unpack(masks, params)
    if any(map(masks_lib.is_packed, jax.tree.leaves(masks))):
        raise base.PruningError(
            "The masks are packed and need the params' shapes to unpack: call "
            "masks_of(opt_state, params)."
        )
    return masks


def _to_zero(update: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
    """The update where the mask is True; elsewhere -w, which makes the weight zero."""
    update = widen(update, weight)
    return jnp.where(mask, update, -weight.astype(update.dtype))


def widen(update: jax.Array, weight: jax.Array) -> jax.Array:
    """The update in the wider dtype of both: a rounded -w would leave a remainder."""
    return update.astype(jnp.promote_types(update.dtype, weight.dtype))


def _without_pruned(inner: Any, masks: base.Masks, params: base.Params) -> Any:
    """The optimizer's state, zero where its parts that match the params are pruned.

    Parts are matched by their tree: `optax.tree.map_params` would call the optimizer's
    `init` on a placeholder, which functions that label or select leaves cannot take.
    """

    def like_params(x: Any) -> bool:
        # Masked optimizers have a MaskedNode in place of a leaf or a subtree.
        nodes, treedef = jax.tree.flatten(x, is_leaf=_is_hidden)
        try:
            others = treedef.flatten_up_to(params)
        except ValueError:
            return False
        leaf = jax.tree.structure(0)
        return all(
            _is_hidden(node) or jax.tree.structure(other) == leaf
            for node, other in zip(nodes, others, strict=True)
        )

    def zero(x: Any, m: Any, w: Any) -> Any:
        if _is_hidden(x) or np.shape(x) != np.shape(w):
            return x
        return jnp.where(m, x, jnp.zeros_like(x))

    return jax.tree.map(
        lambda x: (
            jax.tree.map(zero, x, masks, params, is_leaf=_is_hidden)
            if like_params(x)
            else x
        ),
        inner,
        is_leaf=like_params,
    )


def _is_hidden(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_sparsify_state(x: Any) -> bool:
    return isinstance(x, SparsifyState)


def refresh(
    pruner: base.Pruner,
    opt_state: Any,
    params: base.Params,
    grads: Any = None,
    *,
    where: tree.Where = tree.is_kernel,
    **extra: Any,
) -> tuple[base.Params, Any]:
    """Refreshes the masks of `sparsify` from outside the training step.

    A refresh inside the step costs memory for a branch that is rarely taken. For a big
    model, pass `every=None` to `sparsify` and jit this function once, beside the step:

        refresh = jax.jit(functools.partial(jp.refresh, pruner))

    Arrays may be in a framework's boxes. For Flax NNX's Optimizer, pass its state and
    `nnx.state(model, nnx.Param)`, and write the results back with
    `nnx.update(model, params)` and
    `nnx.update(optimizer.opt_state, nnx.state(opt_state))`.

    Args:
      pruner: the pruner that was passed to `sparsify`.
      opt_state: optimizer state that contains one `SparsifyState`, at any depth.
      params: the params.
      grads: gradients for the pruner's first link, if it needs them.
      where: what was passed to `sparsify` as `where`.
      **extra: further arguments that a link asks for.

    Returns:
      The params, zero where they are pruned, and the optimizer state with the new
      masks.

    Raises:
      PruningError: if the state does not contain exactly one `SparsifyState`, or the
        pruner's masks have other shapes than those in it.

    Example:
      >>> import jax.numpy as jnp, optax, jprune as jp
      >>> pruner = jp.recipes.magnitude(0.5)
      >>> tx = sparsify(optax.sgd(0.1), pruner, every=None)
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> params, state = refresh(pruner, tx.init(params), params)
      >>> params["kernel"].tolist(), masks_of(state)["kernel"].tolist()
      ([[3.0, 0.0], [0.0, 2.0]], [[True, False], [False, True]])
    """
    leaves, treedef = jax.tree.flatten(opt_state, is_leaf=_is_sparsify_state)
    found = [i for i, leaf in enumerate(leaves) if _is_sparsify_state(leaf)]
    if len(found) != 1:
        raise base.PruningError(
            f"refresh needs a state with one SparsifyState; this one has {len(found)}."
        )
    state, chosen = leaves[found[0]], select(pruner, where)
    # A framework may keep the state's arrays in other boxes than the params': unboxed
    # for the pruner, and boxed again.
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
    "The pruner's masks or state have other shapes than those in the optimizer "
    "state: pass the same pruner and where= to refresh as to sparsify."
)


def _shapes(x: Any) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(x)]


def _in_tree_of(like: Any, x: Any) -> Any:
    leaves, treedef = jax.tree.leaves(x), jax.tree.structure(like)
    if len(leaves) != treedef.num_leaves:
        raise base.PruningError(_OTHER_PRUNER)
    return treedef.unflatten(leaves)
