"""Structural methods beside pruners: sparse training, initial widths, and depth."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jprune import graph as jg
from jprune._core import base


def mask_sparsity(
    graph: jg.Graph, keep: Mapping[str, Any], rate: base.Scalar, scales: base.Predicate
) -> optax.GradientTransformation:
    """MaskSparsity: L1 regularization of only those scales that will be pruned.

        g <- g + rate * sign(scale) * (1 - keep)

    L1 on all scales, as in network slimming, also shrinks the channels that stay.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      keep: group name -> booleans `(size,)`, the entries to keep: those of another
        criterion, or `jg.kept_by` after a first training with `jg.add_l1`.
      rate: non-negative strength of the L1 term; may be traced.
      scales: predicate for the scales, such as `jp.matching(".*/scale")`.

    Returns:
      An Optax link, to place before the optimizer in `optax.chain`.

    Raises:
      PruningError: if a group does not exist; at `update`, if params are missing or
        the predicate selects no leaf.

    Example:
      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> net = lambda p, x: jnp.tanh(x @ p["in"] * p["scale"]) @ p["out"]
      >>> params = {"in": jnp.ones((1, 2)), "out": jnp.ones((2, 1))}
      >>> params["scale"] = jnp.array([2.0, -1.0])
      >>> graph = jg.trace(net, params, jnp.ones((5, 1)))
      >>> keep = {name: jnp.array([True, False]) for name in graph.groups}
      >>> link = jp.recipes.mask_sparsity(graph, keep, 0.1, jp.matching("scale"))
      >>> zeros = jax.tree.map(jnp.zeros_like, params)
      >>> link.update(zeros, link.init(params), params)[0]["scale"]
      Array([ 0. , -0.1], dtype=float32)

    References:
      Jiang et al., Pruning-aware Sparse Regularization for Network Pruning, 2022,
      arXiv:2201.06776. Scales that share a stream are regularized together where
      their group's entry is pruned, as in the paper for residual networks.
    """
    jg.check_known(graph.groups, keep)
    return jg.add_l1(rate, scales, jg.param_masks(graph, keep))


def precrop(
    graph: jg.Graph, densities: Mapping[str, float], *, min_kept: int = 1
) -> dict[str, int]:
    """PreCropping: sets widths at initialization from the densities of a sparse mask.

    With d_l the density of kernel l, of C_in x C_out channels,

        min over c of sum over l of (log c_in(l) c_out(l) - log d_l C_in C_out)^2

    so that each dense layer has about as many weights as unstructured pruning would
    keep in it.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      densities: path of a kernel -> fraction of its weights that is kept, in [0, 1];
        for 0, one weight is kept. Other kernels are ignored.
      min_kept: minimum number of entries that each group keeps.

    Returns:
      Group name -> size, as `jg.first_entries` takes it.

    Raises:
      PruningError: if a leaf does not exist, a number is out of range, or no group may
        shrink.

    Example:
      Widths from the densities of SNIP, and the network cropped to them:

      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.arange(8.0).reshape(2, 4), "out": 4 * jnp.ones((4, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 2)))
      >>> _, masks = jp.prune(params, jp.recipes.snip(0.5), params)
      >>> leaves = jp.summary(params, masks)["leaves"]
      >>> densities = {path: 1 - leaf["sparsity"] for path, leaf in leaves.items()}
      >>> densities
      {'in': 0.5, 'out': 0.5}
      >>> sizes = jp.recipes.precrop(graph, densities)
      >>> plan = jg.make_plan(graph, jg.first_entries(graph, sizes))
      >>> small_fn, small_params = jg.shrink(graph, params, plan)
      >>> small_params["in"].shape
      (2, 2)

    References:
      Cai et al., Structured Pruning is All You Need for Pruning CNNs at
      Initialization, 2022, arXiv:2203.02549. In a chain each width follows from the
      one before; coupled groups, such as a residual stream, are solved here by least
      squares in logarithms.
    """
    shares = {}
    for path, density in densities.items():
        if not 0 <= density <= 1:
            raise base.PruningError(
                f"The density of {path!r} must be in [0, 1]; got {density}."
            )
        if path not in graph.axes:
            raise base.PruningError(f"The traced params have no leaf {path!r}.")
        size = np.prod([d.size for d in graph.axes[path]], dtype=float)
        shares[path] = max(float(density), float(1 / max(size, 1.0)))
    return jg.fit_widths(graph, shares, min_kept=min_kept)


def layer_lottery(
    graph: jg.Graph,
    params: base.Params,
    score: Callable[[Callable[..., Any], base.Params], base.Scores],
    count: int,
) -> list[str]:
    """Layer tickets: removes residual branches one at a time, by mean weight score.

    Each round scores the remaining function anew and removes the branch whose own
    weights have the smallest mean score. It can run at initialization or later.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      params: the full params.
      score: `(fn, params) -> scores`: a score for each weight, such as |w g|, in the
        tree of the remaining params, for the remaining function.
      count: number of branches to remove; static.

    Returns:
      Names of branches in the order of removal, as `jg.without_branches` takes them.

    Raises:
      PruningError: if there are fewer branches, or a score is NaN.

    Example:
      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> def net(p, x):
      ...   x = x + jnp.tanh(x @ p["a"])
      ...   return x + jnp.tanh(x @ p["b"])
      >>> params = {"a": jnp.ones((3, 3)), "b": jnp.zeros((3, 3))}
      >>> graph = jg.trace(net, params, jnp.ones((2, 3)))
      >>> magnitudes = lambda fn, params: jax.tree.map(jnp.abs, params)
      >>> names = jp.recipes.layer_lottery(graph, params, magnitudes, 1)
      >>> fn, rest = jg.without_branches(graph, params, names)
      >>> names, rest["b"].shape
      (['b'], (0,))

    References:
      Jordao et al., When Layers Play the Lottery, all Tickets Win at Initialization,
      2023, arXiv:2301.10835. The paper scores at initialization with data, as GraSP
      does; here the criterion is an argument. Scores are means, not sums, so that a
      narrow block is not at a disadvantage.
    """
    if count < 0:
        raise base.PruningError(f"count must not be negative; got {count}.")
    names: list[str] = []
    for _ in range(count):
        fn, rest = jg.without_branches(graph, params, names)
        means = _means_of_branches(graph, rest, score(fn, rest))
        if not means:
            raise base.PruningError(
                f"Cannot remove {count} branches: the graph has only {names}."
            )
        names.append(min(means, key=lambda name: means[name]))
    return names


def _means_of_branches(
    graph: jg.Graph, params: base.Params, scores: base.Scores
) -> dict[str, float]:
    """Mean score of each branch that the params still have."""
    leaves = zip(graph.axes, jax.tree.leaves(params), strict=True)
    present = {path for path, w in leaves if np.size(w)}
    means = {
        name: float(each)
        for name, each in jg.branch_scores(graph, scores).items()
        if present.intersection(jg.branches(graph)[name].leaves)
    }
    if any(np.isnan(each) for each in means.values()):
        raise base.NonFiniteScoreError(f"Branches with a NaN score: {means}")
    return means
