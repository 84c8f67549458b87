"""From a function to its graph: one trace, all axes related, groups found."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Note, Options, Program, Recorder, Value
from jprune.graph._engine.rules import RULES
from jprune.graph._groups import Group, find_groups

DEFAULT = Options()


class Graph(NamedTuple):
    """A recorded function, and what of its params must shrink together.

    Attributes:
      groups: by name; a name is the path of a leaf and one of its axes.
      notes: what is frozen and why, and which numbers follow a size.
      fn: the function.
      params: shapes and types of its params.
      inputs: shapes and types of its inputs.
      axes: path of a leaf of params -> a dim for each axis.
      program: the equations.
      structure: of the function's result.
      options: how ambiguous numbers are read.
      shrinking: which results may shrink.
      rules: of the caller, for primitives that jprune has no rule for.
    """

    groups: dict[str, Group]
    notes: tuple[Note, ...]
    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    axes: dict[str, tuple[Dim, ...]]
    program: Program
    structure: Any
    options: Options
    shrinking: base.Predicate | None
    rules: dict[str, Callable[..., Any]]

    def __str__(self) -> str:
        return "\n".join(map(str, self.groups.values()))


def trace(
    fn: Callable[..., Any],
    params: base.Params,
    *inputs: Any,
    shrinking: base.Predicate | None = None,
    options: Options = DEFAULT,
    rules: dict[str, Callable[..., Any]] | None = None,
) -> Graph:
    """Records a function and finds which axes of its params must shrink together.

    Nothing is computed: shapes suffice. Axes of the inputs and of the results are
    protected. A primitive without a rule is no error: the axes that meet it are
    frozen, and a note names it and the line of your code.

    Args:
      fn: `(params, *inputs) -> results`, a pure function of any framework. Bind flags
        and fixed keys beforehand, as with `functools.partial`.
      params: any pytree of arrays, or of `jax.ShapeDtypeStruct`s. All collections
        that shrink belong here: batch statistics too.
      *inputs: pytrees of arrays or of shapes.
      shrinking: which leaves of the results may become smaller: new batch
        statistics, features. None protects them all.
      options: how numbers that come from a size are read.
      rules: for primitives that jprune has no rule for, by name.

    Returns:
      A `Graph`.

    Raises:
      PruningError: if two leaves of params have the same path, or an option is
        neither "rescale" nor "keep".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...   return jax.nn.relu(x @ params["in"]) @ params["out"]
      >>> shapes = {"in": jnp.zeros((3, 8)), "out": jnp.zeros((8, 2))}
      >>> graph = trace(mlp, shapes, jnp.zeros((5, 3)))
      >>> print(graph)
      in[1]: hidden, 8 entries, in[1], out[0]
    """
    for name, value in options._asdict().items():
        if value not in ("rescale", "keep"):
            raise base.PruningError(f'{name} is "rescale" or "keep"; got {value!r}.')
    structs = jax.tree.map(_struct, params)
    shapes = jax.tree.map(_struct, inputs)
    closed, results = jax.make_jaxpr(fn, return_shape=True)(structs, *shapes)
    with _without_collection():
        recorder = Recorder(RULES | (rules or {}))
        program, axes = _recorded(recorder, closed, structs, shapes)
        _protect(program, results, shrinking)
        return Graph(
            groups=find_groups(axes),
            notes=tuple(recorder.notes),
            fn=fn,
            params=structs,
            inputs=shapes,
            axes=axes,
            program=program,
            structure=jax.tree.structure(results),
            options=options,
            shrinking=shrinking,
            rules=dict(rules or {}),
        )


def _recorded(
    recorder: Recorder, closed: Any, params: Any, inputs: Any
) -> tuple[Program, dict[str, tuple[Dim, ...]]]:
    """Records a closed jaxpr; returns the dims of the params by path, too."""
    paths = tree.leaf_paths(params)
    of_params = [_value(x, False) for x in jax.tree.leaves(params)]
    of_inputs = [_value(x, True) for x in jax.tree.leaves(inputs)]
    for path, value in zip(paths, of_params, strict=True):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
            for d in value.axes:
                dims_lib.freeze(d, f"{path} holds keys")
    for value in of_inputs:
        for d in value.axes:
            dims_lib.freeze(d, "it is an axis of an input")
    values = of_params + of_inputs
    program = recorder.instantiate(closed.jaxpr, closed.consts, values)
    return program, {p: v.axes for p, v in zip(paths, of_params, strict=True)}


def _protect(program: Program, results: Any, shrinking: base.Predicate | None) -> None:
    """Freezes the axes of the results, but for those that may shrink."""
    each = zip(
        _paths_of_results(results),
        program.outputs,
        jax.tree.leaves(results),
        strict=True,
    )
    for name, value, struct in each:
        if shrinking is None or not shrinking(name, struct):
            for d in value.axes:
                dims_lib.freeze(d, f"it is an axis of the result {name!r}")


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Pauses the collection of garbage, which there is none of here.

    A recording makes many small objects that stay; with collections among them it
    takes twice the time for a hundred layers. One right after it would look at all of
    them again: they join the old objects without, unless somebody has frozen some,
    which are to stay frozen.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def retrace(graph: Graph, params: Any, inputs: tuple[Any, ...]) -> Graph:
    """Returns the graph of the same function for inputs of other shapes."""
    return trace(
        graph.fn,
        params,
        *inputs,
        shrinking=graph.shrinking,
        options=graph.options,
        rules=graph.rules,
    )


def explain(graph: Graph) -> str:
    """Returns in words what is frozen and why, and which numbers follow a size."""
    frozen = []
    for path, axes in graph.axes.items():
        for i, d in enumerate(axes):
            why = {x.frozen for x in dims_lib.leaves_of(d) if x.frozen}
            if why:
                frozen.append(f"{path}[{i}] is frozen: {'; '.join(sorted(why))}")
    live = [str(n) for n in graph.notes if n.kind != "frozen" and _matters(n)]
    return "\n".join(frozen + live)


def _matters(note: Note) -> bool:
    leaves = [x for d in note.about for x in dims_lib.leaves_of(d)]
    return any(not x.frozen and x.size > 1 for x in leaves)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    # Not the array's own type: JAX reads a float64 of NumPy as a float32.
    dtype, weak = jax.dtypes.result_type(x), is_weak(x)
    return jax.ShapeDtypeStruct(np.shape(x), dtype, weak_type=weak)


def is_weak(x: Any) -> bool:
    """True for Python's numbers and what JAX treats like them in promotions."""
    return bool(getattr(x, "weak_type", isinstance(x, int | float | complex)))


def _value(x: Any, active: bool) -> Value:
    value = Value(tuple(map(dims_lib.leaf, x.shape)), x.dtype)
    value.active = active
    return value


def _paths_of_results(results: Any) -> list[str]:
    """Paths of results, unlike those of params not necessarily distinct."""
    found: list[str] = []
    tree.map_with_path(lambda path, leaf: found.append(path), results)
    return found
