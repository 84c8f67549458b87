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
from jax.extend import core, source_info_util

from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import scopes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Node, Outcome, Program, Recorder, Value, View
from jprune.graph._engine.rules import elementwise
from jprune.graph._engine.rules.control import same
from jprune.graph._engine.running import run

_HIGHEST_ORDER = 2


def _alone(node: Node) -> Any:
    """Returns the equation as a function of its operands, with its derivative."""
    equation = node.equation
    invars = [a for a in equation.invars if not isinstance(a, core.Literal)]
    distinct = list(dict.fromkeys(invars))
    closed = node.params.get("call_jaxpr", node.params.get("fun_jaxpr"))
    names = closed.jaxpr.debug_info._replace(
        arg_names=("",) * len(distinct), result_paths=("",) * len(equation.outvars)
    )
    jaxpr = core.Jaxpr(
        (), distinct, equation.outvars, [equation], equation.effects, debug_info=names
    )
    inner = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    places = [invars.index(v) for v in distinct]
    literal = [isinstance(a, core.Literal) for a in equation.invars]

    def call(*operands: Any) -> Any:
        free = [x for x, fixed in zip(operands, literal, strict=True) if not fixed]
        return tuple(inner(*(free[i] for i in places)))

    return call


def _structs(node: Node) -> list[Any]:
    return [
        a.aval if scopes.varies(a.aval) else jax.ShapeDtypeStruct(v.shape, v.dtype)
        for a, v in zip(node.equation.invars, node.inputs, strict=True)
    ]


def _primal(node: Node, recorder: Recorder) -> Program:
    closed = node.params.get("call_jaxpr", node.params.get("fun_jaxpr"))
    return recorder.instantiate(closed.jaxpr, closed.consts, node.inputs)


def _derivative(
    node: Node, recorder: Recorder, trace: Any, given: list[Value]
) -> Program:
    """Records a derivative; calls of one function share its trace."""
    within = functools.partial(recorder.scope.enter, lambda: trace(node))
    closed = recorder.once((trace, node.equation), within)
    recorder.order += 1
    program = recorder.instantiate(closed.jaxpr, closed.consts, given)
    recorder.order -= 1
    return program


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
    return [(x, x.frozen) for x in found if x.size > 1]


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
    call, moving = _alone(node), _moving(structs)

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
    anywhere = recorder.scope is scopes.NOWHERE
    if anywhere and _entrywise(body):  # activations, dozens in a network: on demand
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
    found = _derivative(node, recorder, _trace_jvp, given)
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


def _trace_vjp(node: Node) -> Any:
    structs = _structs(node)
    call, moving = _alone(node), _moving(structs)

    def pulled(primals: Any, cotangents: Any) -> Any:
        out, pull = jax.vjp(call, *primals)
        return _only(pull(_tangents(cotangents, out, _moving(out))), moving)

    results = jax.eval_shape(call, *structs)
    return jax.make_jaxpr(pulled)(structs, _only(results, _moving(results)))


def custom_vjp(node: Node, recorder: Recorder) -> Outcome:
    """A function with a rule for its cotangents (`jax.custom_vjp`)."""
    body = _primal(node, recorder)
    if recorder.order == _HIGHEST_ORDER:
        return _plain(node, body)
    node.inner = [body]
    moving = _moving(node.inputs)
    results = _only(body.outputs, _moving(body.outputs))
    pulled = _derivative(node, recorder, _trace_vjp, _copies([*node.inputs, *results]))
    same(pulled.outputs, _only(node.inputs, moving))
    go = functools.partial(_run_vjp, body, pulled, moving)
    return Outcome([v.axes for v in body.outputs], run=go)


def _run_vjp(
    body: Program, pulled: Program, moving: Sequence[bool], view: View, *operands: Any
) -> list[Any]:
    @jax.custom_vjp
    def call(*xs: Any) -> Any:
        return tuple(run(body, view, *xs))

    def forward(*xs: Any) -> Any:
        return call(*xs), xs  # the residuals: the rule's forward pass is recomputed

    def backward(xs: Any, cotangents: Any) -> Any:
        given = [c for c in cotangents if c.dtype != jax.dtypes.float0]
        return _tangents(run(pulled, view, *xs, *given), xs, moving)

    call.defvjp(forward, backward)
    return list(call(*operands))


RULES = {
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
    "custom_vjp_call_jaxpr": custom_vjp,
}
