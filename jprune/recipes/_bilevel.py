"""Bi-level pruning (BiP) with the published hyper-parameters."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from jprune import links, tree
from jprune._core import base
from jprune._core.deprecation import renamed_arguments
from jprune.learned import bilevel


@renamed_arguments(groups="units")
def bip(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    preset: Literal["paper", "reference"] = "paper",
    units: Literal["output", "input"] | None = None,
    layout: tree.KernelLayout = tree.kernel_axes,
    where: tree.Where = tree.is_kernel,
) -> base.Algorithm:
    """BiP: alternates gradient steps on weights and mask scores, sparse from step 0.

    The masks are at the target sparsity from the start. For other optimizers, batches
    or projections, use `jprune.learned.bilevel.bip`.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.learned.bilevel.bip`.
      sparsity: fraction to remove, in [0, 1]; may be traced or a schedule. Of all
        weights together, or, with `units`, of the channels of each layer.
      steps: total number of training steps, over which the learning rates decay.
      preset: "paper": the exact hypergradient with gamma 1, learning rates 0.01
        (weights) and 0.1 (scores). "reference": what the released code does in
        effect: weights are their own scores, learning rates 0.1, its own implicit
        term, and weight decay on both levels. Momentum is 0.9 in both.
      units: what is pruned as one: None for single weights, "output" for filters,
        "input" for the input channels of a kernel.
      layout: `(path, leaf) -> KernelAxes`, the roles of the axes.
      where: the leaves that can be pruned, a `jprune.tree.Where`.

    Returns:
      An `Algorithm`, as from `jprune.learned.bilevel.bip`.

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], or `preset` or
        `units` is not one of its values.

    Example:
      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (8, 16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - x[:, :1]) ** 2)
      >>> method = jp.recipes.bip(loss, 0.75, steps=10)
      >>> state = method.init({"kernel": jnp.ones((4, 1))})
      >>> for i in range(10):
      ...   state, info = method.step(state, x[:1], x[1])
      >>> float(info.sparsity)
      0.75

    References:
      Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022,
      arXiv:2210.04092, algorithm 1 and section 5. The released code ranks channels by
      the norm of their scores; here by the sum, whose gradient is the sum of theirs.
    """
    if preset not in ("paper", "reference"):
        raise base.PruningError(
            f'preset must be "paper" or "reference"; got {preset!r}.'
        )
    chosen = _as_published(steps) if preset == "paper" else _as_released(steps)
    pruner = _best(sparsity, units, layout)
    return bilevel.bip(loss, pruner, **chosen._asdict(), where=where)


class _Preset(NamedTuple):
    """Arguments of `bilevel.bip` that were published together."""

    lower: optax.GradientTransformation
    upper: optax.GradientTransformation
    hypergradient: bilevel.Hypergradient = bilevel.implicit_gradient
    tied: bool = False


def _as_published(steps: int) -> _Preset:
    cosine = lambda rate: optax.cosine_decay_schedule(rate, steps)  # noqa: E731
    return _Preset(_sgd(cosine(0.01)), _sgd(cosine(0.1)))


def _as_released(steps: int) -> _Preset:
    drops = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    decay = optax.add_decayed_weights(1e-4)
    return _Preset(
        optax.chain(decay, _sgd(optax.cosine_decay_schedule(0.1, steps))),
        optax.chain(decay, _sgd(optax.piecewise_constant_schedule(0.1, drops))),
        bilevel.reference_gradient,
        tied=True,
    )


def _best(
    sparsity: base.Sparsity, units: Any, layout: tree.KernelLayout
) -> base.Pruner:
    """Keeps the best of all weights together, or of the channels of each layer."""
    if units is None:
        return links.keep_top(sparsity, scope="global")
    summed = links.pool_over_axes(jnp.sum, keep=units, layout=layout)
    return optax.chain(summed, links.keep_top(sparsity))


def _sgd(rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)
