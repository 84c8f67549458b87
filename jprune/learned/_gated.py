"""Weights times gates whose probabilities are trained."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import selection, tree
from jprune._core import base
from jprune.learned import controllers, effective
from jprune.learned._reparameterization import (
    Reparameterization,
    masks_by,
    no_penalty,
)
from jprune.links import as_pruner


def gated(
    draw: Callable[[jax.Array, jax.Array], jax.Array],
    mean: Callable[[jax.Array], jax.Array] | None = None,
    *,
    logit: float,
    units: Literal["output", "input"] | None = None,
    layout: tree.KernelLayout = tree.kernel_axes,
    final: base.Pruner | None = None,
    penalty: Callable[..., jax.Array] = no_penalty,
) -> Reparameterization:
    """Multiplies weights or channels by random gates whose logits a are trained.

        z = w c,   c ~ draw(a),   dL/da = w g dc/da   with g = dL/dz

    The masks keep the gates whose value without noise is positive: `mean(a) > 0`, or
    a > 0 for binary gates.

    Args:
      draw: `(logits, key) -> gates` in [0, 1] for one leaf, differentiable in the
        logits: `jprune.gates.hard_concrete`, or `gumbel_gate` at a temperature.
      mean: `logits -> gates` without noise, by which `finish` multiplies the kept
        weights; None for binary gates, which are 1 where kept.
      logit: initial logit of all gates.
      units: what has one gate: None for each weight, "output" or "input" for each
        output or input channel.
      layout: `(path, leaf) -> KernelAxes`, the roles of the axes.
      final: pruner of the logits for `finish`; None to finish with the masks in force.
      penalty: `(params, logits, step) -> scalar` to add to the loss, such as the price
        of open gates.

    Returns:
      A `Reparameterization` for `learn_masks`, whose aux are the logits.

    Raises:
      PruningError: if `units` is neither None, "output" nor "input", or `final` is not
        an Optax transform.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (16, 4))
      >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] - x[:, 3:]) ** 2)
      >>> def price(params, logits, step):
      ...   open_ = jax.tree.map(jp.gates.hard_concrete_nonzero, logits)
      ...   return 0.1 * (1 - jp.gates.expected_sparsity(logits, open_))
      >>> method = jp.learned.learn_masks(
      ...     loss,
      ...     jp.learned.gated(
      ...         jp.gates.hard_concrete, jp.gates.hard_concrete_mean, logit=2.0,
      ...         final=jp.keep_top(0.75), penalty=price),
      ...     weights=optax.set_to_zero(), scores=optax.adam(0.1))
      >>> state = method.init({"kernel": jnp.ones((4, 1))}, jax.random.key(1))
      >>> for _ in range(40):
      ...   state, info = method.step(state, x)
      >>> method.finish(state)[1]["kernel"][:, 0].tolist()
      [False, False, False, True]

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018,
      arXiv:1712.01312, equation 5.
    """
    if units not in (None, "output", "input"):
        raise base.PruningError(
            f"units must be None, 'output' or 'input'; got {units!r}."
        )
    final = final if final is None else as_pruner(final)

    def init(params: base.Params, key: jax.Array) -> Any:
        del key
        return _equal_logits(params, units, layout, logit)

    def masks(params: base.Params, logits: Any, before: Any, step: base.Scalar):
        del params, before, step
        return jax.tree.map(lambda a: (a if mean is None else mean(a)) > 0, logits)

    def noisy(params: base.Params, logits: Any, m: Any, key: jax.Array):
        del m
        keys = optax.tree.split_key_like(key, logits)
        drawn = jax.tree.map(draw, logits, keys)
        return jax.tree.map(effective.soft_masked, params, drawn)

    def finish(params: base.Params, logits: Any, m: Any, step: base.Scalar):
        m = m if final is None else masks_by(final, logits, step)
        if mean is None:
            return params, m
        static = jax.tree.map(mean, logits)
        return jax.tree.map(effective.soft_masked, params, static), m

    return Reparameterization(init, masks, noisy, finish, penalty)


def constrained(
    method: Reparameterization,
    sparsity: Callable[[base.Params, Any], jax.Array],
    target: base.Sparsity,
) -> Reparameterization:
    """Brings a method's expected sparsity to a target by an augmented Lagrangian.

        L + lambda_1 (target - s) + lambda_2 (target - s)^2

    minimised over weights and aux, maximised over the multipliers, which one
    optimizer trains together with the method's own aux.

    Args:
      method: the `Reparameterization` to constrain, as from `gated`.
      sparsity: `(params, aux) -> s`, a scalar in [0, 1] that is differentiable in the
        method's aux, such as `jprune.gates.expected_sparsity`.
      target: target sparsity in [0, 1], or a schedule of the step.

    Returns:
      A `Reparameterization` whose aux is the pair of the method's own and the
      multipliers.

    Raises:
      PruningError: if the target is a number outside [0, 1].

    Example:
      The gradient for the linear multiplier is reversed, -(target - s), so that
      descent raises it:

      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> def sparsity(params, logits):
      ...   open_ = jax.tree.map(jax.nn.sigmoid, logits)
      ...   return jp.gates.expected_sparsity(logits, open_)
      >>> method = constrained(gated(jp.gates.hard_concrete, logit=0.0), sparsity, 0.75)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> logits, multipliers = method.init(params, jax.random.key(0))
      >>> slope = jax.grad(method.penalty, 1)(params, (logits, multipliers), 0)[1]
      >>> logits["kernel"].shape, float(slope.linear)
      ((2, 2), -0.25)

    References:
      Wang et al., Structured Pruning of Large Language Models, 2019,
      arXiv:1910.04732. See `jprune.learned.controllers.lagrangian`.
    """
    selection.check_sparsity(target)

    def inner(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, aux, *rest: f(params, aux[0], *rest)

    def init(params: base.Params, key: jax.Array) -> Any:
        return method.init(params, key), controllers.init_multipliers()

    def penalty(params: base.Params, aux: Any, step: base.Scalar) -> jax.Array:
        own, multipliers = aux
        value = target(step) if callable(target) else target
        charge = controllers.lagrangian(sparsity(params, own), value, multipliers)
        return method.penalty(params, own, step) + charge

    def settle(params: base.Params, aux: Any, step: base.Scalar) -> Any:
        return method.settle(params, aux[0], step), aux[1]

    return Reparameterization(
        init,
        inner(method.masks),
        inner(method.effective),
        inner(method.finish),
        penalty,
        settle,
    )


def _equal_logits(
    params: base.Params, role: str | None, layout: tree.KernelLayout, logit: float
) -> Any:
    """The same logit for each weight, or for each index of some axes."""

    def leaf(path: str, w: jax.Array) -> jax.Array:
        if role is None:
            return jnp.full_like(w, logit, jnp.float32)
        stay = getattr(layout(path, w), role)
        shape = [n if i in stay else 1 for i, n in enumerate(np.shape(w))]
        return jnp.full(shape, logit, jnp.float32)

    return tree.map_with_path(leaf, params)
