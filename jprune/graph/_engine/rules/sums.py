"""What a value is a sum over, followed through elementwise primitives."""

from typing import Any

import jax.numpy as jnp

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.program import Axes, Node, Sum, Value
from jprune.graph._engine.rules.scalars import MOVES, value_of

_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "cbrt": 1 / 3}
_SAME = MOVES | {"abs", "convert_element_type", "copy", "name", "neg"}
_SAME |= {"reduce_precision", "stop_gradient"}
_TERMS = {"add", "add_any", "max", "min", "select_n", "sub"}


def sum_of(node: Node) -> Sum | None:
    """Returns the sum that the result is, if an operand is a sum and stays one."""
    for v in node.inputs:
        if v.sum is not None:
            break
    else:  # quickly, as most values are no sums
        return None
    if node.name in ("mul", "div"):
        return _of_product(node)
    if node.name in _TERMS:
        return _of_terms(node)
    found = node.inputs[0].sum
    if found is None or node.name in _SAME:
        return found
    if node.name in _POWERS:
        return _raised(found, _POWERS[node.name])
    if node.name == "integer_pow":
        return _raised(found, node.params["y"])
    sums = found.over and not (found.of_products or found.mean or found.logarithm)
    if node.name == "log" and sums and found.power == 1:
        return _bare(found, logarithm=True)
    return None


def scaled(node: Node, place: int) -> Sum | None:
    """Returns the sum that a product with a constant is, with the constant recorded.

    Args:
      node: a product or a division by a constant.
      place: which operand is the constant.
    """
    other = node.inputs[1 - place]
    found = Sum(()) if other.sum is None else other.sum
    scalar = node.inputs[place].scalar
    if scalar is None or not jnp.issubdtype(other.dtype, jnp.inexact):
        return other.sum
    number = value_of(scalar)
    divides = node.name == "div"
    if divides and not number:
        return other.sum
    divisors = (*found.divisors, scalar) if divides else found.divisors
    if found.over and not found.of_products:
        return found._replace(divisors=divisors)
    factor = found.factor * (1 / number if divides else number)
    return found._replace(factor=factor, divisors=divisors)


def _bare(found: Sum, **changes: Any) -> Sum:
    """Returns a sum whose elements were not multiplied by constants."""
    if not changes and found.factor == 1 and not (found.divisors or found.within):
        return found
    return found._replace(factor=1.0, divisors=(), within=(), **changes)


def _raised(found: Sum, power: float) -> Sum | None:
    if found.logarithm:
        return None
    if found.of_products or not found.over:
        positive = found.factor > 0
        return Sum((), factor=found.factor**power) if positive else None
    return _bare(found, power=found.power * power)


def _of_product(node: Node) -> Sum | None:
    """Returns the sum that a product is, with the divisors of its factors."""
    found = _product_of_sums(node)
    factors = node.inputs if node.name == "mul" else node.inputs[:1]
    sums = [v.sum for v in factors if v.sum is not None]
    within = [d for s in sums for d in (*s.divisors, *s.within)]
    return (found or Sum(()))._replace(within=tuple(within)) if within else found


def _product_of_sums(node: Node) -> Sum | None:
    """Returns the sum that a product or a quotient is a multiple of."""
    signs = (1, 1 if node.name == "mul" else -1)
    each = [
        (_bare(v.sum, power=sign * v.sum.power), v)
        for sign, v in zip(signs, node.inputs, strict=True)
        if v.sum is not None and v.sum.over and not v.sum.logarithm
    ]
    plain = [(s, v) for s, v in each if not s.of_products] or each
    if len(plain) != 2:
        return plain[0][0] if plain else None
    (first, _), (second, _) = plain
    if not same(first.over, second.over) or first.mean != second.mean:
        return None
    power = first.power + second.power
    direct = first.direct and second.direct
    return first._replace(power=power, direct=direct) if power else None


def _of_terms(node: Node) -> Sum | None:
    """Returns the sum that all terms are; a bias or a mask may be beside."""
    chosen = node.name == "select_n"
    terms = node.inputs[1:] if chosen else node.inputs
    sums = [v.sum for v in terms if v.sum is not None and v.sum.over]
    if not sums:
        return None
    first = max(sums, key=lambda s: (s.attends, not s.of_products))
    if first.of_products or first.logarithm:
        return _bare(first)
    if node.name == "sub" and terms[0].sum is None:
        return None
    alike = [s for s in sums if same(s.over, first.over) and s.mean == first.mean]
    others = [v for v in terms if v.sum is None or not v.sum.over]
    zero = node.name in ("max", "min") or chosen
    direct = (
        len(alike) == len(sums)
        and all(s.direct for s in sums)
        and all(zero and _is_fill(v, chosen) for v in others)
        and (not chosen or node.inputs[0].scalar is not None)
    )
    return _bare(first, direct=direct)


def _is_fill(value: Value, chosen: bool) -> bool:
    """Returns whether a term is a constant: of a maximum or minimum, 0."""
    return value.scalar is not None and (chosen or value_of(value.scalar) == 0)


def same(a: Axes, b: Axes) -> bool:
    """Returns whether two sums are over the same dims."""
    return set(map(dims_lib.resolve, a)) == set(map(dims_lib.resolve, b))
