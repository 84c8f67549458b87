"""Methods that go with structural pruning: before it, in its training, and of depth."""

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
    """MaskSparsity: only the scales of channels that will go are pulled to zero.

        g <- g + rate * sign(scale) * (1 - keep)

    An L1 on all scales, as in network slimming, shrinks what is to stay as well.

    Args:
      graph: the recorded function.
      keep: group name -> bools `(size,)`, the entries that are to stay: those of
        another criterion, or `jg.kept_by` of a first training with `jg.add_l1`.
      rate: non-negative; may be traced.
      scales: which leaves are scales, such as `jp.matching(".*/scale")`.

    Returns:
      An Optax link; it stands before the optimizer in `optax.chain`.

    Raises:
      PruningError: if there is no such group; at `update` without params, or if the
        predicate selects no leaf.

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
      arXiv:2201.06776. Scales that share a stream are pulled together where their
      group's entry goes, as the paper does for residual networks.
    """
    jg.check_known(graph.groups, keep)
    return jg.add_l1(rate, scales, jg.masks(graph, keep))


def precrop(
    graph: jg.Graph, densities: Mapping[str, float], *, min_kept: int = 1
) -> dict[str, int]:
    """PreCropping: widths at initialization from the densities of any sparse mask.

    With d_l the density of kernel l, of C_in x C_out channels,

        min over c of sum over l of (log c_in(l) c_out(l) - log d_l C_in C_out)^2

    so that layers have about the weights that a method for single weights would
    leave them, in dense arrays.

    Args:
      graph: the recorded function.
      densities: path of a kernel -> the share of its weights that is kept, in
        [0, 1]; of 0 one weight stays. Kernels that are left out do not count.
      min_kept: the least number of entries that a group keeps.

    Returns:
      Group name -> its size, as `jg.first_entries` takes it.

    Raises:
      PruningError: if there is no such leaf, a number is out of its range, or no
        group may shrink.

    Example:
      Widths by the densities of SNIP, and the network cropped to them:

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
      Initialization, 2022, arXiv:2203.02549. For a chain the widths follow one from
      the other; coupled groups, as of a residual stream, are settled here by least
      squares in logarithms.
    """
    shares = {}
    for path, density in densities.items():
        if not 0 <= density <= 1:
            raise base.PruningError(f"A density is in [0, 1]; {path}: {density}.")
        if path not in graph.axes:
            raise base.PruningError(f"The params that were traced have no leaf {path}.")
        size = np.prod([d.size for d in graph.axes[path]], dtype=float)
        shares[path] = max(float(density), float(1 / max(size, 1.0)))
    return jg.fit_widths(graph, shares, min_kept=min_kept)


def layer_lottery(
    graph: jg.Graph,
    params: base.Params,
    score: Callable[[Callable[..., Any], base.Params], base.Scores],
    count: int,
) -> list[str]:
    """Layer tickets: residual branches go one by one, at initialization or later.

    Each time the branch with the least mean score of its own weights, scored anew
    for the function that is left.

    Args:
      graph: the recorded function.
      params: full arrays.
      score: `(fn, params) -> scores`, the params' tree, a score for each weight, of
        the function and the params that are left: |w g|, for instance.
      count: how many branches go; static.

    Returns:
      Names of branches in the order in which they went, as `jg.without` takes them.

    Raises:
      PruningError: if there are not that many branches, or a score is NaN.

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
      >>> fn, rest = jg.without(graph, params, names)
      >>> names, rest["b"].shape
      (['b'], (0,))

    References:
      Jordao et al., When Layers Play the Lottery, all Tickets Win at Initialization,
      2023, arXiv:2301.10835. The paper scores at initialization by the data, as
      GraSP does; here the criterion is an argument. Means, not sums, so that a
      narrow block is not worth less for its size.
    """
    if count < 0:
        raise base.PruningError(f"Some branches go, or none; got {count}.")
    names: list[str] = []
    for _ in range(count):
        fn, rest = jg.without(graph, params, names)
        left = _sizes(graph, rest)
        found = {
            name: float(each)
            for name, each in jg.branch_scores(graph, score(fn, rest)).items()
            if any(left[path] for path in jg.branches(graph)[name].leaves)
        }
        if not found:
            raise base.PruningError(f"{count} branches cannot go: {names} are all.")
        if any(np.isnan(each) for each in found.values()):
            raise base.NonFiniteScoreError(f"A score of a branch is NaN: {found}")
        names.append(min(found, key=lambda name: found[name]))
    return names


def _sizes(graph: jg.Graph, params: base.Params) -> dict[str, int]:
    leaves = jax.tree.leaves(params)
    return {path: np.size(w) for path, w in zip(graph.axes, leaves, strict=True)}
