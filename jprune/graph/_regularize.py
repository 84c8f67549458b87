"""Sparse training: Optax links that weaken entries of groups before their removal.

They add to the gradients, so they come before the optimizer in `optax.chain`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import tree
from jprune._core import base
from jprune.graph._scores import group_scores, spread_to_params
from jprune.graph._trace import Graph


def _strengths(graph: Graph, params: base.Params) -> dict[str, jax.Array]:
    """Returns each entry's root of the mean, over members, of its squared norm."""
    squares = jax.tree.map(lambda w: jnp.square(w) if _floats(w) else w, params)
    found = group_scores(graph, squares, normalize=None)
    return {name: jnp.sqrt(s) for name, s in found.items()}


def _floats(w: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(w), jnp.floating))


def _deficit(strength: jax.Array) -> jax.Array:
    """Returns how far each entry is below the strongest one, scaled to [0, 1]."""
    most, least = strength.max(), strength.min()
    return (most - strength) / jnp.maximum(most - least, jnp.finfo(strength.dtype).tiny)


def _pulled(graph: Graph, grads: Any, params: Any, rates: Mapping[str, Any]) -> Any:
    """Adds to the gradients each weight times the sum of its entries' decay rates."""
    pull = spread_to_params(graph, rates)
    return jax.tree.map(
        lambda g, w, r: g + (r * w).astype(g.dtype) if _floats(w) else g,
        grads,
        params,
        pull,
    )


def add_group_decay(
    graph: Graph, rate: base.Scalar = 5e-4, *, base_of_power: float = 16.0
) -> optax.GradientTransformation:
    """DepGraph's group sparsity: decays the weights of weak entries faster.

        g[k] <- g[k] + rate * b^d_k * w[k],    d_k = (max I - I_k) / (max I - min I)

    for each group that the weight belongs to, with I_k the root of the mean, over
    members, of the squared norm of slice k.

    Args:
      graph: the recorded function.
      rate: decay of the strongest entry, non-negative; may be traced.
      base_of_power: b, the ratio between the weakest and the strongest entry's decay.

    Returns:
      An Optax link; its `update` needs the params.

    Raises:
      PruningError: at `update`, if the params are not given.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 0.1]]), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> tx = optax.chain(jg.add_group_decay(graph, 0.1), optax.sgd(1.0))
      >>> zeros = optax.tree.zeros_like(params)
      >>> (100 * tx.update(zeros, tx.init(params), params)[0]["in"]).round()
      Array([[-10., -16.]], dtype=float32)

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900,
      equation 6, with the weights of its released code, b = 2^4.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _needed(params, "add_group_decay")
        rates = {
            name: rate * base_of_power ** _deficit(s)
            for name, s in _strengths(graph, params).items()
        }
        return _pulled(graph, updates, params, rates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class GrowingState(NamedTuple):
    """State of `add_growing_decay`.

    Attributes:
      count: int32 scalar, number of updates so far.
      rates: group name -> current decay of each entry, `(size,)`.
    """

    count: base.Scalar
    rates: dict[str, jax.Array]


def add_growing_decay(
    graph: Graph, growth: float = 1e-4, *, every: int = 10, begin: float = 0.0
) -> optax.GradientTransformation:
    """Growing regularization: increases the decay of weak entries over time.

    Every `every` updates, the decay of entry k grows by `growth * d_k`, with d_k as
    in `add_group_decay`; that of the strongest entry does not grow.

    Args:
      graph: the recorded function.
      growth: increment of the weakest entry's decay.
      every: number of updates between two increments, positive.
      begin: initial decay of all entries.

    Returns:
      An Optax link; its `update` needs the params.

    Raises:
      PruningError: if `every` is not positive; at `update`, if the params are not
        given.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 0.1]]), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> link = jg.add_growing_decay(graph, 0.5, every=1)
      >>> _, state = link.update(params, link.init(params), params)
      >>> state.rates["in[1]"]
      Array([0. , 0.5], dtype=float32)

    References:
      Wang et al., Neural Pruning via Growing Regularization, 2020, arXiv:2012.09243;
      the growth by relative strength is that of DepGraph's released code.
    """
    if every < 1:
        raise base.PruningError(f"every must be at least 1 update; got {every}.")

    def init(params: base.Params) -> GrowingState:
        del params
        rates = {n: jnp.full(g.size, begin) for n, g in graph.groups.items()}
        return GrowingState(jnp.zeros((), jnp.int32), rates)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _needed(params, "add_growing_decay")
        grows = jnp.where(jnp.asarray(state.count) % every == 0, growth, 0.0)
        rates = {
            name: state.rates[name] + grows * _deficit(s)
            for name, s in _strengths(graph, params).items()
        }
        new = GrowingState(optax.safe_increment(state.count), rates)
        return _pulled(graph, updates, params, rates), new

    return optax.GradientTransformation(init, update)


def add_l1(
    rate: base.Scalar, where: tree.Where, masks: base.Masks | None = None
) -> optax.GradientTransformation:
    """Adds the gradient of an L1 penalty: g <- g + rate * sign(w).

    On the scales of normalizations, this is network slimming; with masks, only the
    weights that will be removed are penalised, as in MaskSparsity.

    Args:
      rate: weight of the penalty, non-negative; may be traced.
      where: the penalised leaves, a `jprune.tree.Where` such as ".*/scale".
      masks: the params' tree; True exempts a weight. None exempts none.

    Returns:
      An Optax link; its `update` needs the params.

    Raises:
      PruningError: at `update`, if the predicate selects no leaf, or the params are not
        given.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> params = {"scale": jnp.array([2.0, -1.0])}
      >>> link = jg.add_l1(0.1, jp.matching("scale"))
      >>> zeros = {"scale": jnp.zeros(2)}
      >>> link.update(zeros, link.init(params), params)[0]["scale"]
      Array([ 0.1, -0.1], dtype=float32)

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming,
      2017, arXiv:1708.06519, equation 1. For the masks: Jiang et al., Pruning-aware
      Sparse Regularization for Network Pruning (MaskSparsity), 2022,
      arXiv:2201.06776.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _needed(params, "add_l1")
        chosen = tree.flags(where, params)
        kept = jax.tree.map(lambda w: False, params) if masks is None else masks

        def leaf(g: Any, w: Any, mine: bool, keep: Any) -> Any:
            pull = jnp.where(keep, 0.0, rate * jnp.sign(w)).astype(g.dtype)
            return g + pull if mine else g

        return jax.tree.map(leaf, updates, params, chosen, kept), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _needed(params: Any, link: str) -> None:
    if params is None:
        raise base.PruningError(
            f"{link} needs the params: call tx.update(grads, state, params)."
        )
