"""Hypergradients with the Hessian of the lower level, to compare with BiP's.

The solution of the lower level depends on the mask by the implicit function theorem:

    dw*/dm = -H^-1 C,   H = Hessian of L_lower(m w) + gamma/2 |w|^2 in w,
                        C = its derivative in w and then in m,
    dF/dm = w g - C^T H^-1 (m g),   g the upper loss's gradient at m w.

C and H are only multiplied by vectors, at the cost of one or two gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg

from jprune._core import base

Loss = Callable[[base.Params], jax.Array]
Inverse = Callable[[Callable[[base.Params], base.Params], base.Params], base.Params]
"""`(v -> H v, b) -> H^-1 b`, exactly or approximately."""


def implicit_gradient_with(
    inverse: Inverse,
    lower_loss: Loss,
    upper_loss: Loss,
    params: base.Params,
    masks: base.Params,
    *,
    gamma: float,
) -> base.Scores:
    """Returns dF/dm by the implicit function theorem, with a solver for H^-1 b.

    At weights that do not solve the lower level, it is the derivative of what a Newton
    step from there would give.

    Args:
      inverse: solver for H^-1 b: `conjugate_gradient()`, `neumann(...)` or another.
      lower_loss: `z -> scalar`, the loss that the weights minimize.
      upper_loss: `z -> scalar`, the loss that the mask minimizes.
      params: the weights w, a tree of floating arrays.
      masks: the masks m, a tree of floating arrays in the params' shapes.
      gamma: regularization strength of the lower level, positive.

    Returns:
      The params' tree: the gradient in m, for pruned weights too.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda z: 0.5 * jnp.sum((z - 3) ** 2)
      >>> w, m = jnp.array([1.5]), jnp.array([1.0])  # w solves w - 3 + w = 0
      >>> solver = conjugate_gradient()
      >>> implicit_gradient_with(solver, loss, loss, w, m, gamma=1.0)
      Array([-2.25], dtype=float32)

    References:
      Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022,
      arXiv:2210.04092, section 4 (what the closed form comes from).
    """
    product = lambda w, m: jax.tree.map(jnp.multiply, w, m)  # noqa: E731

    def slope(w: base.Params, m: base.Params) -> base.Params:
        own = jax.grad(lambda w: lower_loss(product(w, m)))(w)
        return jax.tree.map(lambda g, w: g + jnp.asarray(gamma, w.dtype) * w, own, w)

    def hessian(v: base.Params) -> base.Params:
        return jax.jvp(lambda w: slope(w, masks), (params,), (v,))[1]

    g = jax.grad(upper_loss)(product(params, masks))
    v = inverse(hessian, product(g, masks))
    (answer,) = jax.vjp(lambda m: slope(params, m), masks)[1](v)
    return jax.tree.map(lambda w, g, a: w * g - a, params, g, answer)


def conjugate_gradient(*, tol: float = 1e-6, maxiter: int | None = None) -> Inverse:
    """Solves H v = b by conjugate gradients; H must be positive definite.

    Args:
      tol: tolerance on the norm of the residual relative to that of b.
      maxiter: maximum number of iterations; None for ten times the number of weights.

    Returns:
      A solver for `implicit_gradient_with`.

    Example:
      >>> import jax.numpy as jnp
      >>> hessian = lambda v: jnp.array([2.0, 4.0]) * v  # diagonal
      >>> conjugate_gradient()(hessian, jnp.array([2.0, 2.0])).round(4).tolist()
      [1.0, 0.5]
    """

    def solve(hessian: Any, b: base.Params) -> base.Params:
        return jax.scipy.sparse.linalg.cg(hessian, b, tol=tol, maxiter=maxiter)[0]

    return solve


def neumann(*, terms: int, rate: float) -> Inverse:
    """Approximates H^-1 b by eta sum over i < terms of (1 - eta H)^i b.

    Args:
      terms: number of terms, at least 1; each costs about one gradient.
      rate: eta, positive and below 2 divided by the largest eigenvalue of H.

    Returns:
      A solver for `implicit_gradient_with`.

    Raises:
      PruningError: if a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> solve = neumann(terms=3, rate=0.25)  # 0.25 (1 + 0.5 + 0.25) * 2; H^-1 b = 1
      >>> solve(lambda v: 2 * v, jnp.array([2.0])).tolist()
      [0.875]

    References:
      Lorraine et al., Optimizing Millions of Hyperparameters by Implicit
      Differentiation, 2019, arXiv:1911.02590, equation 8.
    """
    if terms < 1 or rate <= 0:
        raise base.PruningError(f"terms >= 1 and rate > 0; got {terms} and {rate}.")

    def solve(hessian: Any, b: base.Params) -> base.Params:
        def term(carry: Any, _: None) -> tuple[Any, None]:
            power, total = carry
            power = jax.tree.map(
                lambda p, h: p - jnp.asarray(rate, h.dtype) * h, power, hessian(power)
            )
            return (power, jax.tree.map(jnp.add, total, power)), None

        (_, total), _ = jax.lax.scan(term, (b, b), length=terms - 1)
        return jax.tree.map(lambda t: jnp.asarray(rate, t.dtype) * t, total)

    return solve
