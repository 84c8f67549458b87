"""Rules of functions with custom derivatives.

The derivative is recorded together with the function, so that it shrinks too, and so
that axes that only the derivative needs whole are frozen. A derivative that calls its
own function, such as that of `logaddexp`, would be recorded without end: beyond the
second order, ordinary differentiation replaces the custom rule.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core, source_info_util

from jprune._core import base
from jprune.graph._engine import dims as dims_lib
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


def _structs(node: Node) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in node.inputs]


def _primal(node: Node, recorder: Recorder) -> Program:
    closed = node.params.get("call_jaxpr", node.params.get("fun_jaxpr"))
    return recorder.instantiate(closed.jaxpr, closed.consts, node.inputs)


def _derivative(
    node: Node, recorder: Recorder, trace: Any, given: list[Value]
) -> Program:
    """Records a derivative; calls of one function share its trace."""
    closed = recorder.once((trace, node.equation), lambda: trace(node))
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


def _later(node: Node, record: Callable[[], Program]) -> Callable[[], Program]:
    """Defers the recording of a derivative, which must not change what can shrink."""

    @functools.cache
    def recorded() -> Program:
        before = _leaves(node)
        program = record()
        if _leaves(node) != before:
            where = source_info_util.summarize(node.equation.source_info)
            raise base.PruningError(
                f"The custom derivative at {where} couples or freezes axes that its "
                "function does not, so it cannot run on smaller arrays."
            )
        return program

    return recorded


def _leaves(node: Node) -> list[tuple[Dim, str]]:
    found = [x for v in node.inputs for d in v.axes for x in dims_lib.leaves_of(d)]
    # A single entry is never removed, so its state does not matter.
    return [(x, x.frozen) for x in found if x.size > 1]


def _plain(node: Node, body: Program) -> Outcome:
    """Returns the outcome of the function without its custom derivative."""
    node.inner = [body]
    axes = [v.axes for v in body.outputs]
    return Outcome(axes, run=functools.partial(run, body))


def _copies(values: list[Value]) -> list[Value]:
    made = []
    for value in values:
        new = Value(value.axes, value.dtype)
        new.active = value.active
        made.append(new)
    return made


def _moving(structs: Sequence[Any]) -> list[bool]:
    return [bool(jax.numpy.issubdtype(s.dtype, jax.numpy.inexact)) for s in structs]


def _trace_jvp(node: Node) -> Any:
    structs = _structs(node)
    call, moving = _alone(node), _moving(structs)

    def pushed(primals: Any, tangents: Any) -> Any:
        each = iter(tangents)
        full = [
            next(each) if m else np.zeros(s.shape, jax.dtypes.float0)
            for s, m in zip(structs, moving, strict=True)
        ]
        out, out_tangents = jax.jvp(call, tuple(primals), tuple(full))
        return [t for t, m in zip(out_tangents, _moving(list(out)), strict=True) if m]

    tangents = [s for s, m in zip(structs, moving, strict=True) if m]
    return jax.make_jaxpr(pushed)(structs, tangents)


def custom_jvp(node: Node, recorder: Recorder) -> Outcome:
    """A function with a rule for its tangents (`jax.custom_jvp`)."""
    body = _primal(node, recorder)
    if recorder.order == _HIGHEST_ORDER:
        return _plain(node, body)
    moving = _moving(node.inputs)
    tangents = [v for v, m in zip(node.inputs, moving, strict=True) if m]
    node.inner = [body]
    floats = [v for v, m in zip(body.outputs, _moving(body.outputs), strict=True) if m]

    def derivative() -> Program:
        given = _copies([*node.inputs, *tangents])
        found = _derivative(node, recorder, _trace_jvp, given)
        same(found.outputs, floats)
        return found

    # Derivatives of activations are recorded on demand: a network has dozens.
    derived = _later(node, derivative) if _entrywise(body) else derivative()

    def go(view: View, *operands: Any) -> list[Any]:
        @jax.custom_jvp
        def call(*xs: Any) -> Any:
            return tuple(run(body, view, *xs))

        @call.defjvp
        def push(primals: Any, tangents: Any) -> Any:
            out = call(*primals)
            given = [t for t, m in zip(tangents, moving, strict=True) if m]
            pushed = derived() if callable(derived) else derived
            each = iter(run(pushed, view, *primals, *given))
            full = tuple(
                next(each) if m else np.zeros(np.shape(x), jax.dtypes.float0)
                for x, m in zip(out, _moving(list(out)), strict=True)
            )
            return out, full

        return list(call(*operands))

    return Outcome([v.axes for v in body.outputs], run=go)


def _trace_vjp(node: Node) -> Any:
    structs = _structs(node)
    call, moving = _alone(node), _moving(structs)

    def pulled(primals: Any, cotangents: Any) -> Any:
        out, pull = jax.vjp(call, *primals)
        each = iter(cotangents)
        full = tuple(
            next(each) if m else np.zeros(np.shape(x), jax.dtypes.float0)
            for x, m in zip(out, _moving(list(out)), strict=True)
        )
        back = pull(full)
        return [b for b, m in zip(back, moving, strict=True) if m]

    results = jax.eval_shape(call, *structs)
    cotangents = [r for r, m in zip(results, _moving(list(results)), strict=True) if m]
    return jax.make_jaxpr(pulled)(structs, cotangents)


def custom_vjp(node: Node, recorder: Recorder) -> Outcome:
    """A function with a rule for its cotangents (`jax.custom_vjp`).

    The residuals of the rule are its operands: its forward pass is recomputed.
    """
    body = _primal(node, recorder)
    if recorder.order == _HIGHEST_ORDER:
        return _plain(node, body)
    node.inner = [body]
    moving = _moving(node.inputs)
    floats = [v for v, m in zip(body.outputs, _moving(body.outputs), strict=True) if m]
    pulled = _derivative(node, recorder, _trace_vjp, _copies([*node.inputs, *floats]))
    same(pulled.outputs, [v for v, m in zip(node.inputs, moving, strict=True) if m])

    def go(view: View, *operands: Any) -> list[Any]:
        @jax.custom_vjp
        def call(*xs: Any) -> Any:
            return tuple(run(body, view, *xs))

        def forward(*xs: Any) -> Any:
            return call(*xs), xs

        def backward(xs: Any, cotangents: Any) -> Any:
            given = [c for c in cotangents if c.dtype != jax.dtypes.float0]
            each = iter(run(pulled, view, *xs, *given))
            return tuple(
                next(each) if m else np.zeros(np.shape(x), jax.dtypes.float0)
                for x, m in zip(xs, moving, strict=True)
            )

        call.defvjp(forward, backward)
        return list(call(*operands))

    return Outcome([v.axes for v in body.outputs], run=go)


RULES = {
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
    "custom_vjp_call_jaxpr": custom_vjp,
}
