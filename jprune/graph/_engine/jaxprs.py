"""Parts of jaxprs: bodies of calls, and the equations that results depend on."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def body_of(equation: Any) -> Any:
    """Returns the closed jaxpr of a call.

    Args:
      equation: equation of the call.

    Raises:
      TypeError: if the equation has no jaxpr.
    """
    for name in ("jaxpr", "call_jaxpr"):
        if name in equation.params:
            found = equation.params[name]
            return found if hasattr(found, "consts") else core.ClosedJaxpr(found, ())
    name = equation.primitive.name
    raise TypeError(f"The call {name!r} has neither a jaxpr nor a call_jaxpr.")


def alone(equation: Any) -> Callable[..., tuple[Any, ...]]:
    """Returns an equation as a function of its operands, with its derivative."""
    variable = [not isinstance(a, core.Literal) for a in equation.invars]
    avals = [a.aval for a in itertools.compress(equation.invars, variable)]
    # Own variables: the same array may be closed over and be an argument, too.
    empty = jax.make_jaxpr(lambda *xs: ())(*avals).jaxpr
    each = iter(empty.invars)
    invars = [
        next(each) if free else a
        for a, free in zip(equation.invars, variable, strict=True)
    ]
    names = empty.debug_info._replace(
        arg_names=("",) * len(avals), result_paths=("",) * len(equation.outvars)
    )
    jaxpr = core.Jaxpr(
        (),
        empty.invars,
        equation.outvars,
        [equation.replace(invars=invars)],
        equation.effects,
        debug_info=names,
    )
    call = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return lambda *operands: tuple(call(*itertools.compress(operands, variable)))


def live_equations(jaxpr: Any, used: list[bool]) -> list[tuple[Any, list[bool] | None]]:
    """Returns the equations that the used outputs depend on, with their used results.

    The latter is a bool for each result, or None if all are used, as nearly always.

    Args:
      jaxpr: a `Jaxpr`.
      used: one bool for each of its outputs.
    """
    wanted = {
        v
        for v, u in zip(jaxpr.outvars, used, strict=True)
        if u and not isinstance(v, core.Literal)
    }
    live: list[tuple[Any, list[bool] | None]] = []
    for equation in reversed(jaxpr.eqns):
        results = [v in wanted for v in equation.outvars]
        if any(results) or equation.effects:
            live.append((equation, None if all(results) else results))
            wanted.difference_update(equation.outvars)  # stays small
            for v in equation.invars:
                if not isinstance(v, core.Literal):
                    wanted.add(v)
    live.reverse()
    return live
