"""Cascade pruning in an encoder: pruned tokens and heads leave for all later layers.

A layer is two functions that the user provides,

    mix(params, x, valid, heads) -> (outputs, probs)     projections and attention
                                 or (outputs, looks)     as of `fused.attend_summed`
    finish(params, x, outputs, heads) -> x               output projection and the rest

Between them, where the probabilities are known, the least important tokens are dropped:
the output projection, the residual, the feed-forward part and all later layers are not
computed for them, so that arrays shrink. Heads are dropped before the projections of
the next layer. With a schedule that keeps everything this is the plain encoder,
operation for operation.

    state = start(x, kv_heads=12, valid=valid, protected=positions == 0)
    state = encode(state, layers, plan, mix, finish)

`_cascade` holds the state and what one layer does to it; this module, whole layers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune._core.deprecation import renamed_arguments
from jprune.attention import _heads
from jprune.attention._attend import attend
from jprune.attention._cascade import Cascade as Cascade
from jprune.attention._cascade import credit as credit
from jprune.attention._cascade import is_per_sample
from jprune.attention._cascade import prune_heads as prune_heads
from jprune.attention._cascade import prune_tokens as prune_tokens
from jprune.attention._cascade import restore as restore
from jprune.attention._cascade import start as start
from jprune.attention._schedules import Schedule

Mix = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(params, x, valid, heads) -> (outputs, probs)`.

x is (..., tokens, hidden), valid (..., tokens) and heads (kept,), the indices of the KV
heads to compute. For the query heads that those serve, outputs are (..., heads, tokens,
dim) and probs (..., heads, tokens, tokens), or their sums over the real queries, (...,
heads, tokens).
"""

Finish = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
"""`(params, x, outputs, heads) -> x`: the rest of a layer after its attention."""


def encode(
    state: Cascade,
    layers: Sequence[Any],
    plan: Schedule,
    mix: Mix,
    finish: Finish,
    *,
    scan: bool = False,
) -> Cascade:
    """Returns the state after all layers.

    Args:
      state: result of `start`.
      layers: params of each layer.
      plan: static, tokens and query heads that each layer keeps; a KV head is kept with
        all the query heads that it serves.
      mix: projections and attention of a layer.
      finish: the rest of a layer.
      scan: static; whether consecutive layers that prune nothing run as one `lax.scan`,
        which compiles faster and, as it stacks their params, runs slower where these
        are large.

    Returns:
      A `Cascade` with `plan.tokens[-1]` tokens.

    Raises:
      PruningError: if the plan has another length, number of layers or of heads.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import attention as ja
      >>> w = ja.HeadWeights(*(jnp.ones((4, 2, 2)),) * 3, output=jnp.ones((2, 2, 4)))
      >>> x = jnp.linspace(-1, 1, 24).reshape(6, 4)
      >>> plan = ja.schedule(6, tokens=(6, 2), heads=(2, 1))
      >>> add = lambda w, x, out, ids: x + ja.combine(ja.take_heads(w, ids), out)
      >>> state = encode(start(x, 2), [w, w], plan, mix_heads, add)
      >>> state.x.shape, state.heads.shape, state.positions.tolist()
      ((2, 4), (1,), [0, 5])

    References:
      Wang et al., SpAtten, 2021, arXiv:2012.09852, algorithm 1 and figure 1.
    """
    kv_heads = state.alive.shape[-1]
    _check(state, layers, plan, kv_heads)
    size = plan.heads[0] // kv_heads

    def layer(state: Cascade, params: Any, *counts: int) -> Cascade:
        own_mix = functools.partial(mix, params)
        own_finish = functools.partial(finish, params)
        return cascade_layer(state, own_mix, own_finish, *counts)

    for run in _runs(plan, scan):
        if len(run) == 1:
            counts = plan.tokens[run[0]], plan.heads[run[0]] // size
            state = layer(state, layers[run[0]], *counts)
        else:
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *(layers[i] for i in run))
            state, _ = lax.scan(lambda s, p: (layer(s, p), None), state, stacked)
    return state


@renamed_arguments(groups="kv_heads")
def cascade_layer(
    state: Cascade,
    mix: Callable[..., tuple[jax.Array, jax.Array]],
    finish: Callable[..., jax.Array],
    tokens: int | None = None,
    kv_heads: int | None = None,
) -> Cascade:
    """Returns the state after one layer.

    Args:
      state: state before the layer.
      mix: `(x, valid, heads) -> (outputs, probs or looks)`, as `Mix` without params.
      finish: `(x, outputs, heads) -> x`, as `Finish` without params.
      tokens: static, tokens that leave the attention; all by default.
      kv_heads: static, KV heads that the layer computes, each with the query heads that
        it serves; all that are left by default.

    Returns:
      A `Cascade`.

    Raises:
      PruningError: if it is to keep more than there are.

    Example:
      >>> import jax.numpy as jnp
      >>> x, looks = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([0.5, 0.1, 0.4])
      >>> mix = lambda x, valid, heads: (x[None], jnp.tile(looks, (1, 3, 1)))
      >>> finish = lambda x, outputs, heads: x + outputs[0]
      >>> cascade_layer(start(x, 1), mix, finish, tokens=2).x.tolist()
      [[2.0], [6.0]]
    """
    if kv_heads is not None:
        state = prune_heads(state, kv_heads)
    outputs, probs = mix(state.x, state.valid, state.heads)
    if probs.ndim < outputs.ndim:  # already summed: treat the sums as one row
        probs = probs[..., None, :]
    if is_per_sample(state):  # pruned heads add neither output nor importance
        outputs, probs = (_heads.mask_heads(y, state.alive) for y in (outputs, probs))
    state = credit(state, outputs, probs)
    state, outputs = prune_tokens(state, tokens, outputs)
    return state._replace(x=finish(state.x, outputs, state.heads))


def mix_heads(
    weights: _heads.HeadWeights, x: jax.Array, valid: jax.Array, heads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes plain attention of the heads that are left: the usual `Mix`.

    Args:
      weights: projections of the layer, with all heads.
      x: (..., tokens, hidden).
      valid: (..., tokens) booleans, False for padding.
      heads: (kept,) int32, indices of the KV heads that are left.

    Returns:
      `(outputs, probs)`, with the shapes of `Mix`.

    Raises:
      PruningError: if the query heads are not a multiple of the KV heads.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import attention as ja
      >>> w = ja.HeadWeights(*(jnp.ones((4, 2, 3)),) * 3, jnp.ones((2, 3, 4)))
      >>> real, ids = jnp.ones(5, bool), jnp.array([1])  # five tokens, head 1
      >>> [y.shape for y in mix_heads(w, jnp.ones((5, 4)), real, ids)]
      [(1, 5, 3), (1, 5, 5)]
    """
    if heads.shape[0] < weights.key.shape[1]:
        weights = _heads.take_heads(weights, heads)
    q, k, v = _heads.project(weights, x)
    return attend(q, k, v, mask=valid[..., None, None, :])


def _runs(plan: Schedule, scan: bool) -> list[list[int]]:
    """Returns runs of layers: single ones, or consecutive ones that prune nothing."""
    runs: list[list[int]] = []
    before, joined = (plan.length, plan.heads[0]), False
    for i, now in enumerate(zip(plan.tokens, plan.heads, strict=True)):
        calm = scan and now == before
        if calm and joined:
            runs[-1].append(i)
        else:
            runs.append([i])
        before, joined = now, calm
    return runs


def _check(
    state: Cascade, layers: Sequence[Any], plan: Schedule, kv_heads: int
) -> None:
    if plan.length != state.x.shape[-2] or len(plan.tokens) != len(layers):
        raise base.PruningError(
            f"The plan is for {plan.length} tokens in {len(plan.tokens)} layers; got "
            f"{state.x.shape[-2]} tokens and {len(layers)} layers."
        )
    size = max(1, plan.heads[0] // kv_heads)
    if plan.heads[0] % kv_heads or any(h % size for h in plan.heads):
        raise base.PruningError(
            f"The plan's heads {plan.heads} are not multiples of the query heads that "
            f"share each of the {kv_heads} KV heads."
        )
