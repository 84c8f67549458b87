"""Runs a recorded function on smaller arrays, or at full size without some entries."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import tree
from jprune._core import base
from jprune.graph import _plan, _slicing
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout, meshes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import View
from jprune.graph._engine.running import run
from jprune.graph._engine.sizes import is_symbolic, key_of
from jprune.graph._groups import check_known
from jprune.graph._plan import Keep, Plan
from jprune.graph._state import write
from jprune.graph._trace import Graph, is_weak, retrace


def shrink(
    graph: Graph,
    params: base.Params,
    plan: Plan | None = None,
    *,
    keep: Keep | None = None,
) -> tuple[Callable[..., Any], base.Params]:
    """Returns a function and params that are really smaller.

    The function is the recorded one, run on smaller arrays: all sizes in it follow
    from the kept entries, and so do the divisors of means. It accepts inputs of every
    shape that the original accepts, and composes with `jax.jit`, `grad`, `vmap` and
    `jax.export`, also with symbolic dimensions (what is exported is serialized with
    flatbuffers: `pip install "jprune[export]"`).
    Outside of `jit` it runs equation by equation.

    Args:
      graph: graph of the full function.
      params: full arrays, or their `jax.ShapeDtypeStruct`s. Shapes are enough where the
        small arrays come from a checkpoint.
      plan: the kept entries of leaves, as from `make_plan` or `loads`.
      keep: the kept entries of groups, as from `choose`, in place of a plan.

    Returns:
      `(small_fn, small_params)`, with `small_fn(small_params, *inputs)`. The small
      params of shapes are shapes, to restore a checkpoint into.

    Raises:
      PruningError: if not exactly one of plan and keep is given, if it does not fit
        the graph, or if the params are not those that were traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> small_fn, small = jg.shrink(graph, params, keep={"in[1]": [0, 2]})
      >>> jax.tree.map(jnp.shape, small)
      {'in': (3, 2), 'out': (2, 2)}
      >>> jax.jit(small_fn)(small, jnp.ones((7, 3))).shape
      (7, 2)
    """
    if (plan is None) == (keep is None):
        raise base.PruningError("shrink takes either a plan or keep=..., and not both.")
    check_params(params, graph.params, "The params that were traced")
    if plan is not None:
        masks = _plan.keep_of(graph, plan)
    else:
        masks = _plan.entry_masks(graph, keep or {})
        plan = _plan.plan_of(graph, masks)
    return _small_fn(graph, plan, masks), _slicing.slice_tree(plan, params)


def _small_fn(
    graph: Graph, plan: Plan, masks: Mapping[str, np.ndarray]
) -> Callable[..., Any]:
    """Returns the function on smaller arrays, recorded anew for each input shape."""
    key = _types(graph.params), signature(graph.inputs), tuple(graph.axis_env.items())
    views = {key: (graph, small_view(graph, masks))}
    expected = _slicing.shapes(plan, graph.params)

    def small_fn(small_params: Any, *inputs: Any) -> Any:
        check_params(small_params, expected, "The shrunk params")
        bound = axis_sizes(graph)
        key = _types(small_params), signature(inputs), tuple(bound.items())
        if key not in views:
            params = jax.tree.map(_retyped, graph.params, small_params)
            other = retrace(graph, params, inputs, bound)
            views[key] = other, small_view(other, _plan.keep_of(other, plan))
        recorded, view = views[key]
        return call(recorded, view, small_params, inputs)

    return small_fn


def without_entries(graph: Graph, keep: Keep) -> Callable[..., Any]:
    """Returns the function at full size, computed as if entries had been removed.

    Removed entries take part in no sum, maximum or mean, and removed iterations of a
    scan have no effect. The bools may be traced, so that one compilation serves all
    choices: for the sensitivity of groups, for example, or for learned masks.

    Args:
      graph: the recorded function.
      keep: group name -> bools `(size,)`. Groups that are missing are kept whole.

    Returns:
      `(params, *inputs) -> results`, for inputs of the recorded shapes. It computes
      the same numbers as the shrunk function.

    Raises:
      PruningError: if there is no such group, or if bools or inputs have other shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.mean(x @ p["in"], axis=1)
      >>> params, x = {"in": jnp.array([[1.0, 3.0]])}, jnp.ones((1, 1))
      >>> graph = jg.trace(mlp, params, x)
      >>> jg.without_entries(graph, {"in[1]": jnp.array([True, False])})(params, x)
      Array([1.], dtype=float32)
    """
    check_known(graph.groups, keep)
    for name in keep:
        size, shape = graph.groups[name].size, np.shape(keep[name])
        if shape != (size,):
            raise base.PruningError(
                f"The group {name} has {size} entries; got bools of shape {shape}."
            )
    masks = {graph.groups[name].dim: jnp.asarray(m, bool) for name, m in keep.items()}
    counts = {one: mask.sum() for one, mask in masks.items()}

    def count(d: Dim) -> Any:
        changed = any(x in counts for x in dims_lib.leaves_of(d))
        return layout.size_of(d, counts) if changed else d.size

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
                f"The function was recorded for inputs {graph.inputs}; got shapes "
                f"{jax.tree.map(jnp.shape, inputs)}. Trace it for these inputs."
            )
        return call(graph, view, params, inputs)

    return full_fn


def small_view(graph: Graph, masks: Mapping[str, np.ndarray]) -> View:
    """Returns the view of a program on the kept entries of groups.

    Args:
      graph: the recorded function.
      masks: group name -> bools `(size,)`.
    """
    kept = {graph.groups[name].dim: mask for name, mask in masks.items()}
    counts = {one: int(mask.sum()) for one, mask in kept.items()}
    sizes: dict[Dim, int] = {}
    entries: dict[Dim, Any] = {}

    def size(d: Dim) -> int:
        d = dims_lib.resolve(d)
        if d not in sizes:
            sizes[d] = layout.size_of(d, counts)
        return sizes[d]

    def indices(d: Dim) -> Any:
        d = dims_lib.resolve(d)
        if is_symbolic(d.size):  # computed by the program: no number to keep
            return layout.entries(d, kept)
        if d not in entries:
            entries[d] = layout.entries(d, kept)
        return entries[d]

    return View(size, size, indices, lambda d: None, graph.options)


def call(graph: Graph, view: View, params: Any, inputs: tuple[Any, ...]) -> Any:
    """Returns the results of a recorded function at the sizes of a view.

    State that the function changes in place is written into params and inputs.

    Args:
      graph: the recorded function.
      view: the sizes.
      params: arrays, at these sizes.
      inputs: its further arguments.

    Raises:
      PruningError: if named axes have other sizes than the recorded ones.
    """
    if (bound := axis_sizes(graph)) != graph.axis_env:
        raise base.PruningError(
            f"The function was recorded for named axes of sizes {graph.axis_env}; it "
            f"is called where they are {bound}. Trace it for these."
        )
    args = [jnp.asarray(x) for x in jax.tree.leaves((params, inputs))]
    outputs = run(graph.program, view, *args)
    count = len(outputs) - len(graph.state)
    write((params, *inputs), graph.state, outputs[count:])
    return jax.tree.unflatten(graph.structure, outputs[:count])


def axis_sizes(graph: Graph) -> dict[str, int]:
    """Returns the sizes of a graph's named axes where this is called.

    Args:
      graph: the recorded function.

    Raises:
      PruningError: if one of them is not bound.
    """
    try:
        return {name: lax.axis_size(name) for name in graph.axis_env}
    except NameError as error:
        raise base.PruningError(
            f"The function was recorded for named axes of sizes {graph.axis_env}. Call "
            "it where they are bound: under `jax.vmap` with `axis_name`, or in "
            f"`jax.shard_map`. {error}"
        ) from error


def check_params(params: base.Params, expected: base.Params, what: str) -> None:
    """Checks that params have the tree structure and the shapes of others.

    Args:
      params: arrays.
      expected: arrays, or their shapes.
      what: what these are, as the error message begins.

    Raises:
      PruningError: if they differ; names the leaves.
    """
    structure, wanted = jax.tree.structure(params), jax.tree.structure(expected)
    if structure != wanted:
        given, known = tree.leaf_paths(params), tree.leaf_paths(expected)
        missing = [path for path in known if path not in given]
        unknown = [path for path in given if path not in known]
        differs = f"missing leaves {missing}, unknown leaves {unknown}"
        if not missing and not unknown:
            differs = (
                "the leaves are the same, but their containers differ, or values that "
                "these hold beside arrays, which a module's `train()` and `eval()` set"
            )
        raise base.PruningError(f"{what} have another tree structure: {differs}.")
    leaves = jax.tree.leaves(params), jax.tree.leaves(expected)
    for i, (x, struct) in enumerate(zip(*leaves, strict=True)):
        if np.shape(x) != np.shape(struct):
            raise base.PruningError(
                f"{what} have the shape {np.shape(struct)} at "
                f"{tree.leaf_paths(expected)[i]}; got {np.shape(x)}."
            )


def _types(params: Any) -> tuple[Any, ...]:
    return tuple(map(_type, jax.tree.leaves(params)))


def _type(x: Any) -> tuple[Any, ...]:
    return jax.dtypes.result_type(x), is_weak(x), meshes.places(x)


def _retyped(struct: Any, x: Any) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.result_type(x)
    where = meshes.fitted(meshes.typed(x), struct.shape)
    return jax.ShapeDtypeStruct(
        struct.shape, dtype, weak_type=is_weak(x), sharding=where
    )


def signature(inputs: tuple[Any, ...]) -> Any:
    """Returns the tree structure, shapes and dtypes that a recording depends on."""
    leaves, structure = jax.tree.flatten(inputs)
    shapes = [(key_of(np.shape(x)), *_type(x)) for x in leaves]
    return structure, tuple(shapes)
