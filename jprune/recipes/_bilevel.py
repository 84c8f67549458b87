"""Bi-level pruning, with the hyper-parameters that were published."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jprune import links, tree
from jprune._core import base
from jprune.learned import bilevel


def bip(
    loss: Callable[..., Any],
    sparsity: base.Sparsity,
    *,
    steps: int,
    preset: Literal["paper", "reference"] = "paper",
    groups: Literal["output", "input"] | None = None,
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
      groups: None for single weights; "output" for filters, "input" for the input
        channels of a kernel.
      where: which leaves can be pruned.

    Returns:
      An `Algorithm`: see `jprune.bilevel.bip`.

    Raises:
      PruningError: if the sparsity is a number outside [0, 1], or `preset` or
        `groups` is another word.

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
    if groups is None:
        pruner = links.keep_top(sparsity, scope="global")
    else:
        pooled = links.pool_over_axes(jnp.sum, keep=groups)
        pruner = optax.chain(pooled, links.keep_top(sparsity))
    if preset == "paper":
        lower, upper, rule = _sgd(0.01, steps), _sgd(0.1, steps), None
    else:
        lower = optax.chain(optax.add_decayed_weights(1e-4), _sgd(0.1, steps))
        drops = {steps // 2: 0.1, 3 * steps // 4: 0.1}
        stairs = optax.piecewise_constant_schedule(0.1, drops)
        upper = optax.chain(
            optax.add_decayed_weights(1e-4), optax.sgd(stairs, momentum=0.9)
        )
        rule = bilevel.reference_gradient
    return bilevel.bip(
        loss,
        pruner,
        lower=lower,
        upper=upper,
        hypergradient=rule or functools.partial(bilevel.implicit_gradient, gamma=1.0),
        tied=preset == "reference",
        where=where,
    )


def _sgd(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)
