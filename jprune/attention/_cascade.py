"""The state of a cascade, and what one layer does to its tokens and heads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.deprecation import renamed_arguments
from jprune.attention import _choose, _heads
from jprune.attention._importance import head_importance, token_importance


class Cascade(NamedTuple):
    """State passed from layer to layer.

    Attributes:
      x: (..., tokens, hidden), the activations.
      positions: (..., tokens) int32, each token's position in the input.
      valid: (..., tokens) booleans, False for padding.
      protected: (..., tokens) booleans, True for tokens that are never pruned.
      scores: (..., tokens) float32, accumulated importance of each token.
      heads: (kept,) int32, indices of the KV heads that are left.
      alive: (..., kv heads) booleans, the heads left in each sample.
      head_scores: accumulated importance of heads, float32: (kv heads,) for the batch,
        or (..., kv heads) for each sample.
    """

    x: jax.Array
    positions: jax.Array
    valid: jax.Array
    protected: jax.Array
    scores: jax.Array
    heads: jax.Array
    alive: jax.Array
    head_scores: jax.Array


@renamed_arguments(groups="kv_heads")
def start(
    x: jax.Array,
    kv_heads: int,
    *,
    valid: jax.Array | None = None,
    protected: jax.Array | None = None,
    per_sample: bool = False,
) -> Cascade:
    """Returns the state before the first layer.

    Args:
      x: (..., tokens, hidden), embedded tokens.
      kv_heads: static, number of KV heads of a layer; without grouped-query attention,
        its number of heads.
      valid: (..., tokens) booleans, False for padding. All are real by default.
      protected: (..., tokens) booleans, True for tokens that are never pruned, such as
        the one that a classifier reads. None by default.
      per_sample: static; whether each sample has its own set of heads, which are masked
        and save nothing, instead of one set for the batch, whose complement is removed.

    Returns:
      A `Cascade`.

    Example:
      >>> import jax.numpy as jnp
      >>> state = start(jnp.ones((2, 3, 8)), kv_heads=4)  # two samples, three tokens
      >>> state.positions.tolist(), state.heads.tolist()
      ([[0, 1, 2], [0, 1, 2]], [0, 1, 2, 3])
    """
    # Zeros computed from x, so that on a mesh they are sharded like x: from JAX 0.12 on
    # `zeros_like` does not ensure that.
    none = (x[..., 0] > x[..., 0]).astype(jnp.float32)
    rows, tokens = x.shape[:-2], x.shape[-2]
    places = lax.broadcasted_iota(jnp.int32, (*rows, tokens), len(rows))
    heads = jnp.broadcast_to(none[..., :1], (*rows, kv_heads))
    return Cascade(
        x=x,
        positions=places + none.astype(jnp.int32),
        valid=none == 0 if valid is None else valid,
        protected=none > 0 if protected is None else protected,
        scores=none,
        heads=lax.iota(jnp.int32, kv_heads),
        alive=heads == 0,
        head_scores=heads if per_sample else jnp.zeros(kv_heads, jnp.float32),
    )


def credit(state: Cascade, outputs: jax.Array, probs: jax.Array) -> Cascade:
    """Adds one layer's importance of tokens and heads to the accumulated scores.

    Args:
      state: state with the tokens and heads of the layer.
      outputs: (..., heads, tokens, dim).
      probs: (..., heads, tokens, tokens), or (..., heads, 1, tokens) if already summed
        over the real queries.

    Returns:
      A `Cascade`.

    Raises:
      PruningError: if the heads of the outputs are not a multiple of the KV heads that
        are left.

    Example:
      >>> import jax.numpy as jnp
      >>> probs = jnp.array([[[1.0, 0.0], [0.75, 0.25]]])  # one head, two tokens
      >>> state = credit(start(jnp.ones((2, 1)), 1), jnp.ones((1, 2, 1)), probs)
      >>> state.scores.tolist(), state.head_scores.tolist()
      ([1.75, 0.25], [2.0])
    """
    looking = state.valid if probs.shape[-2] == state.valid.shape[-1] else None
    seen = token_importance(probs, looking, state.valid)
    said = head_importance(outputs, state.valid)
    said = _heads.sum_per_kv_head(said, state.heads.shape[0])
    if is_per_sample(state):
        total = state.head_scores + said
    else:
        whole = jnp.sum(said.reshape(-1, said.shape[-1]), axis=0)
        total = state.head_scores.at[state.heads].add(whole)
    return state._replace(scores=state.scores + seen, head_scores=total)


def prune_tokens(
    state: Cascade, count: int | None, outputs: jax.Array
) -> tuple[Cascade, jax.Array]:
    """Keeps the most important tokens of the state and of the heads' outputs.

    Args:
      state: state with the scores of this layer.
      count: static, tokens that stay; all if None.
      outputs: (..., heads, tokens, dim), pruned alike.

    Returns:
      `(state, outputs)` with `count` tokens, in their original order.

    Raises:
      PruningError: if there are fewer tokens than `count`.

    Example:
      >>> import jax.numpy as jnp
      >>> state, scores = start(jnp.ones((3, 1)), 1), jnp.array([2.0, 1.0, 3.0])
      >>> state = state._replace(scores=scores)
      >>> prune_tokens(state, 2, jnp.ones((1, 3, 1)))[0].positions.tolist()
      [0, 2]
    """
    if count is None or count == state.x.shape[-2]:
        return state, outputs
    ids = _choose.top_indices(
        state.scores, count, valid=state.valid, protected=state.protected
    )
    travelling = (state.x, state.positions, state.valid, state.protected, state.scores)
    x, positions, valid, protected, scores = _choose.take(travelling, ids)
    state = state._replace(
        x=x, positions=positions, valid=valid, protected=protected, scores=scores
    )
    return state, _choose.take(outputs, ids, axis=1)


def prune_heads(state: Cascade, count: int) -> Cascade:
    """Keeps the most important KV heads, each with the query heads that it serves.

    Args:
      state: state with the scores of all layers so far.
      count: static, KV heads that stay.

    Returns:
      A `Cascade`.

    Raises:
      PruningError: if fewer than `count` are left.

    Example:
      >>> import jax.numpy as jnp
      >>> state, scores = start(jnp.ones((5, 1)), 3), jnp.array([2.0, 1.0, 3.0])
      >>> prune_heads(state._replace(head_scores=scores), 2).heads.tolist()
      [0, 2]
    """
    if count == state.heads.shape[0]:
        return state
    if is_per_sample(state):
        alive = _heads.keep_heads(state.head_scores, count, state.alive)
        return state._replace(alive=alive)
    best = _choose.top_indices(_choose.take(state.head_scores, state.heads), count)
    return state._replace(heads=_choose.take(state.heads, best))


def restore(state: Cascade, into: jax.Array) -> jax.Array:
    """Writes tokens back to their positions in the input.

    Args:
      state: state after some layers.
      into: (..., length, hidden), the values at pruned positions.

    Returns:
      An array in the shape of `into`.

    Example:
      >>> import jax.numpy as jnp
      >>> state = start(jnp.ones((3, 1)), 1)
      >>> state = state._replace(scores=jnp.array([2.0, 1.0, 3.0]))
      >>> state, _ = prune_tokens(state, 2, jnp.ones((1, 3, 1)))
      >>> restore(state, jnp.zeros((3, 1))).tolist()
      [[1.0], [0.0], [1.0]]
    """
    return _choose.put(into, state.positions, state.x)


def is_per_sample(state: Cascade) -> bool:
    """Returns whether each sample has its own set of heads."""
    return state.head_scores.ndim == state.alive.ndim and state.alive.ndim > 1
