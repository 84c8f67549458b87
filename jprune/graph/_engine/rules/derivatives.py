"""Rules of functions with custom derivatives.

The derivative is recorded together with the function, so that it shrinks too, and so
that axes that only the derivative needs whole are frozen. A derivative that calls its
own function, such as that of `logaddexp`, would be recorded without end: beyond the
second order, ordinary differentiation replaces the custom rule.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import source_info_util

from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import meshes, scopes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.jaxprs import alone
from jprune.graph._engine.program import Node, Outcome, Program, Recorder, Value, View
from jprune.graph._engine.rules import elementwise
from jprune.graph._engine.rules.control import same
from jprune.graph._engine.running import run

_HIGHEST_ORDER = 2


def _structs(node: Node) -> list[Any]:
    return [
        a.aval
        if scopes.varies(a.aval) or meshes.typed(a.aval)
        else jax.ShapeDtypeStruct(v.shape, v.dtype)
        for a, v in zip(node.equation.invars, node.inputs, strict=True)
    ]


def _primal(node: Node, recorder: Recorder) -> Program:
    closed = node.params.get("call_jaxpr", node.params.get("fun_jaxpr"))
    return recorder.instantiate(closed.jaxpr, closed.consts, node.inputs)


def _traced(node: Node, recorder: Recorder, trace: Any) -> Any:
    """Returns the trace of a derivative, which calls of one function share."""

    def make() -> Any:
        with meshes.around(node.equation):
            return trace(node)

    within = functools.partial(recorder.scope.enter, make)
    return recorder.once((trace, node.equation), within)


def _derivative(
    recorder: Recorder, jaxpr: Any, constants: Sequence[Any], given: list[Value]
) -> Program:
    """Records the trace of a derivative."""
    recorder.order += 1
    program = recorder.instantiate(jaxpr, constants, given)
    recorder.order -= 1
    return program


def _closed_over(closed: Any, recorder: Recorder) -> dict[int, Value] | None:
    """Returns the values that a derivative takes from the trace of the function.

    The rule of a derivative may close over arrays that the function computes.

    Args:
      closed: the closed jaxpr of the derivative.
      recorder: knows the values of the function.

    Returns:
      Position among its constants -> value; None if a value is not known any more.
    """
    found: dict[int, Value] = {}
    for i, x in enumerate(closed.consts):
        if not isinstance(x, jax.core.Tracer) or not _has_ended(x):
            continue
        # JAX has no public way from a tracer to its variable, and its trace, where the
        # rule could have got the array as an argument (`jax.closure_convert`), is over.
        # Without the attribute, the derivative is refused by name.
        variable = getattr(x, "val", None)
        values = [k[variable] for k in recorder.known if variable in k]
        if not values:
            return None
        found[i] = values[0]
    return found


def _has_ended(tracer: Any) -> bool:
    """Returns whether the trace that an array belongs to has ended."""
    try:
        jax.jit(lambda x: x)(tracer)
    except jax.errors.UnexpectedTracerError:
        return True
    return False


def _refuse(where: str, *args: Any) -> Any:
    del args
    raise base.PruningError(
        f"The derivative rule of the function at {where} closes over an array that is "
        "computed inside of the traced function, so it cannot run again. Pass the "
        "array to the function (`jax.custom_vjp`, `jax.custom_jvp`) as an argument."
    )


def _entrywise(body: Program) -> bool:
    """Returns whether each entry of a result depends on the same entry of operands."""
    return all(
        n.name in elementwise.RULES or (n.name == "custom_jvp_call" and n.inner)
        for n in body.nodes
    ) and all(_entrywise(inner) for n in body.nodes for inner in n.inner)


def _later(node: Node, record: Callable[[], Program]) -> Program:
    """Records a derivative after the graph is made: it must not change the groups."""
    before = _leaves(node)
    program = record()
    if _leaves(node) != before:
        where = source_info_util.summarize(node.equation.source_info)
        raise base.PruningError(
            f"The custom derivative at {where} couples or freezes axes that its "
            "function does not, so it cannot run on smaller arrays."
        )
    return program


def _leaves(node: Node) -> list[tuple[Dim, str]]:
    found = [x for v in node.inputs for d in v.axes for x in dims_lib.leaves_of(d)]
    # A single entry is never removed, so its state does not matter.
    return [(x, x.frozen) for x in found if x.size not in (0, 1)]


def _plain(node: Node, body: Program) -> Outcome:
    """Returns the outcome of the function without its custom derivative."""
    node.inner = [body]
    axes = [v.axes for v in body.outputs]
    return Outcome(axes, run=functools.partial(run, body))


def primal(node: Node, recorder: Recorder) -> Outcome:
    """A function with a custom derivative, recorded without it."""
    return _plain(node, _primal(node, recorder))


def _copies(values: Sequence[Value]) -> list[Value]:
    made = []
    for value in values:
        new = Value(value.axes, value.dtype)
        new.active = value.active
        made.append(new)
    return made


def _moving(values: Sequence[Any]) -> list[bool]:
    """Returns which values have tangents, that is, are inexact."""
    return [bool(jax.numpy.issubdtype(v.dtype, jax.numpy.inexact)) for v in values]


def _only(values: Sequence[Any], moving: Sequence[bool]) -> list[Any]:
    return list(itertools.compress(values, moving))


def _tangents(found: Iterable[Any], values: Sequence[Any], moving: Any) -> tuple:
    """Returns tangents of all values: those found, and float0 for what has none."""
    each = iter(found)
    return tuple(
        next(each) if m else np.zeros(np.shape(x), jax.dtypes.float0)
        for x, m in zip(values, moving, strict=True)
    )


def _trace_jvp(node: Node) -> Any:
    structs = _structs(node)
    call, moving = alone(node.equation), _moving(structs)

    def pushed(primals: Any, tangents: Any) -> Any:
        full = _tangents(tangents, structs, moving)
        out, out_tangents = jax.jvp(call, tuple(primals), full)
        return _only(out_tangents, _moving(out))

    return jax.make_jaxpr(pushed)(structs, _only(structs, moving))


def custom_jvp(node: Node, recorder: Recorder) -> Outcome:
    """A function with a rule for its tangents (`jax.custom_jvp`)."""
    body = _primal(node, recorder)
    if recorder.order == _HIGHEST_ORDER:
        return _plain(node, body)
    node.inner = [body]
    moving = _moving(node.inputs)
    record = functools.partial(_jvp, node, recorder, body, moving)
    later = recorder.scope is scopes.NOWHERE and _entrywise(body)
    # On demand: activations, of which a network has dozens, and what cannot run.
    if later or _closed_over(_traced(node, recorder, _trace_jvp), recorder) != {}:
        derived = functools.cache(functools.partial(_later, node, record))
    else:
        derived = functools.partial(_given, record())
    go = functools.partial(_run_jvp, body, derived, moving)
    return Outcome([v.axes for v in body.outputs], run=go)


def _given(program: Program) -> Program:
    return program


def _jvp(
    node: Node, recorder: Recorder, body: Program, moving: Sequence[bool]
) -> Program:
    """Records the derivative of a function with a rule for its tangents."""
    given = _copies([*node.inputs, *_only(node.inputs, moving)])
    closed = _traced(node, recorder, _trace_jvp)
    if _closed_over(closed, recorder) != {}:
        _refuse(source_info_util.summarize(node.equation.source_info))
    found = _derivative(recorder, closed.jaxpr, closed.consts, given)
    same(found.outputs, _only(body.outputs, _moving(body.outputs)))
    return found


def _run_jvp(
    body: Program,
    derived: Callable[[], Program],
    moving: Sequence[bool],
    view: View,
    *operands: Any,
) -> list[Any]:
    @jax.custom_jvp
    def call(*xs: Any) -> Any:
        return tuple(run(body, view, *xs))

    @call.defjvp
    def push(primals: Any, tangents: Any) -> Any:
        out = call(*primals)
        found = run(derived(), view, *primals, *_only(tangents, moving))
        return out, _tangents(found, out, _moving(out))

    return list(call(*operands))


def _trace_vjp(node: Node) -> tuple[int, Any]:
    """Returns how many of the first operands are closed over, and the derivative.

    The rule of a function gives no cotangents to arrays that it closes over, and JAX
    refuses to differentiate by them. Where it has been traced before, they look like
    arguments, and only the refusal tells them apart.
    """
    known = node.params.get("num_consts", 0)
    for closed in range(known, len(node.inputs)):
        try:
            return closed, _trace_pull(node, closed)
        except Exception as error:
            if type(error).__name__ != "CustomVJPException":  # it has no public name
                raise
    return len(node.inputs), _trace_pull(node, len(node.inputs))


def _trace_pull(node: Node, closed: int) -> Any:
    structs = _structs(node)
    call, moving = alone(node.equation), _moving(structs[closed:])

    def pulled(primals: Any, cotangents: Any) -> Any:
        given = functools.partial(call, *primals[:closed])
        out, pull = jax.vjp(given, *primals[closed:])
        return _only(pull(_tangents(cotangents, out, _moving(out))), moving)

    results = jax.eval_shape(call, *structs)
    return jax.make_jaxpr(pulled)(structs, _only(results, _moving(results)))


def custom_vjp(node: Node, recorder: Recorder) -> Outcome:
    """A function with a rule for its cotangents (`jax.custom_vjp`)."""
    body = _primal(node, recorder)
    if recorder.order == _HIGHEST_ORDER:
        return _plain(node, body)
    node.inner = [body]
    fixed, closed = _traced(node, recorder, _trace_vjp)
    moving, more = _moving(node.inputs[fixed:]), _closed_over(closed, recorder)
    if more is None:
        more = {}
        where = source_info_util.summarize(node.equation.source_info)
        pull = functools.partial(_refuse, where)
    else:
        pull = functools.partial(run, _pulled(node, recorder, body, fixed, more))
        node.inputs = (*more.values(), *node.inputs)  # its derivative needs these
    go = functools.partial(_run_vjp, body, pull, moving, len(more), fixed)
    return Outcome([v.axes for v in body.outputs], run=go)


def _pulled(
    node: Node, recorder: Recorder, body: Program, fixed: int, more: dict[int, Value]
) -> Program:
    """Records the derivative; its first inputs are what it takes from the trace."""
    _, closed = _traced(node, recorder, _trace_vjp)
    results = _only(body.outputs, _moving(body.outputs))
    extra = dict(zip(more, _copies(list(more.values())), strict=True))
    constants = [extra.get(i, x) for i, x in enumerate(closed.consts)]
    given = _copies([*node.inputs, *results])
    found = _derivative(recorder, closed.jaxpr, constants, given)
    operands = node.inputs[fixed:]
    same(found.outputs, _only(operands, _moving(operands)))
    return found._replace(inputs=[*extra.values(), *found.inputs])


def _run_vjp(
    body: Program,
    pull: Callable[..., Any],
    moving: Sequence[bool],
    more: int,
    fixed: int,
    view: View,
    *operands: Any,
) -> list[Any]:
    """Runs the function so that JAX differentiates it by its rule.

    Args:
      body: the function.
      pull: its derivative.
      moving: which of the arguments have cotangents.
      more: number of operands that only the derivative needs, which are first.
      fixed: number of the next operands, which the function closes over.
      view: the sizes.
      *operands: arrays.
    """
    extra, rest = operands[:more], operands[more:]
    constants, args = rest[:fixed], rest[fixed:]

    @jax.custom_vjp
    def call(extra: Any, *xs: Any) -> Any:
        del extra
        return tuple(run(body, view, *constants, *xs))

    def forward(extra: Any, *xs: Any) -> Any:
        # The residuals: the rule's forward pass is recomputed.
        return call(extra, *xs), (extra, constants, xs)

    def backward(residuals: Any, cotangents: Any) -> Any:
        extra, constants, xs = residuals
        given = [c for c in cotangents if c.dtype != jax.dtypes.float0]
        found = pull(view, *extra, *constants, *xs, *given)
        still = [jax.numpy.zeros_like(x) for x in _only(extra, _moving(extra))]
        none = _tangents(still, extra, _moving(extra))
        return none, *_tangents(found, xs, moving)

    call.defvjp(forward, backward)
    return list(call(tuple(extra), *args))


RULES = {
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
    "custom_vjp_call_jaxpr": custom_vjp,
}
