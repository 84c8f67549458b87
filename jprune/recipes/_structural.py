"""Structural methods: prune whole entries of groups, such as channels or heads.

All take the graph of `jprune.graph.trace` and return an ordinary pruner. After
training, `make_plan(graph, kept_by(graph, masks))` and `shrink` remove the masked
entries. By default only kernels are scored and masked; with
`sparsify(..., where=jp.is_float)` so are biases and scales.
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
    """DepGraph group L2: prunes channels by the mean squared norm of coupled weights.

        I_k = mean over members of (sum of w^2 over the member's slice k)

    divided by its mean over the group; the smallest are pruned. Members of an entry
    are all slices that are removed with it: a column of one kernel, a row of the next,
    a scale and a bias.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      sparsity: fraction of entries to remove, in [0, 1], or a schedule.
      scope: "global" ranks the entries of all groups together, "leaf" those of each
        group.
      min_kept: minimum number of entries that each group keeps.

    Returns:
      A pruner. `jg.add_group_decay` is the paper's sparse training of groups.

    Raises:
      PruningError: if a number is out of range, or no group may shrink.

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
    """Group Taylor: prunes channels whose removal changes the loss least (first order).

        joint:  I_k = (sum over the entry of w g)^2
        else:   I_k = sum over the entry of (w g)^2

    The joint score, the default, is that of one gate on the whole entry, like the
    paper's gates. All scores are in units of the loss, so they are not normalized.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      sparsity: fraction of entries to remove, in [0, 1], or a schedule.
      joint: whether the terms of an entry may cancel.
      scope: "global" ranks the entries of all groups together, "leaf" those of each
        group.
      min_kept: minimum number of entries that each group keeps.

    Returns:
      A pruner that needs gradients.

    Raises:
      PruningError: if a number is out of range, no group may shrink, or gradients are
        missing.

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
      arXiv:1906.10771, section 3. There an entry is one filter or its normalization's
      gate; here it is all coupled weights. The paper averages over minibatches; here
      the score is that of the given batch, so use a large one. The square of the joint
      score is omitted, which does not change the order.
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
    """Group Fisher: prunes the channels with the least Fisher information per byte.

        I_k = (sum over the entry of w^2 E[g^2]) / (cost that one entry saves)

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      sparsity: fraction of entries to remove, in [0, 1], or a schedule.
      decay: decay of the running mean E over the gradients that the pruner sees, in
        [0, 1): those of refreshes. For a mean over every step, pass None and
        `sparsify(..., track=jp.score_by_fisher(0.99))`.
      cost: `(graph, sizes) -> number` that measures what an entry saves, by default
        the bytes of activations; None to divide by nothing.
      scope: "global" ranks the entries of all groups together, "leaf" those of each
        group.
      min_kept: minimum number of entries that each group keeps.

    Returns:
      A pruner that needs gradients.

    Raises:
      PruningError: if a number is out of range, no group may shrink, or gradients are
        missing.

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
      mask on the coupled channels. Here the gradients of batches, which a training
      step has, are squared weight by weight: the diagonal of the same information.
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
    layout: tree.KernelLayout | None = None,
) -> base.Pruner:
    """FPGM: prunes the filters closest to the geometric median of their layer.

        I_k = sum over j of ||x_k - x_j||    over the filters x of a kernel

    Such filters are redundant, whatever their norm: a small filter may be unique, and
    large ones may resemble each other.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      sparsity: fraction of entries to remove, in [0, 1], or a schedule.
      scope: "leaf" ranks the entries of each group, as in the paper, "global" those of
        all groups together.
      min_kept: minimum number of entries that each group keeps.
      layout: `(path, leaf) -> KernelAxes`, which says along which axes filters lie;
        None for `jg.layout(graph)`, as the function uses its kernels.

    Returns:
      A pruner.

    Raises:
      PruningError: if a number is out of range, or no group may shrink; when used, if
        the layout does not settle the axes of a kernel.

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
      Networks Acceleration, 2018, arXiv:1811.00250, section 3. Where several kernels
      write to one stream, the score is the mean over them.
    """
    layout = jg.layout(graph) if layout is None else layout
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
    layout: tree.KernelLayout | None = None,
) -> base.Pruner:
    """Beta-rank: prunes filters with small weights and a low output-to-input deviation.

        R_k = ||f_k||_1 |std(output of k) / std(patch)|

    for each filter f of a kernel on a batch, normalized within the kernel to
    (R - min R) / (max R - min R). Where several kernels write to a group, the score is
    the mean over them; groups that no kernel with a gain writes to are not pruned.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      sparsity: fraction of entries to remove, in [0, 1], or a schedule.
      gains: quotients of standard deviations, as from `jg.gains(graph, params,
        batch)`. They are constants while the weights are trained.
      scope: "global" ranks the entries of all groups together, "leaf" those of each
        group.
      min_kept: minimum number of entries that each group keeps.
      layout: `(path, leaf) -> KernelAxes`, which says along which axes filters lie;
        None for `jg.layout(graph)`, as the function uses its kernels.

    Returns:
      A pruner.

    Raises:
      PruningError: if a number is out of range, no group with a gain may shrink, or the
        layout does not settle the axes of a kernel.

    Example:
      Two filters of equal norm; the output of the second varies less:

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
      Imbalanced Medical Image Analysis, 2023, arXiv:2304.07461. This follows the
      paper's equation, not its code, whose loop over positions mixes axes. The paper
      sets the rate of each layer by hand; here one ranking, or one rate, serves all.
    """
    roles = jg.layout(graph) if layout is None else layout

    def filtered(group: jg.Group) -> bool:
        return jg.is_width(group) and bool(
            jg.filter_members(graph, group, gains, roles)
        )

    score = functools.partial(jg.gain_scores, gains=gains, layout=roles)
    keep = jg.keep_groups(
        graph, sparsity, scope=scope, min_kept=min_kept, score=score, where=filtered
    )
    return optax.chain(links.score_by_magnitude(), keep)


def network_slimming(
    graph: jg.Graph,
    sparsity: base.Sparsity,
    scales: tree.Where,
    *,
    scope: Literal["leaf", "global"] = "global",
    min_kept: int = 1,
) -> base.Pruner:
    """Network slimming: prunes the channels with the smallest normalization scales.

        I_k = |scale_k|    under one threshold for all groups

    Where several scales belong to a group, the score is their mean; groups without a
    scale are not pruned.

    Args:
      graph: graph of the function, from `jprune.graph.trace`.
      sparsity: fraction of the entries with a scale to remove, in [0, 1], or a
        schedule.
      scales: the scales, a `jprune.tree.Where` such as `jp.matching(".*/scale")`.
      scope: "global" ranks the entries of all groups together, "leaf" those of each
        group.
      min_kept: minimum number of entries that each group keeps. The paper has none
        and can lose whole layers.

    Returns:
      A pruner. It must see the scales: `sparsify(..., where=jp.is_float)`.

    Raises:
      PruningError: if a number is out of range, no group with a scale may shrink, or
        the scales are hidden from the pruner.

    Example:
      Training with L1 on the scales, then pruning:

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
                f"The pruner does not see the scales {sorted(hidden)}: sparsify and "
                "prune pass it kernels only. Pass where=jp.is_float to them."
            )
        return jg.group_scores(graph, sizes, normalize=None, where=scales)

    keep = jg.keep_groups(
        graph, sparsity, scope=scope, min_kept=min_kept, score=score, where=scaled
    )
    return optax.chain(links.score_by_magnitude(), keep)


def _paths_of(graph: jg.Graph, where: tree.Where) -> set[str]:
    chosen = jax.tree.leaves(tree.flags(where, graph.params))
    return {path for path, mine in zip(graph.axes, chosen, strict=True) if mine}
