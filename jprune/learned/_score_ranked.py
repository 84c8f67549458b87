"""Masks from the ranking of scores that are trained beside the weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import selection, tree
from jprune._core import base, precision
from jprune.learned import effective
from jprune.learned._reparameterization import (
    Reparameterization,
    masks_by,
    no_penalty,
)
from jprune.links import as_pruner

Masked = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(w, m, s) -> z` of one leaf, as in `jprune.learned.effective`."""


def zero_scores(params: base.Params, key: jax.Array) -> base.Scores:
    """Returns a zero for each weight, in float32 or wider: an `init`."""
    del key
    return jax.tree.map(lambda w: jnp.zeros_like(precision.wide(w)), params)


def score_ranked(
    pruner: base.Pruner,
    *,
    init: Callable[[base.Params, jax.Array], base.Scores] = zero_scores,
    masked: Masked = effective.score_masked,
    final: base.Pruner | None = None,
    penalty: Callable[..., jax.Array] = no_penalty,
) -> Reparameterization:
    """Masks weights by the ranking of trained scores, one score s for each weight.

        m = pruner(s),   z = m w,   dL/ds := w g   with g = dL/dz

    The gradient passes straight through the ranking, so that the scores of pruned
    weights move as well, and pruned weights can return.

    Args:
      pruner: links from scores to masks: `keep_*`, after `pool_over_*` for channels.
        It sees the scores as gradients and as params; its state is not kept between
        steps.
      init: `(params, key) -> scores`, the initial scores; zeros by default.
      masked: `(w, m, s) -> z` for one leaf, from `jprune.learned.effective`:
        `score_masked` if the pruner ranks s, `size_masked` if it ranks |s|,
        `sign_masked` to use the sign of s as well.
      final: pruner for `finish`; None to finish with the masks in force.
      penalty: `(params, scores, step) -> scalar` to add to the loss.

    Returns:
      A `Reparameterization` for `learn_masks`, whose aux are the scores.

    Raises:
      PruningError: if a pruner is not an Optax transform.

    Example:
      Scores that are trained over frozen weights:

      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - 2 * x[:, 3:]) ** 2)
      >>> method = jp.learned.learn_masks(
      ...     loss, jp.learned.score_ranked(jp.keep_top(0.75)),
      ...     weights=optax.set_to_zero(), scores=optax.sgd(0.1))
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(1))
      >>> for _ in range(5):
      ...   state, info = method.step(state, x)
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, False, False, True]

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020,
      arXiv:1911.13299, equation 4. Sanh et al., Movement Pruning: Adaptive Sparsity
      by Fine-Tuning, 2020, arXiv:2005.07683, equations 2 to 4.
    """
    pruner = as_pruner(pruner)
    final = final if final is None else as_pruner(final)

    def masks(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        del params, before
        return masks_by(pruner, s, step)

    def through(params: base.Params, s: base.Scores, m: base.Masks, key: Any):
        del key
        return jax.tree.map(masked, params, m, s)

    def finish(params: base.Params, s: base.Scores, m: Any, step: base.Scalar):
        m = m if final is None else masks_by(final, s, step)
        return jax.tree.map(masked, params, m, s), m

    return Reparameterization(init, masks, through, finish, penalty)


def swapped(method: Reparameterization, share: optax.Schedule) -> Reparameterization:
    """Limits the change of masks at each step to a share of the possible swaps.

    A swap is possible where a pruned score of a leaf ranks before a kept one. Each step
    makes the clearest swaps: the highest pruned scores come in, the lowest kept ones go
    out. Every leaf keeps its count.

    Args:
      method: `Reparameterization` whose aux are scores, as from `score_ranked` of
        `keep_top`; its masks are the initial ones. A pattern such as N:M is lost by
        swaps.
      share: `step -> fraction` of the possible swaps to make, in [0, 1], rounded up to
        whole swaps. At 0 the masks no longer change.

    Returns:
      The `Reparameterization` with these masks.

    Raises:
      PruningError: at `init`, if a mask has another shape than its scores, as masks of
        channels have.

    Example:
      Two swaps are possible, 1 for 5 and 2 for 4; half of them is one:

      >>> import jax.numpy as jnp, jprune as jp
      >>> method = swapped(score_ranked(jp.keep_top(0.5)), lambda step: 0.5)
      >>> before = {"w": jnp.array([True, True, False, False])}
      >>> scores = {"w": jnp.array([1.0, 2.0, 4.0, 5.0])}
      >>> method.masks(scores, scores, before, 0)["w"].tolist()
      [False, True, False, True]

    References:
      Zhang et al., Lottery Jackpots Exist in Pre-trained Models, 2021,
      arXiv:2104.08700 (short restriction).
    """

    def masks(params: base.Params, s: base.Scores, before: Any, step: base.Scalar):
        if before is None:
            initial = method.masks(params, s, before, step)
            _check_shapes(s, initial)
            return initial
        return _swap(before, s, share(step))

    return method._replace(masks=masks)


def _check_shapes(s: base.Scores, masks: base.Masks) -> None:
    def leaf(path: str, x: jax.Array, m: jax.Array) -> None:
        if m.shape != x.shape:
            raise base.PruningError(
                f"{path!r} has a mask of shape {m.shape}, scores of {x.shape}: "
                "swaps need a mask entry for each score."
            )

    tree.map_with_path(leaf, s, masks)


def _swap(masks: base.Masks, s: base.Scores, share: base.Scalar) -> base.Masks:
    """Swaps a share of the pruned scores that exceed kept ones of their leaf."""
    count = functools.partial(jnp.sum, dtype=jnp.int32)
    best = selection.top_k_per_leaf(s, jax.tree.map(count, masks))
    comes = jax.tree.map(lambda b, m: b & ~m, best, masks)
    goes = jax.tree.map(lambda b, m: m & ~b, best, masks)
    swaps = jax.tree.map(lambda c: _ceil_share(count(c), share), comes)
    among = lambda x, c: jnp.where(c, x, -jnp.inf)  # noqa: E731
    comes = selection.top_k_per_leaf(jax.tree.map(among, s, comes), swaps)
    least = jax.tree.map(jnp.negative, s)
    goes = selection.top_k_per_leaf(jax.tree.map(among, least, goes), swaps)
    return jax.tree.map(lambda m, c, g: (m & ~g) | c, masks, comes, goes)


def _ceil_share(n: jax.Array, share: base.Scalar) -> jax.Array:
    part = n.astype(jnp.float32) * jnp.asarray(share, jnp.float32)
    return jnp.minimum(jnp.ceil(part).astype(jnp.int32), n)
