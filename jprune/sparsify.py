"""The training wrappers: join a pruner to any optimizer.

    tx = sparsify(optax.adamw(1e-3), pruner, every=100, begin=1_000, end=20_000)

is an Optax optimizer like any other. Its state is one pytree inside the
optimizer state, so checkpoints, sharding and `lax.scan` need nothing more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import base, compat, tree
from jprune import masks as masks_lib
from jprune.select import select


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      count: int32 scalar, updates so far.
      masks: the masks in force.
      pruner: the pruner's state.
      track: the state of what watches every step's gradients.
      inner: the optimizer's state.
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
    begin: int = 0,
    end: int | None = None,
    where: base.Predicate = tree.is_kernel,
    track: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Joins a pruner to an optimizer, so that it trains sparse weights.

    With m the masks, w the weights and u the update of the optimizer for the
    masked gradient m g, the emitted update is u where m, and -w elsewhere: what
    is pruned lands on exact zero in spite of momentum and weight decay, and
    there is nothing to call after the step. (An infinite or NaN weight would land
    on NaN, where it shows.)

    The masks are refreshed in the updates number begin, begin + every, ... and
    end, counted from 0, before the optimizer's step. The pruner's schedules see
    that number; so a schedule that reaches its target at or before `end` always
    lands on it, whether or not `every` divides the way. One shot is `end=begin`.

    In an `optax.chain` it goes last: a link after it would change the -w.

    Args:
      tx: any optimizer.
      pruner: links from gradients to masks, as in `jprune.recipes`.
      every: updates from one refresh to the next; None for no refresh inside
        the step: then `jprune.refresh` does it, from outside.
      begin: the first update with a refresh; until then nothing is pruned.
      end: the last update with a refresh; None for no end.
      where: which leaves can be pruned: floating-point kernels, unless told
        otherwise.
      track: a transform that sees every step's gradients of those leaves, as
        `score_by_movement()` or an `optax.ema` has to. At a refresh the pruner
        gets its output in the place of the gradients.

    Returns:
      An optimizer. `update` needs `params`, and hands further keywords to both.

    Raises:
      PruningError: if the numbers are out of range; at `init` if the pruner does
        not fit the params.

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
    _check_events(every, begin, end)
    tx = optax.with_extra_args_support(tx)
    watch = optax.with_extra_args_support(track or optax.identity())
    chosen = select(pruner, where)

    def init(params: base.Params) -> SparsifyState:
        visible = tree.only(tree.flags(where, params), params)

        def watched() -> Any:
            return watch.update(visible, watch.init(visible), visible)[0]

        state = SparsifyState(
            count=jnp.zeros((), jnp.int32),
            masks=None,
            pruner=chosen.init(params),
            track=watch.init(visible),
            inner=tx.init(params),
        )
        return state._replace(masks=_initial_masks(chosen, state, params, watched))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError("sparsify needs the params: update(..., params).")
        grads, meant = updates, tree.flags(where, params)
        watched, track_state = watch.update(
            tree.only(meant, grads), state.track, tree.only(meant, params), **extra
        )

        def fresh() -> tuple[base.Masks, Any]:
            clock = {**extra, "step": state.count}
            return chosen.update(watched, state.pruner, params, **clock)

        due = _is_due(state.count, every, begin, end)
        masks, pruner_state = _cond(due, fresh, lambda: (state.masks, state.pruner))
        updates, inner = tx.update(
            masks_lib.apply(grads, masks), state.inner, params, **extra
        )
        updates = jax.tree.map(_to_zero, updates, masks, params)
        count = optax.safe_increment(state.count)
        return updates, SparsifyState(count, masks, pruner_state, track_state, inner)

    return optax.GradientTransformationExtraArgs(init, update)


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

    (Flax NNX's Optimizer keeps its state in Variables: refresh inside the step
    there.)

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
    state = leaves[found[0]]
    clock = {**extra, "step": state.count}
    masks, pruner_state = select(pruner, where).update(
        grads, state.pruner, params, **clock
    )
    if jax.tree.map(np.shape, masks) != jax.tree.map(np.shape, state.masks):
        raise base.PruningError(
            "The pruner's masks have other shapes than the state's: pass refresh the "
            "pruner and the predicate that sparsify was given."
        )
    leaves[found[0]] = state._replace(masks=masks, pruner=pruner_state)
    return masks_lib.apply(params, masks), treedef.unflatten(leaves)


def masks_of(opt_state: Any) -> base.Masks:
    """Returns the masks in an optimizer state, however deep they are in it.

    Args:
      opt_state: a state with a `SparsifyState` in it: alone, in a chain, under
        `optax.MultiSteps`, or several under `optax.partition`, whose masks are
        then put together.

    Returns:
      The params' tree of masks; leaves of other optimizers have a scalar True.

    Raises:
      PruningError: if there is none.
    """
    found = [
        leaf.masks
        for leaf in jax.tree.leaves(opt_state, is_leaf=_is_sparsify_state)
        if _is_sparsify_state(leaf)
    ]
    if not found:
        raise base.PruningError("No SparsifyState in this optimizer state.")
    hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda *m: next((x for x in m if not hidden(x)), jnp.ones((), bool)),
        *found,
        is_leaf=hidden,
    )


class RewindState(NamedTuple):
    """State of `rewind`.

    Attributes:
      count: int32 scalar, updates so far.
      anchor: the params and the optimizer's state at the step to go back to.
      inner: the optimizer's state.
    """

    count: base.Scalar
    anchor: tuple[base.Params, Any]
    inner: Any


def rewind(
    tx: optax.GradientTransformation,
    *,
    to: int,
    every: int,
    begin: int | None = None,
    end: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Takes weights and optimizer back to step `to` from time to time.

    Inside `sparsify`, with the same `every`, `begin` and `end`, this is the
    lottery ticket's rewinding: the masks come from the trained weights, and the
    weights that stay go back to what they were, with the optimizer's moments
    and its clock, so that a learning rate schedule starts there again.

    An update is added to the weights, so w + (a - w) may differ from the anchor
    a in the last bit of the larger of both. `jprune.apply` is exact.

    Args:
      tx: any optimizer.
      to: the update whose incoming weights are the anchor.
      every: updates from one rewind to the next.
      begin: the first rewind, at or after `to`; `to + every` if None.
      end: the last rewind; None for no end.

    Returns:
      An optimizer. `update` needs `params`.

    Raises:
      PruningError: if the numbers are out of range.

    Example:
      >>> import optax, jprune as jp
      >>> rounds = dict(every=1_000, begin=1_000, end=4_000)
      >>> sparsity = jp.geometric(0.6, begin=1_000, steps=4_000, rounds=4)
      >>> tx = jp.sparsify(jp.rewind(optax.sgd(0.1), to=50, **rounds),
      ...                  jp.recipes.magnitude(sparsity, scope="global"), **rounds)

    References:
      Frankle et al., Stabilizing the Lottery Ticket Hypothesis, 2019,
      arXiv:1903.01611.
    """
    begin = to + every if begin is None else begin
    _check_events(every, begin, end)
    if not 0 <= to <= begin:
        raise base.PruningError(
            f"The anchor is before the first rewind: {to}, {begin}."
        )
    tx = optax.with_extra_args_support(tx)

    def init(params: base.Params) -> RewindState:
        inner = tx.init(params)
        # A copy: a buffer that a step donates must not be in its arguments twice.
        anchor = jax.tree.map(jnp.copy, (params, inner))
        return RewindState(jnp.zeros((), jnp.int32), anchor, inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError("rewind needs the params: update(..., params).")
        now = (params, state.inner)
        anchor = _cond(state.count == to, lambda: now, lambda: state.anchor)

        def on() -> tuple[Any, Any]:
            new, inner = tx.update(updates, state.inner, params, **extra)
            return jax.tree.map(_widen, new, params), inner

        def back() -> tuple[Any, Any]:
            types = jax.eval_shape(on)[0]
            new = jax.tree.map(
                lambda u, a, w: a.astype(u.dtype) - w.astype(u.dtype),
                types,
                anchor[0],
                params,
            )
            return new, anchor[1]

        due = _is_due(state.count, every, begin, end)
        new, inner = _cond(due, back, on)
        return new, RewindState(optax.safe_increment(state.count), anchor, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_events(every: int | None, begin: int, end: int | None) -> None:
    if every is not None and every < 1:
        raise base.PruningError(f"every counts updates, from 1 on; got {every}.")
    if begin < 0 or (end is not None and end < begin):
        raise base.PruningError(f"0 <= begin <= end; got {begin} and {end}.")


def _is_due(
    count: base.Scalar, every: int | None, begin: int, end: int | None
) -> base.Scalar:
    """Whether the update number `count` is one with an event."""
    if every is None:
        return jnp.zeros((), bool)
    count = jnp.asarray(count)
    due = (count >= begin) & ((count - begin) % every == 0)
    return due if end is None else (due & (count <= end)) | (count == end)


def _cond(due: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`lax.cond`; outside of a trace, a plain `if`.

    There `lax.cond` would compile both branches anew at every call, because its
    cache does not know that two closures are the same.
    """
    if isinstance(due, jax.core.Tracer):
        return lax.cond(due, yes, no)
    return yes() if due else no()


def _initial_masks(
    chosen: base.Pruner,
    state: SparsifyState,
    params: base.Params,
    watched: Callable[[], Any],
) -> base.Masks:
    """All True, in the shapes that the pruner's masks will have."""

    def once(params: base.Params) -> base.Masks:
        return chosen.update(watched(), state.pruner, params, step=state.count)[0]

    found = jax.eval_shape(once, params)
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


def _to_zero(update: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
    """The update where the mask is True; elsewhere what takes the weight to zero."""
    update = _widen(update, weight)
    return jnp.where(mask, update, -weight.astype(update.dtype))


def _widen(update: jax.Array, weight: jax.Array) -> jax.Array:
    """The update in the wider type of both: a rounded -w would leave a rest."""
    return update.astype(jnp.promote_types(update.dtype, weight.dtype))


def _is_sparsify_state(x: Any) -> bool:
    return isinstance(x, SparsifyState)
