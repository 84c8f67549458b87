"""Roots of increasing functions of one unknown, such as a threshold for a whole tree.

The sum of a monotone function over all entries of a tree has to meet a target. The
function is only evaluated; nothing is sorted or gathered. So a mesh exchanges one
scalar per evaluation, and the target may be traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_HALVINGS = 10
_NEWTON_STEPS = 4


def bisect(
    excess: Callable[[jax.Array], jax.Array],
    low: jax.Array,
    high: jax.Array,
    halvings: int,
) -> tuple[jax.Array, jax.Array]:
    """Bisects the interval around the root of an increasing function.

    Args:
      excess: real -> real, not decreasing; its derivative is not used.
      low: scalar with excess(low) <= 0.
      high: scalar with excess(high) >= 0.
      halvings: number of bisections, static; each costs one evaluation.

    Returns:
      Both ends of the interval, which is 2^-halvings as wide as before, or as narrow
      as its type resolves.

    Example:
      >>> import jax.numpy as jnp
      >>> low, high = bisect(lambda x: x**2 - 2, jnp.float32(0), jnp.float32(2), 12)
      >>> round(float(low), 3), round(float(high), 3)
      (1.414, 1.415)
    """

    def halve(_: int, interval: tuple[jax.Array, jax.Array]):
        low, high = interval
        middle = low + (high - low) / 2
        above = excess(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    return lax.fori_loop(0, halvings, halve, (low, high))


def root(
    excess: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> jax.Array:
    """Returns x with excess(x) = 0, differentiable in all that `excess` closes over.

    Ten bisections and four Newton steps. The derivative is that of the implicit
    function, dx = -d(excess) / excess', in any mode and of any order.

    Args:
      excess: real -> real, increasing and smooth.
      low: scalar with excess(low) <= 0.
      high: scalar with excess(high) >= 0. The interval should not be much wider than
        the range in which `excess` bends.

    Returns:
      The root. Its derivative is zero where the slope of `excess` is zero.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def sqrt(y):
      ...     return root(lambda x: x * x - y, jnp.float32(0), jnp.float32(4))
      >>> float(sqrt(4.0)), float(jax.grad(sqrt)(4.0))
      (2.0, 0.25)
    """
    low, high = lax.stop_gradient((low, high))

    def solve(f: Callable[[jax.Array], jax.Array], guess: jax.Array) -> jax.Array:
        del guess
        least, most = bisect(f, low, high, _HALVINGS)

        def newton(_: int, x: jax.Array) -> jax.Array:
            value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
            return jnp.clip(x - _ratio(value, slope), least, most)

        return lax.fori_loop(0, _NEWTON_STEPS, newton, (least + most) / 2)

    def solve_tangent(f: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
        return _ratio(y, f(jnp.ones_like(y)))

    return lax.custom_root(excess, low, solve, solve_tangent)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Divides a by b, to 0 where b is 0."""
    none = b == 0
    return jnp.where(none, jnp.zeros_like(a), a / jnp.where(none, jnp.ones_like(b), b))
