"""Rewinding: returns the kept weights to their values at an early step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._core import base, events
from jprune.training._sparsify import widen


class RewindState(NamedTuple):
    """State of `rewind`.

    Attributes:
      count: int32 scalar, updates so far.
      anchor: the params and the optimizer's state at the step to rewind to.
      inner: state of the optimizer.
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
    """Returns weights and optimizer to step `to` at regular intervals.

    Inside `sparsify`, with the same `every`, `begin` and `end`, this is the rewinding
    of lottery tickets: the masks come from the trained weights, and the kept weights
    return to their values at step `to`, with the optimizer's moments and its step
    count, so that a learning rate schedule resumes there.

    Updates are added to the weights, so w + (a - w) may differ from the anchor a in
    the last bit of the larger of both.

    Args:
      tx: any optimizer.
      to: update whose incoming weights are the anchor.
      every: number of updates between rewinds.
      begin: first rewind, at or after `to`; `to + every` if None.
      end: last rewind; None for no end.

    Returns:
      An optimizer. `update` needs `params`.

    Raises:
      PruningError: if a number is out of range.

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
    events.check(every, begin, end)
    if not 0 <= to <= begin:
        raise base.PruningError(
            f"0 <= to <= begin is needed; got to={to} and begin={begin}."
        )
    tx = optax.with_extra_args_support(tx)

    def init(params: base.Params) -> RewindState:
        inner = tx.init(params)
        # A copy: no buffer may be in the arguments of a donating step twice.
        anchor = jax.tree.map(jnp.copy, (params, inner))
        return RewindState(jnp.zeros((), jnp.int32), anchor, inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise base.PruningError("rewind needs the params: update(..., params).")
        now = (params, state.inner)
        anchor = events.when(state.count == to, lambda: now, lambda: state.anchor)

        def on() -> tuple[Any, Any]:
            new, inner = tx.update(updates, state.inner, params, **extra)
            return jax.tree.map(widen, new, params), inner

        def back() -> tuple[Any, Any]:
            types = jax.eval_shape(on)[0]
            new = jax.tree.map(
                lambda u, a, w: a.astype(u.dtype) - w.astype(u.dtype),
                types,
                anchor[0],
                params,
            )
            return new, anchor[1]

        due = events.is_due(state.count, every, begin, end)
        new, inner = events.when(due, back, on)
        return new, RewindState(optax.safe_increment(state.count), anchor, inner)

    return optax.GradientTransformationExtraArgs(init, update)
