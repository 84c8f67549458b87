"""Traces a function, relates its axes and finds the groups of its params."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import meshes, routing, scopes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Note, Options, Program, Recorder, Value
from jprune.graph._engine.rules import RULES
from jprune.graph._groups import Group, find_groups
from jprune.graph._state import check, holds_objects, watched

DEFAULT = Options()


class Graph(NamedTuple):
    """A recorded function, with the groups of axes that must shrink together.

    Attributes:
      groups: groups by name: the path of a leaf and one of its axes.
      notes: what is frozen and why, and which constants follow a size.
      fn: the function.
      params: shapes and dtypes of its params.
      inputs: shapes and dtypes of its inputs.
      axes: path of a leaf of params -> one dim for each axis.
      program: its equations.
      structure: tree structure of its results.
      options: how constants that were computed from a size are treated.
      shrinking: predicate of the results that may shrink, or None.
      rules: the caller's rules for further primitives.
      axis_env: name -> size of the named axes that the caller of the function binds.
      state: numbers of the leaves of `(params, *inputs)` that the function changes in
        place. Their new values are the program's last outputs.
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
    axis_env: Mapping[str, int] = types.MappingProxyType({})
    state: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.groups.values()))


def trace(
    fn: Callable[..., Any],
    params: base.Params,
    *inputs: Any,
    shrinking: base.Predicate | None = None,
    options: Options = DEFAULT,
    rules: dict[str, Callable[..., Any]] | None = None,
    axis_env: Mapping[str, int] | None = None,
) -> Graph:
    """Records a function and finds which axes of its params must shrink together.

    Nothing is computed, so abstract arrays suffice. Axes of the inputs and of the
    results are never pruned. A primitive without a rule is not an error: the axes of
    its operands are frozen, and a note names the primitive and the line of your code.

    State that the function changes in place, such as the running statistics and the
    counters of a Flax NNX module, is recorded with it: the functions of `shrink`,
    `without_entries` and `without_branches` write it into the module that they are
    given, and it shrinks with the weights. Under `jit` or `grad`, that is the module
    inside, as for the original: use `nnx.jit` and `nnx.grad`, or return the state.

    Nearly all of the time is that of `jax.make_jaxpr`. It traces equal blocks once if
    they are under `jax.jit`; in a Flax Linen module, that is `@nn.jit` above
    `@nn.compact`. Python's garbage collector is left alone. Its first full collection
    takes a tenth of a second, as it looks at all that JAX's imports made;
    `gc.freeze()` after the imports spares that.

    Args:
      fn: `(params, *inputs) -> results`, a function of any framework that JAX can
        trace; it may change modules among the params in place. Bind flags
        and fixed keys beforehand, for example by `functools.partial`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s. Include all collections
        that shrink with the weights, such as batch statistics.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`s.
      shrinking: `(path, leaf) -> bool`, which leaves of the results may shrink, such
        as new batch statistics or features: `1/batch_stats/norm/mean` is a path in
        the second of two results. None for no leaf.
      options: how constants that were computed from a size are treated.
      rules: primitive name -> `(node, recorder) -> Outcome`, for primitives that
        jprune has no rule for.
      axis_env: name -> size of the named axes of collectives in `fn`, such as the
        `axis_name` of batch normalization, where the caller of `fn` binds them. What
        is made of the graph has to be called where they are bound, too: under
        `jax.vmap(..., axis_name=...)`, or in `jax.shard_map(..., check_vma=False)`.

    Returns:
      A `Graph`.

    Raises:
      PruningError: if two leaves of params have the same path, if an option is
        neither "rescale" nor "keep", or if a collective names an unknown axis; or if
        the function changes its arguments in place in a way that cannot be written
        back, such as adding an attribute.

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
            raise base.PruningError(
                f'Options.{name} must be "rescale" or "keep"; got {value!r}.'
            )
    structs = jax.tree.map(_struct, params)
    shapes = jax.tree.map(_struct, inputs)
    bound, state = dict(axis_env or {}), ()
    if holds_objects((params, inputs)):
        whole_fn, changed = watched(fn)
        closed, (results, new) = _jaxpr(whole_fn, bound, structs, shapes)
        state = check((params, *inputs), changed, new)
    else:  # JAX remembers the jaxpr of a function that it has seen
        closed, results = _jaxpr(fn, bound, structs, shapes)
    recorder = Recorder(RULES | (rules or {}), options)
    recorder.scope = scopes.of_names(bound)
    program, axes = recorded(recorder, closed, structs, shapes)
    routing.relate(program, recorder)
    _protect(program, results, shrinking, list(axes))
    _couple(program, state)
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
        axis_env=bound,
        state=state,
    )


def _jaxpr(
    fn: Callable[..., Any], axis_env: dict[str, int], params: Any, inputs: Any
) -> tuple[Any, Any]:
    make = jax.make_jaxpr(fn, axis_env=list(axis_env.items()), return_shape=True)
    try:
        return make(params, *inputs)
    except NameError as error:
        if "unbound axis name" not in str(error):
            raise
        raise base.PruningError(
            f"{error} Trace the function that binds the axis (`jax.vmap` with "
            "`axis_name`, or `jax.shard_map`), or pass axis_env={name: size}; got "
            f"axis_env={axis_env}."
        ) from error


def recorded(
    recorder: Recorder, closed: Any, params: Any, inputs: Any
) -> tuple[Program, dict[str, tuple[Dim, ...]]]:
    """Records a closed jaxpr for params and inputs.

    Args:
      recorder: the recorder.
      closed: the closed jaxpr.
      params: shapes of the params.
      inputs: shapes of the inputs.

    Returns:
      The program, and the dims of params by path.
    """
    paths = tree.leaf_paths(params)
    of_params = [_value(x, False) for x in jax.tree.leaves(params)]
    of_inputs = [_value(x, True) for x in jax.tree.leaves(inputs)]
    for value in of_params:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
            for d in value.axes:
                dims_lib.freeze(d, "it is an axis of PRNG keys")
    for value in of_inputs:
        for d in value.axes:
            dims_lib.freeze(d, "it is an axis of an input")
    values = of_params + of_inputs
    program = recorder.instantiate(closed.jaxpr, closed.consts, values)
    return program, {p: v.axes for p, v in zip(paths, of_params, strict=True)}


def _protect(
    program: Program,
    results: Any,
    shrinking: base.Predicate | None,
    paths: Sequence[str],
) -> None:
    """Freezes the axes of the results, except for those that may shrink."""
    each = zip(
        _paths_of_results(results),
        program.outputs,
        jax.tree.leaves(results),
        strict=False,  # new state follows the results
    )
    for name, value, struct in each:
        if shrinking is None or not shrinking(name, struct):
            state = [p for p in paths if f"/{name}".endswith(f"/{p}")]
            mend = "; shrinking= of jg.trace says which results may shrink"
            for d in value.axes:
                why = f"it is an axis of the result {name!r}"
                dims_lib.freeze(d, why + mend if state else why)


def _couple(program: Program, state: Sequence[int]) -> None:
    """Relates new state to the leaves that it replaces, which have its shape."""
    new = program.outputs[len(program.outputs) - len(state) :]
    for i, value in zip(state, new, strict=True):
        for d, e in zip(program.inputs[i].axes, value.axes, strict=True):
            dims_lib.unify(d, e)


def retrace(
    graph: Graph,
    params: Any,
    inputs: tuple[Any, ...],
    axis_env: Mapping[str, int] | None = None,
) -> Graph:
    """Traces the function of a graph again, for inputs of other shapes."""
    return trace(
        graph.fn,
        params,
        *inputs,
        shrinking=graph.shrinking,
        options=graph.options,
        rules=graph.rules,
        axis_env=graph.axis_env if axis_env is None else axis_env,
    )


def param_values(graph: Graph) -> dict[Value, str]:
    """Returns the values of the params in a graph's program: value -> path."""
    return dict(zip(graph.program.inputs, graph.axes, strict=False))


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    # Not the array's own dtype: JAX reads NumPy's float64 as float32.
    dtype, weak = jax.dtypes.result_type(x), is_weak(x)
    where = meshes.typed(x)
    return jax.ShapeDtypeStruct(np.shape(x), dtype, weak_type=weak, sharding=where)


def is_weak(x: Any) -> bool:
    """Returns whether a value is weakly typed, as Python scalars are."""
    return bool(getattr(x, "weak_type", isinstance(x, int | float | complex)))


def _value(x: Any, active: bool) -> Value:
    value = Value(tuple(map(dims_lib.leaf, x.shape)), x.dtype)
    value.active = active
    return value


def _paths_of_results(results: Any) -> list[str]:
    """Returns the paths of results, which need not be distinct."""
    found: list[str] = []
    tree.map_with_path(lambda path, leaf: found.append(path), results)
    return found
