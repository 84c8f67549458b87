"""Parts of jaxprs: bodies of calls, and the equations that results depend on."""

from typing import Any

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
