"""Bi-level pruning, with the hyper-parameters that were published."""

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
    where: base.Predicate = tree.is_kernel,
) -> base.Algorithm:
    """BiP: masks and weights in turns, each by its gradient, at the target at once.

    For other optimizers, batches or projections compose `jprune.bilevel.bip` itself.

    Args:
      loss: `(params, batch) -> scalar`, as in `jprune.bilevel.bip`.
      sparsity: the fraction removed, in [0, 1]; may be traced or a schedule. Of all
        weights together, or, with groups, of the channels of each layer.
      steps: how many steps are to come; learning rates decay over them.
      preset: "paper" has the true hypergradient with gamma 1, rates 0.01 (weights)
        and 0.1 (scores); "reference" what the released code does in effect: weights
        that are their own scores, rates 0.1, its own implicit term, weight decay on
        both levels. Momentum 0.9 in both.
      units: None for single weights; "output" for filters, "input" for the input
        channels of a kernel.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.bilevel.bip`.

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], or `preset` or
        `units` is another word.

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
      arXiv:2210.04092, algorithm 1 and section 5. Its code ranks groups by the norm
      of their scores; here by the sum, which is what their gradients add up to.
    """
    if preset not in ("paper", "reference"):
        raise base.PruningError(f'preset is "paper" or "reference"; got {preset!r}.')
    chosen = _as_published(steps) if preset == "paper" else _as_released(steps)
    pruner = _best(sparsity, units)
    return bilevel.bip(loss, pruner, **chosen._asdict(), where=where)


class _Preset(NamedTuple):
    """What `bilevel.bip` takes; hyper-parameters that belong together."""

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


def _best(sparsity: base.Sparsity, units: Any) -> base.Pruner:
    """Of all weights together, or of the channels of each layer."""
    if units is None:
        return links.keep_top(sparsity, scope="global")
    summed = links.pool_over_axes(jnp.sum, keep=units)
    return optax.chain(summed, links.keep_top(sparsity))


def _sgd(rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)
