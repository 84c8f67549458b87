"""How much filters widen what they see: a statistic of a batch, for each kernel.

No hook and no wrapper: the recorded program is run with the operands and the results of
its products as results.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, precision
from jprune.graph._cost import note_view
from jprune.graph._distances import is_output
from jprune.graph._engine.program import Node, Value
from jprune.graph._groups import Group
from jprune.graph._scores import entry_sums, mean, over_members
from jprune.graph._shrink import call, signature, small_view
from jprune.graph._trace import Graph, retrace


class Product(NamedTuple):
    """A product of something that depends on the inputs and a leaf of params.

    Attributes:
      path: of the leaf.
      node: the equation, a matrix product or a convolution.
      kernel: which operand is the leaf, or a view of it.
    """

    path: str
    node: Node
    kernel: int


def gains(graph: Graph, params: base.Params, *inputs: Any) -> dict[str, jax.Array]:
    """Returns for each kernel how much its filters widen the spread of a batch.

        gain_k = mean over places p of std(y_pk) / std(x_p)

    with y_pk the results of filter k at place p of all samples, and x_p what it sees
    there, as one set of numbers. A convolution has the places of its pictures, and
    sees patches, zeros of the padding included; a matrix product has one place, to
    which all its rows belong. Where nothing varies in x the quotient counts as 0.

    Args:
      graph: the recorded function.
      params: full arrays.
      *inputs: a batch; the more samples, the better.

    Returns:
      Path -> float32 or wider array of the leaf's shape: of each weight the gain of
      its filter; for a leaf that is used several times the sum. Kernels that only
      loops or branches multiply by are left out.

    Raises:
      PruningError: if a kernel sees less than two samples.

    Example:
      The second filter has three times the weights, and widens as much more:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 3.0]]), "out": jnp.ones((2, 1))}
      >>> x = jnp.array([[-1.0], [1.0]])
      >>> gains(jg.trace(mlp, params, x), params, x)["in"]
      Array([[1., 3.]], dtype=float32)

    References:
      Homayounfar et al., Beta-Rank: A Robust Convolutional Filter Pruning Method For
      Imbalanced Medical Image Analysis, 2023, arXiv:2304.07461. The places' mean and
      the patches are those of the method; what a place is for a matrix product is
      said above.
    """
    if signature(inputs) != signature(graph.inputs):
        graph = retrace(graph, params, inputs)
    found = products(graph)
    seen = [p.node.inputs[1 - p.kernel] for p in found]
    given = [p.node.outputs[0] for p in found]
    kernels = [p.node.inputs[p.kernel] for p in found]

    @jax.jit
    def all_gains(params: Any, inputs: Any) -> Any:
        x, y = values(graph, [seen, given])(params, *inputs)
        each = [_gain(*args) for args in zip(found, x, y, strict=True)]
        # A kernel may be a view of its leaf: pulled back, each weight has its filter's.
        _, back = jax.vjp(lambda p: values(graph, kernels)(p, *inputs), params)
        return back(each)[0]

    paths = {p.path for p in found}
    pulled = tree.by_path(all_gains(params, inputs))
    return {path: jnp.abs(g) for path, g in pulled.items() if path in paths}


def products(graph: Graph) -> list[Product]:
    """Returns the products with a leaf outside of loops and branches, in order.

    Args:
      graph: the recorded function.
    """
    inputs = zip(graph.axes, graph.program.inputs, strict=False)
    origins = {id(v): path for path, v in inputs}
    found = []
    for node in graph.program.nodes:
        if node.name not in ("dot_general", "conv_general_dilated"):
            note_view(node, origins)
            continue
        for i, value in enumerate(node.inputs):
            if id(value) in origins and node.inputs[1 - i].active:
                found.append(Product(origins[id(value)], node, i))
    return found


def values(graph: Graph, wanted: Any) -> Callable[..., Any]:
    """Returns the function that gives values inside of a recorded one.

    Args:
      graph: the recorded function.
      wanted: a pytree of values of its program, not of its loops.

    Returns:
      `(params, *inputs) -> arrays`, a tree like the one wanted.
    """
    leaves: list[Value]
    leaves, structure = jax.tree.flatten(wanted)
    program = graph.program._replace(outputs=leaves)
    other = graph._replace(program=program, structure=structure)
    view = small_view(graph, {})
    return lambda params, *inputs: call(other, view, params, inputs)


def _gain(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
    """The gain of each filter, of the kernel's shape."""
    x, y = precision.wide(x), precision.wide(y)
    kernel = product.node.inputs[product.kernel]
    if product.node.name == "dot_general":
        gain, order = _matrix_gain(product, x, y)
    else:
        gain, order = _convolution_gain(product, x, y)
    rest = [i for i in range(len(kernel.axes)) if i not in order]
    gain = jnp.expand_dims(gain, tuple(range(gain.ndim, len(kernel.axes))))
    gain = jnp.transpose(gain, np.argsort([*order, *rest]).tolist())
    return jnp.broadcast_to(gain, kernel.shape).astype(kernel.dtype)


def _matrix_gain(
    product: Product, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, list[int]]:
    """The gain of each filter, and which axes of the kernel its axes are."""
    summed, batches = product.node.params["dimension_numbers"]
    batch, order = batches[1 - product.kernel], list(batches[product.kernel])
    rank = len(product.node.inputs[product.kernel].axes)
    free = [i for i in range(rank) if i not in {*summed[product.kernel], *order}]
    # Axes of the result: those of the batch, then those of each operand.
    rows = x.ndim - len(batch) - len(summed[1 - product.kernel])
    first = len(order) + (len(free) if product.kernel == 0 else 0)
    others = tuple(range(first, first + rows))
    _check(product, [y.shape[i] for i in others])
    # The kernel's batch axes stand in the order of the operand's.
    inside = x.std(tuple(i for i in range(x.ndim) if i not in batch))
    inside = jnp.transpose(inside, np.argsort(np.argsort(batch)).tolist())
    inside = jnp.expand_dims(inside, tuple(range(len(batch), len(batch) + len(free))))
    return _over(y.std(others), inside), order + free


def _convolution_gain(
    product: Product, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, list[int]]:
    """The same of a convolution; the kernel is the second operand."""
    params, shape = product.node.params, product.node.inputs[1].shape
    spec, groups = params["dimension_numbers"], params["feature_group_count"]
    if product.kernel == 0 or params["batch_group_count"] != 1:
        raise base.PruningError(
            f"{product.path} is no kernel of a convolution, but its picture, or there "
            "are batch groups: what its filters widen is not defined."
        )
    x, y = jnp.transpose(x, spec.lhs_spec), jnp.transpose(y, spec.out_spec)
    _check(product, y.shape[:1])
    window = tuple(shape[i] for i in spec.rhs_spec[2:])

    def patches(moment: jax.Array) -> jax.Array:
        """The mean of `(n, channels, ...)` over each patch: `(groups, ...)`."""
        split = moment.reshape(moment.shape[0], groups, -1, *moment.shape[2:])
        summed = jax.lax.conv_general_dilated(
            split.mean((0, 2))[None],
            jnp.ones((groups, 1, *window), moment.dtype),
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            feature_group_count=groups,
        )
        return summed[0] / np.prod(window, dtype=float)

    inside = jnp.sqrt(jnp.maximum(patches(x * x) - jnp.square(patches(x)), 0.0))
    inside = jnp.repeat(inside, y.shape[1] // groups, axis=0)
    gain = _over(y.std(0), inside)
    return gain.mean(tuple(range(1, gain.ndim))), [spec.rhs_spec[0]]


def _over(outside: jax.Array, inside: jax.Array) -> jax.Array:
    varies = inside > 0
    return jnp.where(varies, outside / jnp.where(varies, inside, 1.0), 0.0)


def _check(product: Product, samples: Any) -> None:
    if np.prod(samples, dtype=int) < 2:
        raise base.PruningError(
            f"A spread needs two samples; {product.path} sees shape {tuple(samples)}."
        )


def gain_scores(
    graph: Graph,
    scores: base.Scores,
    gains: Mapping[str, Any],
    *,
    layout: tree.KernelLayout = tree.kernel_axes,
) -> dict[str, jax.Array]:
    """Returns the scores of entries by what their filters weigh, times their gains.

    With S the scores of weights,

        R_k = sum of S over filter k, times gain_k;    I = (R - min R) / (max R - min R)

    and the mean of I over the kernels that write to the group.

    Args:
      graph: the recorded function.
      scores: the params' tree, such as |w|; leaves that are hidden do not count.
      gains: path -> array of the leaf's shape, as from `gains`.
      layout: which axes of a kernel its filters are along.

    Returns:
      Group name -> float32 array `(size,)`, in [0, 1]; 0 for groups that no kernel
      with a gain writes to, and where all filters of a kernel are equal.
    """
    leaves = tree.by_path(scores)

    def of(group: Group) -> list[jax.Array]:
        sums = [
            entry_sums(group, m, jnp.asarray(leaves[m.path]) * gains[m.path])
            for m in written(graph, group, gains, layout)
            if m.path in leaves
        ]
        return [_spread_out(jnp.asarray(each)) for each in sums]

    return over_members(graph, of, mean, None)


def written(
    graph: Graph, group: Group, gains: Mapping[str, Any], layout: tree.KernelLayout
) -> list[Any]:
    """Returns the members of a group that are filters of kernels with a gain.

    Args:
      graph: the recorded function.
      group: one of its groups.
      gains: by path of a leaf.
      layout: which axes of a kernel its filters are along.
    """
    shapes = tree.by_path(graph.params)
    members = [m for m in group.members if m.path in gains]
    return [m for m in members if is_output(m, shapes[m.path], layout)]


def _spread_out(scores: jax.Array) -> jax.Array:
    least, most = scores.min(), scores.max()
    return _over(scores - least, jnp.broadcast_to(most - least, scores.shape))
