"""Gains of filters: the spread of their outputs over that of their inputs, on a batch.

Neither hooks nor wrappers are needed: the recorded program runs with the operands and
the results of its products as outputs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base, precision
from jprune.graph import _roles
from jprune.graph._cost import PRODUCTS, note_view
from jprune.graph._distances import is_output
from jprune.graph._engine.program import Node, Value
from jprune.graph._groups import Group, Member
from jprune.graph._scores import checked_leaves, entry_sums, mean, over_members
from jprune.graph._shrink import call, signature, small_view
from jprune.graph._trace import Graph, param_values, retrace


class Product(NamedTuple):
    """A product of a value that depends on the inputs with a leaf of params.

    Attributes:
      path: path of the leaf.
      node: the equation, a matrix product or a convolution.
      kernel: which operand is the leaf or a view of it, 0 or 1.
    """

    path: str
    node: Node
    kernel: int


def gains(graph: Graph, params: base.Params, *inputs: Any) -> dict[str, jax.Array]:
    """Returns the gain of each filter: how much it widens the spread of a batch.

        gain_k = mean over positions p of std(y_pk) / std(x_p)

    with y_pk the outputs of filter k at position p of all samples, and x_p the inputs
    that it sees there, as one set of numbers. The positions of a convolution are
    those of its output, and its inputs are patches, including the zeros of padding; a
    matrix product has one position, which all its rows belong to. Where x does not
    vary, the quotient counts as 0.

    Args:
      graph: the recorded function.
      params: full arrays.
      *inputs: a batch of at least two samples, better many.

    Returns:
      Path -> array of the leaf's shape, float32 or wider: the gain of the filter that
      each weight belongs to, summed over the uses of the leaf. Kernels that are used
      in loops or branches only are left out.

    Raises:
      PruningError: if a kernel sees fewer than two samples.

    Example:
      The second filter has three times the weights, and three times the gain:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 3.0]]), "out": jnp.ones((2, 1))}
      >>> x = jnp.array([[-1.0], [1.0]])
      >>> jg.gains(jg.trace(mlp, params, x), params, x)["in"]
      Array([[1., 3.]], dtype=float32)

    References:
      Homayounfar et al., Beta-Rank: A Robust Convolutional Filter Pruning Method For
      Imbalanced Medical Image Analysis, 2023, arXiv:2304.07461. The mean over
      positions and the patches are those of the method; that a matrix product has one
      position is our definition.
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
        # A kernel may be a view of its leaf: the gradient of the view maps its gains
        # back to the leaf's shape.
        _, back = jax.vjp(lambda p: values(graph, kernels)(p, *inputs), params)
        return back(each)[0]

    paths = {p.path for p in found}
    pulled = tree.by_path(all_gains(params, inputs))
    return {path: jnp.abs(g) for path, g in pulled.items() if path in paths}


def products(graph: Graph) -> list[Product]:
    """Returns the products with a leaf, outside of loops and branches, in order.

    Args:
      graph: the recorded function.
    """
    origins = param_values(graph)
    found = []
    for node in graph.program.nodes:
        if node.name not in PRODUCTS:
            note_view(node, origins)
            continue
        for i, value in enumerate(node.inputs):
            if value in origins and node.inputs[1 - i].active:
                found.append(Product(origins[value], node, i))
    return found


def values(graph: Graph, wanted: Any) -> Callable[..., Any]:
    """Returns the function that computes intermediate values of a recorded function.

    Args:
      graph: the recorded function.
      wanted: pytree of values of its program, not of its loops.

    Returns:
      `(params, *inputs) -> arrays`, a tree like `wanted`.
    """
    leaves: list[Value]
    leaves, structure = jax.tree.flatten(wanted)
    program = graph.program._replace(outputs=leaves)
    other = graph._replace(program=program, structure=structure, state=())
    view = small_view(graph, {})
    return lambda params, *inputs: call(other, view, params, inputs)


def _gain(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the gain of each filter, broadcast to the kernel's shape."""
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
    """Returns the gain of each filter, and the axes of the kernel that index it."""
    summed, batches = product.node.params["dimension_numbers"]
    batch, order = batches[1 - product.kernel], list(batches[product.kernel])
    rank = len(product.node.inputs[product.kernel].axes)
    free = [i for i in range(rank) if i not in {*summed[product.kernel], *order}]
    # Axes of the result: batch axes, then the free axes of each operand.
    rows = x.ndim - len(batch) - len(summed[1 - product.kernel])
    first = len(order) + (len(free) if product.kernel == 0 else 0)
    others = tuple(range(first, first + rows))
    _check(product, [y.shape[i] for i in others])
    # The batch axes of the kernel are in the order of the operand's.
    inside = x.std(tuple(i for i in range(x.ndim) if i not in batch))
    inside = jnp.transpose(inside, np.argsort(np.argsort(batch)).tolist())
    inside = jnp.expand_dims(inside, tuple(range(len(batch), len(batch) + len(free))))
    return _over(y.std(others), inside), order + free


def _convolution_gain(
    product: Product, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, list[int]]:
    """Returns the same for a convolution, whose kernel is the second operand."""
    params, shape = product.node.params, product.node.inputs[1].shape
    spec, feature_groups = params["dimension_numbers"], params["feature_group_count"]
    if product.kernel == 0 or params["batch_group_count"] != 1:
        raise base.PruningError(
            f"The gain of {product.path} is not defined: it is the image of a "
            "convolution, or the kernel of one with batch groups."
        )
    x, y = jnp.transpose(x, spec.lhs_spec), jnp.transpose(y, spec.out_spec)
    _check(product, y.shape[:1])
    window = tuple(shape[i] for i in spec.rhs_spec[2:])

    def patches(moment: jax.Array) -> jax.Array:
        """Returns patch means `(feature groups, ...)` of `(n, channels, ...)`."""
        n, _, *spatial = moment.shape
        split = moment.reshape(n, feature_groups, -1, *spatial)
        summed = jax.lax.conv_general_dilated(
            split.mean((0, 2))[None],
            jnp.ones((feature_groups, 1, *window), moment.dtype),
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            feature_group_count=feature_groups,
        )
        return summed[0] / np.prod(window, dtype=float)

    inside = jnp.sqrt(jnp.maximum(patches(x * x) - jnp.square(patches(x)), 0.0))
    inside = jnp.repeat(inside, y.shape[1] // feature_groups, axis=0)
    gain = _over(y.std(0), inside)
    return gain.mean(tuple(range(1, gain.ndim))), [spec.rhs_spec[0]]


def _over(outside: jax.Array, inside: jax.Array) -> jax.Array:
    varies = inside > 0
    return jnp.where(varies, outside / jnp.where(varies, inside, 1.0), 0.0)


def _check(product: Product, samples: Any) -> None:
    if np.prod(samples, dtype=int) < 2:
        raise base.PruningError(
            f"A gain needs at least two samples; {product.path} sees samples of shape "
            f"{tuple(samples)}."
        )


def gain_scores(
    graph: Graph,
    scores: base.Scores,
    gains: Mapping[str, Any],
    *,
    layout: tree.KernelLayout | None = None,
) -> dict[str, jax.Array]:
    """Returns the scores of entries by their filters' scores times gains.

    With S the scores of weights,

        R_k = (sum of S over filter k) * gain_k,   I = (R - min R) / (max R - min R)

    and the score of an entry is the mean of I over the kernels whose filters it is.

    Args:
      graph: the recorded function.
      scores: the params' tree of scores of weights, such as |w|; leaves may be hidden.
      gains: path -> array of the leaf's shape, as from `gains`.
      layout: `(path, leaf) -> KernelAxes`, which names the output axes of a kernel;
        None for `jprune.graph.layout(graph)`, which records the function again: for
        many calls, make it once.

    Returns:
      Group name -> scores `(size,)` in [0, 1], float32; zeros for groups without
      filters of a kernel with a gain, and for kernels whose R are all equal.

    Raises:
      PruningError: if two leaves have the same path, or if a leaf is not one of the
        params, has another shape, or is a shape without values, or if the layout does
        not settle the axes of one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.array([[1.0, 2.0, 3.0]]), "out": jnp.ones((3, 1))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 1)))
      >>> gain = {"in": jnp.array([[1.0, 1.0, 3.0]])}  # R = 1, 2, 9
      >>> jg.gain_scores(graph, params, gain)["in[1]"].tolist()
      [0.0, 0.125, 1.0]
    """
    leaves = checked_leaves(graph, scores)
    roles = _roles.layout(graph) if layout is None else layout

    def of(group: Group) -> list[jax.Array]:
        sums = [
            entry_sums(group, m, jnp.asarray(leaves[m.path]) * gains[m.path])
            for m in filter_members(graph, group, gains, roles)
            if m.path in leaves
        ]
        return [_spread_out(jnp.asarray(each)) for each in sums]

    return over_members(graph, of, mean, None)


def filter_members(
    graph: Graph, group: Group, gains: Mapping[str, Any], layout: tree.KernelLayout
) -> list[Member]:
    """Returns the members of a group that are output axes of kernels with a gain.

    Args:
      graph: the recorded function.
      group: one of its groups.
      gains: path of a leaf -> gains, as from `gains`; only the paths are used.
      layout: `(path, leaf) -> KernelAxes`, which names the output axes of a kernel.

    Returns:
      Members, in the order of the group.

    Example:
      The group is the output axis of `in`, and the input axis of `out`:

      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> group = graph.groups["in[1]"]
      >>> print(*jg.filter_members(graph, group, params, jp.kernel_axes))
      in[1]
    """
    shapes = tree.by_path(graph.params)
    members = [m for m in group.members if m.path in gains]
    return [m for m in members if is_output(m, shapes[m.path], layout)]


def _spread_out(scores: jax.Array) -> jax.Array:
    least, most = scores.min(), scores.max()
    return _over(scores - least, jnp.broadcast_to(most - least, scores.shape))
