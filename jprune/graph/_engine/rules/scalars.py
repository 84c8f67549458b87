"""Constants as expressions: their values, and the sizes that they name.

A function that divides by a size leaves a literal in its jaxpr, or an expression such
as sqrt(16.0) or 16.0 - 1. The expression is all that is known of the constant.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import export

from jprune.graph._engine.program import Node, Scalar
from jprune.graph._engine.sizes import is_symbolic

MOVES = {"broadcast_in_dim", "reshape", "squeeze", "transpose"}
"""Primitives that only move elements; they leave a constant as it is."""

_SAME = MOVES | {"convert_element_type", "copy", "device_put", "stage"}
_SAME |= {"stop_gradient"}
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "cbrt": 1 / 3}
_FLOAT32 = np.dtype(np.float32)
_KNOWN: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "sqrt": np.sqrt,
    "square": np.square,
    "log": np.log,
    "neg": np.negative,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


def scalar_of(node: Node) -> Scalar | None:
    """Returns the constant that the result is, if all operands are constants."""
    operands = []
    for value in node.inputs:
        if value.scalar is None:
            return None
        operands.append(value.scalar)
    return Scalar(None, node.equation.primitive, node.params, tuple(operands))


def value_of(scalar: Scalar) -> float:
    """Evaluates a constant; NaN if it is computed by primitives not known here."""
    if scalar.primitive is None:
        return number_of(scalar.value)[0]
    operands = [value_of(s) for s in scalar.operands]
    name = scalar.primitive.name
    with np.errstate(all="ignore"):
        if name == "integer_pow":
            return float(np.power(operands[0], float(scalar.params["y"])))
        if name in _KNOWN:
            return float(_KNOWN[name](*operands))
    return operands[0] if name in _SAME else math.nan


def number_of(literal: Any) -> tuple[float, float]:
    """Returns a literal as a float, and its relative precision."""
    try:
        return float(literal), _eps(getattr(literal, "dtype", _FLOAT32))
    except (TypeError, ValueError):
        return math.nan, 0.0


@functools.cache  # there are few types, and many constants
def _eps(dtype: Any) -> float:
    floating = jnp.issubdtype(dtype, jnp.floating)
    return max(float(jnp.finfo(dtype).eps) if floating else 0.0, 1e-6)


def precision_of(scalar: Scalar) -> float:
    """Returns the relative precision of the least precise literal of a constant."""
    return max(number_of(x)[1] for x in literals(scalar))


def literals(scalar: Scalar) -> Iterator[Any]:
    """Yields the literals that a constant was computed from."""
    if scalar.primitive is None:
        yield scalar.value
    for one in scalar.operands:
        yield from literals(one)


def is_literal(scalar: Scalar) -> bool:
    """Returns whether a constant is a literal, cast or moved at most."""
    return _origin(scalar).primitive is None


def size_named(scalar: Scalar) -> Any:
    """Returns the size that a constant is: an integer or symbolic, or None."""
    origin = _origin(scalar)
    if origin.primitive is not None:
        return None
    if export.is_symbolic_dim(origin.value):
        return origin.value
    number, _ = number_of(origin.value)
    return int(number) if number.is_integer() else None


def _origin(scalar: Scalar) -> Scalar:
    """Returns the expression that was cast or moved to a constant."""
    while scalar.primitive is not None and scalar.primitive.name in _SAME:
        scalar = scalar.operands[0]
    return scalar


def exponent_of(scalar: Scalar, n: int) -> float | None:
    """Returns the exponent that n has in an expression, None if it does not occur.

    Args:
      scalar: the expression. That of 16.0 - 1 has the exponent 1 of 16, and that of
        rsqrt(16.0) has -1/2; the literals 4.0 and 15.0 have none.
      n: the number.
    """
    if scalar.primitive is None:
        return 1.0 if _equals(scalar.value, n) else None
    name = scalar.primitive.name
    each = [exponent_of(s, n) for s in scalar.operands]
    found = [e for e in each if e is not None]
    if not found or name == "log":
        return None
    if name in _POWERS:
        return found[0] * _POWERS[name]
    if name == "integer_pow":
        return found[0] * scalar.params["y"]
    if name == "pow":
        return None if each[0] is None else each[0] * value_of(scalar.operands[1])
    if name == "div":
        return (each[0] or 0.0) - (each[1] or 0.0)
    return sum(found) if name == "mul" else found[0]


def power_of(x: float, n: int, precision: float = 1e-6) -> float | None:
    """Returns the exponent with which a number is a power of n, or None."""
    for power in (1.0, -1.0, 0.5, -0.5, 0.25, -0.25):
        if math.isclose(x, float(n) ** power, rel_tol=precision):
            return power
    return None


def evaluate(scalar: Scalar, before: int, after: Any) -> Any:
    """Evaluates a constant with another value for the size in it.

    Args:
      scalar: the constant.
      before: the size. Literals that equal it are replaced; without any, those that
        equal a root of it, its reciprocal or its logarithm.
      after: the other size, perhaps traced.
    """
    named = any(_equals(x, before) for x in literals(scalar))
    return _evaluate(scalar, before, after, named)


def _evaluate(scalar: Scalar, before: int, after: Any, named: bool) -> Any:
    if scalar.primitive is None:
        return _replaced(scalar.value, before, after, named)
    operands = [
        jnp.asarray(_evaluate(s, before, after, named)) for s in scalar.operands
    ]
    if scalar.primitive.name in MOVES:
        return operands[0]
    found = scalar.primitive.bind(*operands, **scalar.params)
    return found[0] if scalar.primitive.multiple_results else found  # `device_put`


def _replaced(literal: Any, before: int, after: Any, named: bool) -> Any:
    if is_symbolic(before):
        return after if _equals(literal, before) else literal
    number, precision = number_of(literal)
    dtype = getattr(literal, "dtype", np.result_type(type(literal)))
    whole = isinstance(after, int)
    x = (
        np.asarray(float(after))
        if whole
        else jnp.asarray(after, jnp.result_type(float))
    )
    if named:
        return x.astype(dtype) if _equals(literal, before) else literal
    power = power_of(number, before, precision)
    if power is not None:
        return (x**power).astype(dtype)
    if math.isclose(abs(number), math.log(before), rel_tol=1e-6):
        log = np.log(x) if whole else jnp.log(x)
        return (math.copysign(1.0, number) * log).astype(dtype)
    return literal


def _equals(literal: Any, n: int) -> bool:
    """Returns whether a literal is n, as far as its type can hold n."""
    if is_symbolic(n):
        return type(literal) is type(n) and bool(literal == n)
    try:
        dtype = getattr(literal, "dtype", np.dtype(np.float64))
        return bool(np.shape(literal) == () and literal == np.asarray(n, dtype))
    except (TypeError, ValueError, OverflowError):
        return False
