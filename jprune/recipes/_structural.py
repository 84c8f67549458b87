"""Methods that prune whole entries of groups: channels, heads, hidden units.

All take the graph of `jprune.graph.trace`. Each returns a pruner like any other; what
it masks at the end is cut off by `make_plan(graph, kept_by(graph, masks))` and
`shrink`. With `sparsify(..., where=jp.is_float)` biases and scales count, and are
masked with the kernels; by default kernels alone are.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jprune import graph as jg
from jprune import links, tree
from jprune._core import base
from jprune.graph import Cost

_SUMMED = functools.partial(jg.group_scores, combine=jnp.sum, normalize=None)


def group_magnitude(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    *,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
) -> base.Pruner:
    """DepGraph's group L2: the entries go whose coupled weights are smallest.

        I_k = mean over members of (sum of w^2 over the member's slice k)

    over the mean of the group. Members are all that goes with the entry: a column of
    one kernel, a row of the next, a scale and a bias.

    Args:
      graph: the recorded function.
      sparsity: the fraction of entries removed, in [0, 1], or a schedule of it.
      scope: whether the entries of all groups compete, or those of each.
      min_kept: the least number of entries that a group keeps.

    Returns:
      A pruner. The paper's training towards sparse groups is `jg.add_group_decay`.

    Raises:
      PruningError: if a number is out of its range, or no group may shrink.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[3.0, 2.0]]), "out": jnp.array([[0.0], [4.0]])}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> jp.prune(params, jp.recipes.group_magnitude(graph, 0.5))[0]["in"]
      Array([[0., 2.]], dtype=float32)

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900,
      section 3.3, with p = 2; the means are those of the released code.
    """
    return optax.chain(
        links.score_by_weight(2),
        jg.keep_groups(graph, sparsity, scope=scope, min_kept=min_kept),
    )


def group_taylor(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    *,
    joint: bool = True,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
) -> base.Pruner:
    """Taylor pruning: the entries go that change the loss least, to first order.

        joint:  I_k = (sum over the entry of w g)^2
        else:   I_k = sum over the entry of (w g)^2

    The joint score is that of one gate on the whole entry, as the paper's gates are,
    and the default. All are of one unit, that of the loss, and not normalized.

    Args:
      graph: the recorded function.
      sparsity: the fraction of entries removed, in [0, 1], or a schedule of it.
      joint: whether terms of an entry may cancel.
      scope: whether the entries of all groups compete, or those of each.
      min_kept: the least number of entries that a group keeps.

    Returns:
      A pruner that needs gradients.

    Raises:
      PruningError: if a number is out of its range, no group may shrink, or no
        gradients are given.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((2, 2)), "out": jnp.zeros((2, 1))}
      >>> grads = {"in": jnp.array([[3.0, 1.0], [-3.0, 1.0]]), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 2)))
      >>> for joint in (True, False):
      ...   pruner = jp.recipes.group_taylor(graph, 0.5, joint=joint)
      ...   print(jp.prune(params, pruner, grads)[1]["in"])
      [[False  True]]
      [[ True False]]

    References:
      Molchanov et al., Importance Estimation for Neural Network Pruning, 2019,
      arXiv:1906.10771, section 3. There an entry is one filter or its
      normalization's gate, here all coupled weights, and the mean is over
      minibatches; here it is the one given, so make that large. The joint score is
      kept without its square, which does not change the order.
    """

    def score(graph: jg.Graph, terms: base.Scores) -> dict[str, jax.Array]:
        if not joint:
            return _SUMMED(graph, jax.tree.map(jnp.square, terms))
        return {n: jnp.abs(each) for n, each in _SUMMED(graph, terms).items()}

    return optax.chain(
        links.score_by_gate(),
        jg.keep_groups(graph, sparsity, scope=scope, min_kept=min_kept, score=score),
    )


def group_fisher(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    decay: float | None = 0.99,
    *,
    cost: Cost | None = jg.activation_bytes,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
) -> base.Pruner:
    """Group Fisher pruning: least information for the memory that an entry takes.

        I_k = (sum over the entry of w^2 E[g^2]) / (cost that one entry saves)

    Args:
      graph: the recorded function.
      sparsity: the fraction of entries removed, in [0, 1], or a schedule of it.
      decay: of the running mean E, in [0, 1), over the gradients that the pruner
        sees: those of refreshes. For those of every step it is None, and
        `sparsify(..., track=jp.score_by_fisher(0.99))` has the mean.
      cost: what one entry saves is measured in; None for nothing.
      scope: whether the entries of all groups compete, or those of each.
      min_kept: the least number of entries that a group keeps.

    Returns:
      A pruner that needs gradients.

    Raises:
      PruningError: if a number is out of its range, no group may shrink, or no
        gradients are given.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 2.0]]), "out": jnp.ones((2, 1))}
      >>> grads = {"in": jnp.array([[3.0, 1.0]]), "out": jnp.ones((2, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> jp.prune(params, jp.recipes.group_fisher(graph, 0.5), grads)[0]["in"]
      Array([[1., 0.]], dtype=float32)

    References:
      Liu et al., Group Fisher Pruning for Practical Network Compression, 2021,
      arXiv:2108.00708. The paper squares each sample's derivative with respect to a
      mask on the coupled channels; here gradients of batches are squared weight by
      weight, the diagonal of the same information, as a training step has them.
    """

    def saved(name: str) -> float:
        if cost is None:
            return 1.0
        less = {name: graph.groups[name].size - 1}
        return float(max(cost(graph, {}) - cost(graph, less), 1))

    prices = {name: saved(name) for name in graph.groups}

    def score(graph: jg.Graph, terms: base.Scores) -> dict[str, jax.Array]:
        return {n: each / prices[n] for n, each in _SUMMED(graph, terms).items()}

    keep = jg.keep_groups(graph, sparsity, scope=scope, min_kept=min_kept, score=score)
    return keep if decay is None else optax.chain(links.score_by_fisher(decay), keep)


def fpgm(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    *,
    scope: Literal["leaf", "global"] = "leaf",
    min_kept: int = 1,
    layout: tree.KernelLayout = tree.kernel_axes,
) -> base.Pruner:
    """FPGM: the filters nearest to the geometric median of their layer go.

        I_k = sum over j of ||x_k - x_j||    over the filters x of a kernel

    Small filters may be alone in what they do, and large ones may be many of a kind.

    Args:
      graph: the recorded function.
      sparsity: the fraction of entries removed, in [0, 1], or a schedule of it.
      scope: whether the entries of each group compete, as in the paper, or of all.
      min_kept: the least number of entries that a group keeps.
      layout: which axes of a kernel its filters are along.

    Returns:
      A pruner.

    Raises:
      PruningError: if a number is out of its range, or no group may shrink.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[9.0, 0.1, 9.0, 8.0]]), "out": jnp.ones((4, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> jp.prune(params, jp.recipes.fpgm(graph, 0.5))[0]["in"]
      Array([[9. , 0.1, 0. , 0. ]], dtype=float32)

    References:
      He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural
      Networks Acceleration, 2018, arXiv:1811.00250, section 3. A stream that several
      kernels write to scores the mean over them.
    """
    score = functools.partial(jg.geometric_median_scores, layout=layout)
    return optax.chain(
        links.score_by_weight(),
        jg.keep_groups(graph, sparsity, scope=scope, min_kept=min_kept, score=score),
    )


def beta_rank(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    gains: Mapping[str, Any],
    *,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
    layout: tree.KernelLayout = tree.kernel_axes,
) -> base.Pruner:
    """Beta-rank: the filters go that are small and narrow what they see.

        R_k = ||f_k||_1 |std(output of k) / std(patch)|

    over the filters f of a kernel, for a batch, and (R - min R) / (max R - min R)
    within the kernel. Groups that no kernel with a gain writes to are left alone; of
    several kernels it is the mean.

    Args:
      graph: the recorded function.
      sparsity: the fraction of entries removed, in [0, 1], or a schedule of it.
      gains: the quotients, as from `jg.gains(graph, params, batch)`. They stay as they
        are while weights are trained.
      scope: whether the entries of all groups compete, or those of each.
      min_kept: the least number of entries that a group keeps.
      layout: which axes of a kernel its filters are along.

    Returns:
      A pruner.

    Raises:
      PruningError: if a number is out of its range, or no group with a gain may
        shrink.

    Example:
      Filters of one norm, of which the second sees the less of a change:

      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 0.5], [0.5, 1.0]]), "out": jnp.ones((2, 1))}
      >>> x = jnp.array([[-4.0, 1.0], [4.0, 1.0]])
      >>> graph = jg.trace(mlp, params, x)
      >>> pruner = jp.recipes.beta_rank(graph, 0.5, jg.gains(graph, params, x))
      >>> jp.prune(params, pruner)[0]["in"]
      Array([[1. , 0. ],
             [0.5, 0. ]], dtype=float32)

    References:
      Homayounfar et al., Beta-Rank: A Robust Convolutional Filter Pruning Method For
      Imbalanced Medical Image Analysis, 2023, arXiv:2304.07461. By the equation, not by
      its code, whose loop over positions mixes axes; the paper's rates of layers are
      given by hand, here one ranking decides, or one rate for all.
    """

    def filtered(group: jg.Group) -> bool:
        return jg.is_width(group) and bool(jg.written(graph, group, gains, layout))

    score = functools.partial(jg.gain_scores, gains=gains, layout=layout)
    keep = jg.keep_groups(
        graph, sparsity, scope=scope, min_kept=min_kept, score=score, where=filtered
    )
    return optax.chain(links.score_by_magnitude(), keep)


def network_slimming(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    scales: base.Predicate,
    *,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
) -> base.Pruner:
    """Network slimming: the channels go whose normalization has the smallest scale.

        I_k = |scale_k|    under one threshold for all groups

    Groups that no scale belongs to are left alone; of several scales it is the mean.

    Args:
      graph: the recorded function.
      sparsity: the fraction removed of the entries with a scale, in [0, 1], or a
        schedule of it.
      scales: which leaves are scales, such as `jp.matching(".*/scale")`.
      scope: whether the entries of all groups compete, or those of each.
      min_kept: the least number of entries that a group keeps. The paper has none,
        and can lose whole layers.

    Returns:
      A pruner. It has to see the scales: `sparsify(..., where=jp.is_float)`.

    Raises:
      PruningError: if a number is out of its range, no group with a scale may
        shrink; at `init` if the scales are hidden from the pruner.

    Example:
      The training part, and the pruning once it is over:

      >>> import jax.numpy as jnp, jprune as jp, optax
      >>> from jprune import graph as jg
      >>> net = lambda p, x: jnp.tanh(x @ p["in"] * p["scale"]) @ p["out"]
      >>> params = {"in": jnp.ones((1, 3)), "out": jnp.ones((3, 1))}
      >>> params["scale"] = jnp.array([0.1, -2.0, 1.0])
      >>> graph, scales = jg.trace(net, params, jnp.ones((5, 1))), jp.matching("scale")
      >>> tx = optax.chain(jg.add_l1(1e-4, scales), optax.sgd(0.1))
      >>> pruner = jp.recipes.network_slimming(graph, 1 / 3, scales)
      >>> jp.prune(params, pruner, where=jp.is_float)[0]["scale"]
      Array([ 0., -2.,  1.], dtype=float32)

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming,
      2017, arXiv:1708.06519, section 3.
    """
    chosen = _paths_of(graph, scales)

    def scaled(group: jg.Group) -> bool:
        return jg.is_width(group) and any(m.path in chosen for m in group.members)

    def score(graph: jg.Graph, sizes: base.Scores) -> dict[str, jax.Array]:
        hidden = chosen - set(tree.leaf_paths(sizes))
        if hidden:
            raise base.PruningError(
                f"The scales {sorted(hidden)} are hidden from the pruner: sparsify and "
                "prune show it the kernels unless told otherwise, where=jp.is_float."
            )
        return jg.group_scores(graph, sizes, normalize=None, where=scales)

    keep = jg.keep_groups(
        graph, sparsity, scope=scope, min_kept=min_kept, score=score, where=scaled
    )
    return optax.chain(links.score_by_magnitude(), keep)


def _paths_of(graph: jg.Graph, where: base.Predicate) -> set[str]:
    chosen = jax.tree.leaves(tree.flags(where, graph.params))
    return {path for path, mine in zip(graph.axes, chosen, strict=True) if mine}
