"""The same function on smaller arrays; and on full ones as if they were smaller."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph import _plan
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import View
from jprune.graph._engine.running import run
from jprune.graph._groups import check_known
from jprune.graph._plan import Keep, Plan
from jprune.graph._trace import Graph, is_weak, retrace


def shrink(
    graph: Graph, params: base.Params, plan: Plan
) -> tuple[Callable[..., Any], base.Params]:
    """Returns a function and params that are really smaller.

    The function is the recorded one, run on smaller arrays: every size in it follows
    from what is kept, and so do the divisors of means. It takes inputs of any shape
    that the original takes, and composes with `jax.jit`, `grad`, `vmap` and
    `jax.export`, whose serialization needs the package flatbuffers. Calling it outside
    `jit` runs it equation by equation.

    Args:
      graph: of the full function.
      params: full arrays.
      plan: which entries are kept.

    Returns:
      `(small_fn, small_params)`, with `small_fn(small_params, *inputs)`.

    Raises:
      PruningError: if the plan does not fit the graph.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> small, kept = shrink(graph, params, jg.make_plan(graph, {"in[1]": [0, 2]}))
      >>> jax.tree.map(jnp.shape, kept)
      {'in': (3, 2), 'out': (2, 2)}
      >>> jax.jit(small)(kept, jnp.ones((7, 3))).shape
      (7, 2)
    """
    keep = _plan.keep_of(graph, plan)
    types = _types(graph.params)
    views = {(types, signature(graph.inputs)): (graph, small_view(graph, keep))}
    expected = _plan.shapes(plan, graph.params)

    def small_fn(small_params: Any, *inputs: Any) -> Any:
        _check(small_params, expected)
        key = _types(small_params), signature(inputs)
        if key not in views:
            params = jax.tree.map(_retyped, graph.params, small_params)
            other = retrace(graph, params, inputs)
            views[key] = other, small_view(other, _plan.keep_of(other, plan))
        recorded, view = views[key]
        return call(recorded, view, small_params, inputs)

    return small_fn, _plan.slice_tree(plan, params)


def removed(graph: Graph, keep: Keep) -> Callable[..., Any]:
    """Returns the function at full size, computed as if entries were removed.

    Removed entries take part in no sum, maximum or mean, and removed turns of a scan
    change nothing. The masks may be traced: one compilation serves all choices, as
    for the sensitivity of groups or for learned masks.

    Args:
      graph: the recorded function.
      keep: group name -> bools.

    Returns:
      `(params, *inputs) -> results`, for inputs of the recorded shapes; the same
      numbers as the shrunk function gives.

    Raises:
      PruningError: if there is no such group, or bools or inputs have other shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.mean(x @ p["in"], axis=1)
      >>> params, x = {"in": jnp.array([[1.0, 3.0]])}, jnp.ones((1, 1))
      >>> graph = jg.trace(mlp, params, x)
      >>> removed(graph, {"in[1]": jnp.array([True, False])})(params, x)
      Array([1.], dtype=float32)
    """
    check_known(graph.groups, keep)
    for name in keep:
        size, shape = graph.groups[name].size, np.shape(keep[name])
        if shape != (size,):
            raise base.PruningError(
                f"The group {name} has {size} entries; got bools of shape {shape}."
            )
    masks = {
        id(graph.groups[name].dim): jnp.asarray(m, bool) for name, m in keep.items()
    }
    counts = {key: mask.sum() for key, mask in masks.items()}

    def count(d: Dim) -> Any:
        if not any(id(x) in counts for x in dims_lib.leaves_of(d)):
            return d.size
        return _counted(d, lambda x: counts.get(id(x), x.size))

    view = View(
        size=lambda d: d.size,
        count=count,
        indices=lambda d: None,
        mask=lambda d: _plan.mask_of(d, masks),
        options=graph.options,
    )

    def full_fn(params: Any, *inputs: Any) -> Any:
        if signature(inputs) != signature(graph.inputs):
            raise base.PruningError(
                f"The function was recorded for inputs {graph.inputs}; got "
                f"{jax.tree.map(jnp.shape, inputs)}. Trace it for these."
            )
        return call(graph, view, params, inputs)

    return full_fn


def small_view(graph: Graph, keep: dict[str, np.ndarray]) -> View:
    """Returns the view of a program on the entries that are kept."""
    masks = {id(graph.groups[name].dim): mask for name, mask in keep.items()}
    counts = {key: int(mask.sum()) for key, mask in masks.items()}
    sizes: dict[int, int] = {}
    entries: dict[int, np.ndarray | None] = {}

    def size(d: Dim) -> int:
        d = dims_lib.resolve(d)
        if id(d) not in sizes:
            sizes[id(d)] = _counted(d, lambda x: counts.get(id(x), x.size))
        return sizes[id(d)]

    def indices(d: Dim) -> np.ndarray | None:
        d = dims_lib.resolve(d)
        if id(d) not in entries:
            mask = _plan.mask_of(d, masks)
            entries[id(d)] = None if mask is None else np.flatnonzero(mask)
        return entries[id(d)]

    return View(size, size, indices, lambda d: None, graph.options)


def _counted(d: Dim, of_leaf: Callable[[Dim], Any]) -> Any:
    return layout.evaluate(d, of_leaf, lambda a, b: a * b, lambda a, b: a + b)


def call(graph: Graph, view: View, params: Any, inputs: tuple[Any, ...]) -> Any:
    """Returns the results of a recorded function at the sizes of a view."""
    args = [jnp.asarray(x) for x in jax.tree.leaves((params, inputs))]
    return jax.tree.unflatten(graph.structure, run(graph.program, view, *args))


def _check(params: Any, expected: Any) -> None:
    structure, wanted = jax.tree.structure(params), jax.tree.structure(expected)
    if structure != wanted:
        raise base.PruningError(f"Expected params {wanted}; got {structure}.")
    paths = tree.leaf_paths(expected)
    leaves = jax.tree.leaves(params), jax.tree.leaves(expected)
    for path, x, struct in zip(paths, *leaves, strict=True):
        if np.shape(x) != struct.shape:
            raise base.PruningError(
                f"After the plan {path} has shape {struct.shape}; got {np.shape(x)}."
            )


def _types(params: Any) -> tuple[Any, ...]:
    leaves = jax.tree.leaves(params)
    return tuple((jax.dtypes.result_type(x), is_weak(x)) for x in leaves)


def _retyped(struct: Any, x: Any) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.result_type(x)
    return jax.ShapeDtypeStruct(struct.shape, dtype, weak_type=is_weak(x))


def signature(inputs: tuple[Any, ...]) -> Any:
    """Returns what tells inputs apart for which a function is recorded anew."""
    leaves, structure = jax.tree.flatten(inputs)
    shapes = [(np.shape(x), jax.dtypes.result_type(x), is_weak(x)) for x in leaves]
    return structure, tuple(shapes)
