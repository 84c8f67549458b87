"""Rules of elementwise primitives, and of constants that were computed from a size.

The mean of n entries is their sum times a literal 1 / n. When entries are removed,
the literal has to follow. It is recognised by its position, as it multiplies or
divides a sum, and by its value: n or 1 / n, or a square root of these, where n is the
number of entries that were summed.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import (
    Axes,
    Node,
    Outcome,
    Recorder,
    Scalar,
    Sum,
    Value,
    View,
)
from jprune.graph._engine.sizes import is_symbolic

NAMES = tuple(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy
    copy_p cos cosh device_put digamma div eq erf erf_inv erfc exp exp2 expm1 floor
    ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le lgamma log
    log1p logistic lt max min mul name ne neg nextafter not optimization_barrier or
    polygamma population_count pow pvary real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta
    """.split()  # noqa: SIM905 (eighty strings in quotes read no better)
)

_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "cbrt": 1 / 3}
_PRODUCTS = ("mul", "div")
_MOVES = {"broadcast_in_dim", "reshape", "squeeze", "transpose"}
_KEEP_SUMS = {"neg", "abs", "copy", "convert_element_type", "name", "reduce_precision"}
_KEEP_SUMS |= {
    "add",
    "sub",
    "add_any",
    "max",
    "min",
    "stop_gradient",
    *_PRODUCTS,
    *_MOVES,
}


class _Size(NamedTuple):
    """A constant factor that was computed from a size.

    Attributes:
      place: which operand the constant is.
      option: field of `Options` that decides whether it is rescaled.
      over: dims whose number of entries it follows.
      mark: rescale only if a leaf of these dims has this mark; None for always.
    """

    place: int
    option: str
    over: Axes
    mark: str | None = None


def elementwise(node: Node, recorder: Recorder) -> Outcome:
    """Merges axes of the same size; axes of size 1 are broadcast."""
    if node.name == "bitcast_convert_type" and _width_changes(node):
        return _reinterpreted(node, recorder)
    results, shapes = [], node.shapes
    for i, shape in enumerate(shapes):
        # Of several results, each has the axes of the operand at its position.
        given = node.inputs if len(shapes) == 1 else [node.inputs[i]]
        results.append(joined(given, shape))
    if len(shapes) > 1:
        return Outcome(results)
    size = _size_in_constant(node, results[0])
    if size is None:
        return Outcome(results, scalar=scalar_of(node), sum=sum_of(node))
    _note_size(node, recorder, size)
    total = None if size.option == "divisors" else sum_of(node)  # a mean is no sum
    return Outcome(results, run=_sized(node, size), sum=total)


def _note_size(node: Node, recorder: Recorder, size: _Size) -> None:
    """Notes what becomes of a constant that was computed from a size."""
    what = f"a constant was computed from the size {dims_lib.count_of(size.over)} of "
    what += "its axis" if size.mark else "a sum"
    if getattr(recorder.options, size.option) == "rescale":
        kind, what = "rescaled", f"{what}, and follows it"
    else:
        kind, what = "kept", f'{what}, and stays: Options.{size.option} is "keep"'
    recorder.note(kind, node, what, size.over, mark=size.mark)


def joined(values: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Merges the dims of operands that meet, and returns those of the result."""
    full = [v.axes for v in values if len(v.axes) == len(shape)]  # others are scalars
    if len(full) == 1 and tuple([d.size for d in full[0]]) == shape:
        return full[0]  # quickly, as it is the most common case
    axes: list[Dim | None] = [None] * len(shape)
    for given in full:
        for i, d in enumerate(given):
            if d.size != shape[i]:
                continue
            before = axes[i]
            if before is None:
                axes[i] = d
            elif d.size != 1:
                dims_lib.unify(before, d)
    found = tuple(
        dims_lib.leaf(n) if d is None else d for d, n in zip(axes, shape, strict=True)
    )
    # A chain of operations shares one tuple: recordings are large.
    return next((given for given in full if given == found), found)


def scalar_of(node: Node) -> Scalar | None:
    """Returns the constant that the result is, if all operands are constants."""
    operands = []
    for value in node.inputs:
        if value.scalar is None:
            return None
        operands.append(value.scalar)
    return Scalar(None, node.equation.primitive, node.params, tuple(operands))


def sum_of(node: Node) -> Sum | None:
    """Returns the sum that the result is, if an operand is a sum and stays one."""
    sums = [v.sum for v in node.inputs if v.sum is not None]
    if not sums:
        return None
    found = sums[0]
    if node.name in _POWERS:
        return found._replace(power=found.power * _POWERS[node.name])
    if node.name == "integer_pow":
        return found._replace(power=found.power * node.params["y"])
    return found if node.name in _KEEP_SUMS else None


def _size_in_constant(node: Node, axes: Axes) -> _Size | None:
    """Returns the size that a constant factor of a product stands for, or None."""
    if node.name not in _PRODUCTS:
        return None
    for place, value in enumerate(node.inputs):
        other = node.inputs[1 - place]
        if value.scalar is None or other.scalar is not None:
            continue
        if place == 0 and node.name == "div":
            continue  # constant / x
        literals = list(_literals(value.scalar))
        numbers = {_number(s) for s in literals}
        scale = _value(value.scalar)
        scale = 1 / scale if node.name == "div" and scale else scale
        own = [d for d in axes if d.size != 1 and _is_scale(scale, numbers, d.size)]
        total = other.sum
        if total is not None and total.of_products and not total.attends and own:
            total = None  # scaled queries, as wide as the model that they come from
        if total is not None and _matches(scale, numbers, literals, total):
            option = "attention_scale" if total.of_products else "divisors"
            return _Size(place, option, total.over)
        if own and other.active:
            return _Size(place, "attention_scale", tuple(own[-1:]), "head")
    return None


def _sized(node: Node, size: _Size) -> Callable[..., list[Any]]:
    # Binds no node, which would contain the result: without reference cycles, an
    # unused graph is freed at once.
    value = node.inputs[size.place]
    bind = functools.partial(node.equation.primitive.bind, **node.params)
    return functools.partial(_run_sized, bind, value.scalar, value.dtype, size)


def _run_sized(
    bind: Callable[..., Any],
    scalar: Scalar | None,
    dtype: Any,
    size: _Size,
    view: View,
    *operands: Any,
) -> list[Any]:
    """Runs a product whose constant follows the number of entries of some dims."""
    leaves = [x for d in size.over for x in dims_lib.leaves_of(d)]
    wanted = getattr(view.options, size.option) == "rescale"
    wanted = wanted and (not size.mark or any(size.mark in x.marks for x in leaves))
    before = dims_lib.count_of(size.over)
    after = math.prod(view.count(d) for d in size.over)
    # Counts of entries that masks leave are arrays, perhaps traced.
    if not wanted or (not isinstance(after, jax.Array) and after == before):
        return [bind(*operands)]
    changed = list(operands)
    number = _evaluate(scalar, before, after)
    old = operands[size.place]
    dtype = getattr(old, "dtype", None) or dtype
    number = jnp.asarray(number).astype(dtype)
    changed[size.place] = jnp.broadcast_to(number, np.shape(old))
    return [bind(*changed)]


def _literals(scalar: Scalar) -> Iterator[Any]:
    if scalar.primitive is None:
        yield scalar.value
    for one in scalar.operands:
        yield from _literals(one)


def _number(literal: Any) -> tuple[float, float]:
    """Returns a literal as a float, and its relative precision."""
    try:
        dtype = getattr(literal, "dtype", np.dtype(np.float32))
        floating = jnp.issubdtype(dtype, jnp.floating)
        precision = float(jnp.finfo(dtype).eps) if floating else 0.0
        return float(literal), max(precision, 1e-6)
    except (TypeError, ValueError):
        return math.nan, 0.0


def _matches(
    scale: float,
    numbers: set[tuple[float, float]],
    literals: Sequence[Any],
    total: Sum,
) -> bool:
    n = dims_lib.count_of(total.over)
    if is_symbolic(n):
        return not total.of_products and any(_is_same(x, n) for x in literals)
    if total.of_products:  # no mean: 0.1 after ten inputs may be the slope of a ReLU
        return n > 1 and _is_scale(scale, numbers, n)
    return n > 1 and any(_power_of(x, n, p) is not None for x, p in numbers)


def _is_same(literal: Any, n: Any) -> bool:
    """Returns whether a literal is a symbolic size."""
    return type(literal) is type(n) and literal == n


def _is_scale(scale: float, numbers: set[tuple[float, float]], n: int) -> bool:
    """Returns whether a factor is 1 / sqrt(n); sqrt(n) or 1 / n are coincidences."""
    if is_symbolic(n) or n < 2:
        return False
    precision = 4 * max(p for _, p in numbers)
    return math.isclose(scale, n**-0.5, rel_tol=precision)


def _value(scalar: Scalar) -> float:
    """Evaluates a constant; NaN if it is computed by other primitives than these."""
    if scalar.primitive is None:
        return _number(scalar.value)[0]
    operands = [_value(s) for s in scalar.operands]
    name = scalar.primitive.name
    if name == "integer_pow":
        return operands[0] ** scalar.params["y"] if operands[0] else math.nan
    known: dict[str, Any] = {
        "mul": np.multiply,
        "div": np.divide,
        "pow": np.power,
        "sqrt": np.sqrt,
    }
    with np.errstate(all="ignore"):
        if name in known:
            return float(known[name](*operands))
        if name == "rsqrt":
            return float(1 / np.sqrt(operands[0]))
    return operands[0] if name in _MOVES | {"convert_element_type"} else math.nan


def _power_of(x: float, n: int, precision: float = 1e-6) -> float | None:
    """Returns the exponent with which a number is a power of n, or None."""
    for power in (1.0, -1.0, 0.5, -0.5):
        if math.isclose(x, float(n) ** power, rel_tol=precision):
            return power
    return None


def _evaluate(scalar: Scalar | None, before: int, after: Any) -> Any:
    """Evaluates a constant with another value for the size in it."""
    assert scalar is not None
    if scalar.primitive is None and is_symbolic(before):
        return after if _is_same(scalar.value, before) else scalar.value
    if scalar.primitive is None:
        number, precision = _number(scalar.value)
        power = _power_of(number, before, precision)
        if power is None:
            return scalar.value
        dtype = getattr(scalar.value, "dtype", np.result_type(type(scalar.value)))
        if isinstance(after, int):
            return np.asarray(float(after) ** power, dtype)
        return (jnp.asarray(after, jnp.result_type(float)) ** power).astype(dtype)
    operands = [_evaluate(s, before, after) for s in scalar.operands]
    operands = [jnp.asarray(x) for x in operands]
    if scalar.primitive.name in _MOVES:
        return operands[0]
    found = scalar.primitive.bind(*operands, **scalar.params)
    return found[0] if scalar.primitive.multiple_results else found  # `device_put`


def size_as_value(node: Node, recorder: Recorder) -> Outcome:
    """A symbolic size as a number, such as the divisor of a mean over a sequence."""
    del recorder
    return Outcome([()], scalar=Scalar(node.params["dim"]))


def _width_changes(node: Node) -> bool:
    return node.shapes[0] != node.inputs[0].shape


def _reinterpreted(node: Node, recorder: Recorder) -> Outcome:
    """A bitcast to a narrower or wider type adds or removes a last axis."""
    axes, rank = node.inputs[0].axes, len(node.shapes[0])
    if len(axes) > rank:
        recorder.freeze(node, axes[-1:], "a bitcast joins its entries into one number")
    extra = [
        dims_lib.leaf(n, lines.at("it holds the bits of a number"))
        for n in node.shapes[0][len(axes) :]
    ]
    return Outcome([(*axes[:rank], *extra)])


RULES = {**dict.fromkeys(NAMES, elementwise), "dim_as_value": size_as_value}
