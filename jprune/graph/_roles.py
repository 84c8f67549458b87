"""The roles of kernel axes, read from the products of a recorded function.

The function is recorded a second time, with dims that relate params only: results that
depend on the inputs get dims of their own. So a dim at an operand of a product names
the axes of the leaf that it came from, through casts, transposes, reshapes,
concatenations and scans, even if a residual stream couples both axes of a kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import source_info_util

from jprune import tree
from jprune._core import base
from jprune.graph._cost import PRODUCTS
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import scopes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Node, Outcome, Recorder
from jprune.graph._engine.rules import RULES, control, derivatives, sharding
from jprune.graph._trace import Graph, recorded

Rule = Callable[[Node, Recorder], Outcome]

_CALLS: dict[str, Rule] = {
    **control.RULES,
    "shard_map": sharding.shard_map,
    **dict.fromkeys(derivatives.RULES, derivatives.primal),
}
"""Rules of equations with bodies, which are recorded as the other equations are."""


class _Use(NamedTuple):
    """An axis of an operand in a product with a value that depends on the inputs.

    Attributes:
      dim: the axis.
      role: "contracted", "an output", "a batch axis" or "spatial".
      where: file, line and function of the user's code.
    """

    dim: Dim
    role: str
    where: str


def layout(graph: Graph) -> tree.KernelLayout:
    """Returns the input and output axes of kernels, as the function uses them.

    An axis is an input if a matrix product or a convolution with a value that depends
    on the inputs contracts it, and an output if such a product has it as an axis of
    its result. Batch axes of products (experts), axes that `lax.scan` goes through
    (stacked layers) and windows of convolutions are neither. Leaves that meet no such
    product, such as biases and embeddings that are only looked up, have no roles.

    Names of leaves have no influence. Use the result where the names do not follow a
    convention that `jprune.kernel_axes` knows.

    Args:
      graph: the recorded function; a forward function, because gradients contract the
        outputs of kernels too.

    Returns:
      `(path, leaf) -> KernelAxes`, for `layout=` of links and recipes. A path may lack
      the first keys of the traced one, as `dense/kernel` of `params/dense/kernel`, if
      only one traced path ends in it.

    Raises:
      PruningError: when the result is called, for a leaf that was not traced, or not
        with this shape, and for one with an axis of two roles, such as an embedding
        that two products contract along different axes; gives both lines of code.

    Example:
      A kernel stored as (out, in), and 2:4 along the axis that is summed:

      >>> import jax.numpy as jnp, jprune as jp
      >>> from jprune import graph as jg
      >>> linear = lambda p, x: x @ p["proj"].T
      >>> params = {"proj": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> roles = jg.layout(jg.trace(linear, params, jnp.ones((5, 4))))
      >>> roles("proj", params["proj"])
      KernelAxes(input=(1,), output=(0,))
      >>> jp.prune(params, jp.recipes.n_of_m(2, 4, layout=roles))[0]["proj"]
      Array([[0., 0., 3., 4.]], dtype=float32)
    """
    axes, uses = _uses(graph)
    roles: dict[Dim, dict[str, str]] = {}
    for use in uses:
        for one in dims_lib.leaves_of(use.dim):
            roles.setdefault(one, {}).setdefault(use.role, use.where)
    of_axes = {path: [_roles_of(d, roles) for d in dims] for path, dims in axes.items()}
    shapes = {path: tuple(d.size for d in dims) for path, dims in axes.items()}

    def kernel_axes(path: str, leaf: Any) -> tree.KernelAxes:
        path = _traced_path(path, np.shape(leaf), shapes)
        for axis, found in enumerate(of_axes[path]):
            if len(found) > 1:
                said = " and ".join(f"{role} at {at}" for role, at in found.items())
                raise base.PruningError(
                    f"Axis {axis} of {path!r} has no single role: it is {said}. "
                    "Exclude the leaf with where=, or pass a layout= of your own that "
                    "returns its KernelAxes."
                )
        each = list(enumerate(of_axes[path]))
        return tree.KernelAxes(
            input=tuple(i for i, found in each if "contracted" in found),
            output=tuple(i for i, found in each if "an output" in found),
        )

    return kernel_axes


def _uses(graph: Graph) -> tuple[dict[str, tuple[Dim, ...]], list[_Use]]:
    """Returns the dims of params by path, and how products use them."""
    uses: list[_Use] = []
    rules = {n: _apart(rule, uses) for n, rule in (RULES | graph.rules).items()}
    make = jax.make_jaxpr(graph.fn, axis_env=list(graph.axis_env.items()))
    closed = make(graph.params, *graph.inputs)
    recorder = Recorder(rules | _CALLS)
    recorder.scope = scopes.of_names(graph.axis_env)
    _, axes = recorded(recorder, closed, graph.params, graph.inputs)
    return axes, uses


def _apart(rule: Rule, uses: list[_Use]) -> Rule:
    """Returns a rule that relates params only, and notes how products use them."""

    def of(node: Node, recorder: Recorder) -> Outcome:
        if node.name in PRODUCTS:
            uses.extend(_used(node))
        if not any(v.active for v in node.inputs):
            return rule(node, recorder)
        return Outcome([tuple(map(dims_lib.leaf, shape)) for shape in node.shapes])

    return of


def _used(node: Node) -> list[_Use]:
    """Returns the axes of the operand that depends on params alone, if one does."""
    left, right = node.inputs
    if left.active == right.active:
        return []
    side = int(left.active)
    kernel, numbers = node.inputs[side], node.params["dimension_numbers"]
    if node.name == "dot_general":
        contracted, batch = numbers[0][side], numbers[1][side]
        roles = ["an output"] * len(kernel.axes)
        for i in contracted:
            roles[i] = "contracted"
        for i in batch:
            roles[i] = "a batch axis"
    else:
        if side == 0:  # the image; its kernel depends on the inputs
            return []
        roles = ["spatial"] * len(kernel.axes)
        roles[numbers.rhs_spec[0]] = "an output"
        roles[numbers.rhs_spec[1]] = "contracted"
    where = source_info_util.summarize(node.equation.source_info)
    return [_Use(d, role, where) for d, role in zip(kernel.axes, roles, strict=True)]


def _roles_of(d: Dim, roles: Mapping[Dim, dict[str, str]]) -> dict[str, str]:
    """Returns the roles of an axis: role -> a line of code that gives it."""
    found: dict[str, str] = {}
    for one in dims_lib.leaves_of(d):
        found = roles.get(one, {}) | found
    return found


def _traced_path(
    path: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Returns the path of a traced leaf that equals a path or ends in it."""
    ends = [path] if path in shapes else [p for p in shapes if p.endswith(f"/{path}")]
    if len(ends) != 1:
        first = ", ".join(list(shapes)[:20])
        raise base.PruningError(
            f"The params that were traced have {len(ends) or 'no'} leaves at {path!r}; "
            f"trace the function with these params. Leaves: {first}"
        )
    if shapes[ends[0]] != shape:
        raise base.PruningError(
            f"The params that were traced have the shape {shapes[ends[0]]} at "
            f"{ends[0]}; got {shape}."
        )
    return ends[0]
