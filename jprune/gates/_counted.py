"""Gates that are counted: the weights that each stands for, and what they remove."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base


def polarization(gates: Any) -> jax.Array:
    """Returns the mean of p (1 - p) over the gates of a tree.

    It is 0 if and only if all gates are 0 or 1. As a penalty it drives soft gates to 0
    or 1.

    Args:
      gates: tree of arrays in [0, 1], or one array.

    Returns:
      A float32 scalar in [0, 1/4].

    Example:
      >>> import jax.numpy as jnp
      >>> float(polarization(jnp.array([0.0, 0.5, 1.0, 0.5])))
      0.125

    References:
      Related, for scaling factors that end at 0 or at one a > 0: Zhuang et al.,
      Neuron-level Structured Pruning using Polarization Regularizer, NeurIPS 2020.
    """
    wide = [p.astype(jnp.float32) for p in jax.tree.leaves(gates)]
    size = sum(math.prod(p.shape) for p in wide)
    total = sum((jnp.sum(p * (1 - p)) for p in wide), jnp.zeros((), jnp.float32))
    return total / float(max(1, size))


def expected_sparsity(params: base.Params, probabilities: Any) -> jax.Array:
    """Returns the fraction of weights that gates remove in expectation.

    1 - sum_l c_l sum p_l / sum_l n_l, where leaf l has n_l weights and each of its
    gates stands for c_l of them. With masks for probabilities it is
    `jprune.sparsity`.

    Args:
      params: any pytree of arrays.
      probabilities: the params' tree of arrays in [0, 1], each of which broadcasts to
        its leaf along whole axes (one gate per weight or per channel), or is a scalar
        for the whole leaf. Leaves with an `optax.MaskedNode` or a scalar boolean have
        no gates and do not count.

    Returns:
      A float32 scalar in [0, 1], differentiable; 0 if there are no gates.

    Raises:
      PruningError: if gates do not fit their leaf; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
      >>> gates = {"w": jnp.array([[1.0, 0.5]]), "b": jnp.array(True)}
      >>> float(expected_sparsity(params, gates))
      0.25
    """
    found = weighted(params, probabilities)
    size = sum(c * math.prod(np.shape(p)) for c, p in found)
    if size == 0:
        return jnp.zeros((), jnp.float32)
    kept = (c / size * jnp.sum(p, dtype=jnp.float32) for c, p in found)
    return 1 - sum(kept, jnp.zeros((), jnp.float32))


def weighted(params: base.Params, gates: Any) -> list[tuple[int, Any]]:
    """Returns the gates of each leaf, with the number of weights per gate.

    Args:
      params: any pytree of arrays.
      gates: tree of gates, as `probabilities` in `expected_sparsity`.

    Returns:
      A list of `(weights per gate, gates)`, for each leaf that has gates.

    Raises:
      PruningError: if gates do not fit their leaf; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> params, gates = {"w": jnp.ones((3, 2))}, {"w": jnp.array([[1.0, 0.5]])}
      >>> [(n, p.shape) for n, p in weighted(params, gates)]  # a gate per column
      [(3, (1, 2))]
    """
    found: list[tuple[int, Any]] = []

    def leaf(path: str, w: Any, gates: Any) -> None:
        for p in filter(is_gate, jax.tree.leaves(gates)):  # none in a MaskedNode
            shape, fits = np.shape(w), np.shape(p)
            if fits != () and not (
                len(fits) == len(shape)
                and all(a in (1, b) for a, b in zip(fits, shape, strict=True))
            ):
                raise base.PruningError(
                    f"The gates of {path!r} have shape {fits}, which does not "
                    f"broadcast to the parameter's shape {shape}: each axis needs "
                    "size 1 or the full size."
                )
            found.append((math.prod(shape) // max(1, math.prod(fits)), p))

    tree.map_with_path(leaf, params, gates)
    return found


def is_gate(p: Any) -> bool:
    """Tells whether a leaf holds gates, and is not the mask of an unpruned leaf.

    Args:
      p: leaf of a tree of gates, an array or a number.

    Returns:
      False for a scalar boolean, which says that the leaf is kept whole; else True.

    Example:
      >>> import jax.numpy as jnp
      >>> gates = {"w": jnp.array([[1.0, 0.5]]), "b": jnp.array(True)}
      >>> {name: is_gate(p) for name, p in gates.items()}
      {'w': True, 'b': False}
    """
    return np.shape(p) != () or jnp.result_type(p).kind != "b"
