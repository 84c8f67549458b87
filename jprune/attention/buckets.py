"""Token pruning by learned thresholds, compiled for a few numbers of tokens.

How many tokens exceed a threshold is known only when the layer runs, but XLA compiles
for fixed shapes. So a layer is compiled for a few sizes, and at run time `lax.switch`
takes the smallest one that holds the tokens of every sentence in the batch: one
program, one compilation, and results that do not depend on the sizes.

    state = cascade.start(x, kv_heads, valid=valid, protected=first)
    for params, threshold in zip(layers, thresholds):
        state = threshold_layer(state, mix, finish, threshold, sizes)

Under `vmap` a switch computes all sizes and selects afterwards: batch the arrays
instead.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core import base
from jprune.attention import _choose, soft
from jprune.attention.cascade import Cascade


def threshold_layer(
    state: Cascade,
    mix: Callable[..., tuple[jax.Array, jax.Array]],
    finish: Callable[..., jax.Array],
    threshold: Any,
    sizes: Sequence[int],
) -> Cascade:
    """Returns the state after a layer that prunes tokens below a threshold.

    With S the tokens of a sentence that are left,

        s[j] = sum_h sum_(i in S) P[h, i, j] / (heads |S|)
        S   <- {j in S: s[j] > threshold, or j is protected}

    after the attention and before the rest of the layer. `soft.threshold_keep` is the
    differentiable version by which the threshold is learned.

    Args:
      state: state before the layer, from `cascade.start`. No heads are pruned.
      mix: `(x, valid, heads) -> (outputs, probs)`, as for `cascade.cascade_layer`.
      finish: `(x, outputs, heads) -> x`, likewise.
      threshold: threshold of the layer, may be traced. Protect any token that is always
        needed: otherwise a sentence may lose all of its tokens.
      sizes: static, ascending numbers of tokens to compile the layer for; the last is
        the state's.

    Returns:
      A `Cascade` of as many tokens as before, those that are left first and in order.
      Its scores are those of this layer; pruned tokens are no longer `valid`, and their
      x is undefined.

    Raises:
      PruningError: if the sizes do not ascend to the number of tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import attention as ja
      >>> from jprune.attention import cascade
      >>> look = jnp.array([0.6, 0.3, 0.1])  # of each token at all
      >>> mix = lambda x, valid, heads: (x[None], jnp.tile(look, (1, 3, 1)))
      >>> finish = lambda x, outputs, heads: x + outputs[0]
      >>> state = threshold_layer(
      ...     cascade.start(jnp.ones((3, 1)), 1), mix, finish, 0.2, (3,)
      ... )
      >>> state.positions.tolist(), state.valid.tolist()
      ([0, 1, 2], [True, True, False])

    References:
      Kim et al., Learned Token Pruning for Transformers, 2022, arXiv:2107.00910,
      equations 1 to 3.
    """
    _check(sizes, state.x.shape[-2])
    state, _ = packed(state)

    def attend(size: int) -> tuple[jax.Array, jax.Array]:
        some = _cut(state, size)
        outputs, probs = mix(some.x, some.valid, some.heads)
        # Averaged over the queries that are left; `mix` hides the other keys.
        seen = soft.mean_importance(probs, some.valid)
        missing = state.x.shape[-2] - size
        return _widen(outputs, missing, axis=-2), _widen(seen, missing, axis=-1)

    outputs, seen = _at_least(state.valid, sizes, attend)
    left = state.valid & ((seen > threshold) | state.protected)
    state, ids = packed(state._replace(valid=left, scores=seen))
    outputs = _choose.take(outputs, ids, axis=1)

    def conclude(size: int) -> jax.Array:
        some, said = _cut(state, size), outputs[..., :size, :]
        x = finish(some.x, said, some.heads)
        return _widen(x, state.x.shape[-2] - size, axis=-2)

    return state._replace(x=_at_least(state.valid, sizes, conclude))


def packed(state: Cascade) -> tuple[Cascade, jax.Array]:
    """Moves the tokens that are left to the front, in order.

    Args:
      state: any state.

    Returns:
      `(state, ids)`: the state with as many tokens as before, and the previous index of
      each, (..., tokens) int32, with which `jprune.attention.take` moves other arrays
      of the tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.attention import cascade
      >>> valid = jnp.array([True, False, True])
      >>> state, ids = packed(cascade.start(jnp.ones((3, 1)), 1, valid=valid))
      >>> ids.tolist(), state.valid.tolist()
      ([0, 2, 1], [True, True, False])
    """
    ids = jnp.argsort(~state.valid, axis=-1, stable=True).astype(jnp.int32)
    travelling = (state.x, state.positions, state.valid, state.protected, state.scores)
    x, positions, valid, protected, scores = _choose.take(travelling, ids)
    state = state._replace(
        x=x, positions=positions, valid=valid, protected=protected, scores=scores
    )
    return state, ids


def _at_least(valid: jax.Array, sizes: Sequence[int], run: Callable[[int], Any]) -> Any:
    """Runs the smallest size that holds the real tokens of every row."""
    count = jnp.max(jnp.sum(valid, axis=-1, dtype=jnp.int32), initial=0)
    which = jnp.searchsorted(jnp.asarray(sizes, jnp.int32), count)
    return lax.switch(which, [lambda n=n: run(n) for n in sizes])


def _cut(state: Cascade, size: int) -> Cascade:
    return state._replace(
        x=state.x[..., :size, :],
        positions=state.positions[..., :size],
        valid=state.valid[..., :size],
        protected=state.protected[..., :size],
        scores=state.scores[..., :size],
    )


def _widen(x: jax.Array, missing: int, axis: int) -> jax.Array:
    width = [(0, 0)] * x.ndim
    width[axis] = (0, missing)
    return jnp.pad(x, width)


def _check(sizes: Sequence[int], length: int) -> None:
    rising = all(a < b for a, b in itertools.pairwise(sizes))
    if not sizes or sizes[0] < 1 or not rising or sizes[-1] != length:
        raise base.PruningError(
            f"Sizes {tuple(sizes)} do not ascend from 1 or more to the {length} tokens."
        )
