"""Constants that were computed from a size, which change when that size shrinks.

The mean of n entries is their sum S divided by a literal n. When entries are removed,
the literal has to follow; but a number that happens to equal n must not. A constant c
follows if it multiplies S^p, of a plain sum of n entries, by n^-p, or the same power p
of their mean by n^p, and if it shows that it was computed from n:

    S / n, mean * n         as `jnp.mean` divides, and as its inverse multiplies
    S / (n - 1)             an expression with n in it, as `jnp.var` records
    c * jnp.sqrt(n)         likewise
    c = sqrt(n) of n = 12   an irrational number, which nobody writes by chance

Other constants stay, with a note: 0.5 * S is not a mean because n is 4, and neither is
S * 0.25. `h / n` before the sum, and log(sum) - log(n), follow by the same rule. Scales
of attention, powers of the head dimension, have an option of their own.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.program import Axes, Node, Recorder, Scalar, Sum, View
from jprune.graph._engine.rules import scalars
from jprune.graph._engine.rules.sums import scaled
from jprune.graph._engine.sizes import is_symbolic

_SURE = 5
"""Least n whose root is not written by chance: sqrt(2) and sqrt(3) are common."""


class Size(NamedTuple):
    """A size that a constant was computed from.

    Attributes:
      option: field of `Options` that decides whether the constant follows it.
      over: dims whose number of entries it is.
      mark: it follows only if a leaf of these dims has this mark; None for always.
    """

    option: str
    over: Axes
    mark: str | None = None


def constant_of(
    node: Node, recorder: Recorder, axes: Axes
) -> tuple[Callable[..., Any] | None, Sum | None] | None:
    """Returns what becomes of a product, a quotient or a difference with a constant.

    Args:
      node: an elementwise equation.
      recorder: takes notes of the constant.
      axes: dims of the result.

    Returns:
      `(run, sum)`: how the equation runs, or None if it runs unchanged, and what the
      result is a sum over; None if no operand is a constant factor or term.
    """
    if node.name not in ("mul", "div", "sub", "add"):
        return None
    _note_before(node, recorder)
    for place, value in enumerate(node.inputs):
        other = node.inputs[1 - place]
        if value.scalar is None or other.scalar is not None:
            continue
        if place == 0 and node.name == "div":
            return None  # constant / x
        size = _size_of(node, value.scalar, place, axes)
        if size is not None:
            note(recorder, node, size)
            run = functools.partial(node.equation.primitive.bind, **node.params)
            changed = functools.partial(
                _run_sized, run, value.scalar, value.dtype, place, size
            )
            return changed, _sum_after(other.sum, size)
        _note_chance(node, recorder, value.scalar, other.sum)
        return (None, scaled(node, place)) if node.name in ("mul", "div") else None
    return None


def _sum_after(total: Sum | None, size: Size) -> Sum | None:
    if total is None or size.option != "divisors":
        return total
    if total.mean or total.logarithm or total.power != 1:
        return None
    rest = tuple(d for d in total.over if d not in size.over)
    return total._replace(over=rest) if rest else total._replace(mean=True)


def _size_of(node: Node, scalar: Scalar, place: int, axes: Axes) -> Size | None:
    """Returns the size that a constant was computed from, or None if none is sure."""
    other = node.inputs[1 - place]
    total = other.sum
    factor = _factor(node, scalar)
    own = [
        d
        for d in axes
        if d.size != 1 and factor is not None and _is_root(factor, scalar, d.size)
    ]
    if total is not None and total.of_products and not total.attends and own:
        total = None  # scaled queries, as wide as the model that they come from
    if total is not None and total.of_products:
        if _scales_products(node, scalar, total):
            return Size("attention_scale", total.over)
    elif total is not None and total.over:
        for over in _candidates(total):
            if _is_sure(node, scalar, total, dims_lib.count_of(over)):
                return Size("divisors", over)
    if own and other.active:
        return Size("attention_scale", tuple(own[-1:]), "head")
    return None


def _factor(node: Node, scalar: Scalar) -> float | None:
    """Returns what an equation multiplies by, or None if it does not."""
    value = scalars.value_of(scalar)
    if node.name == "mul":
        return value
    return 1 / value if node.name == "div" and value else None


def _is_root(factor: float, scalar: Scalar, n: int) -> bool:
    """Returns whether a factor is 1 / sqrt(n)."""
    if is_symbolic(n) or n < 2 or not 0.5 < factor * factor * n < 2:
        return False  # quickly, as nearly all numbers are none
    precision = 4 * scalars.precision_of(scalar)
    return math.isclose(factor, n**-0.5, rel_tol=precision)


def _scales_products(node: Node, scalar: Scalar, total: Sum) -> bool:
    """Returns whether a factor of a contraction is 1 / sqrt(n), of attention 1 / n."""
    n, factor = dims_lib.count_of(total.over), _factor(node, scalar)
    if is_symbolic(n) or n < 2 or factor is None or total.power != 1:
        return False
    if total.attends and math.isclose(factor, 1 / n, rel_tol=1e-6):
        return True
    sure = total.attends or not _is_square(n)  # 0.1 after 100 inputs may be a slope
    return sure and _is_root(factor, scalar, n)


def _candidates(total: Sum) -> list[Axes]:
    """Returns the dims that a constant may count: all, or the only one of a size."""
    sizes = [d.size for d in total.over]
    single = [(d,) for d in total.over if sizes.count(d.size) == 1]
    return [total.over, *(single if len(sizes) > 1 and not total.mean else [])]


def _is_sure(node: Node, scalar: Scalar, total: Sum, n: int) -> bool:
    """Returns whether a constant was computed from the number n of a sum's entries."""
    if not is_symbolic(n) and n < 2:
        return False
    if node.name not in ("mul", "div"):
        if is_symbolic(n):
            return False
        value = abs(scalars.value_of(scalar))
        return total.logarithm and math.isclose(value, math.log(n), rel_tol=1e-6)
    if total.logarithm:
        return False
    wanted = total.power if total.mean else -total.power
    named = scalars.exponent_of(scalar, n)
    if named is not None:
        found = named if node.name == "mul" else -named
        if scalars.is_literal(scalar):
            inverse = "mul" if total.mean else "div"
            return found == wanted and node.name == inverse and total.direct
        if abs(found) == 1:
            return found == wanted and total.direct
        return found == wanted or (total.direct and abs(found) == 0.5)
    return _is_sure_root(node, scalar, total, n, wanted)


def _is_sure_root(
    node: Node, scalar: Scalar, total: Sum, n: int, wanted: float
) -> bool:
    """Returns whether a literal is a root of n, by its digits or by its position."""
    factor, precision = _factor(node, scalar), scalars.precision_of(scalar)
    if factor is None or is_symbolic(n):
        return False
    root = scalars.power_of(factor, n, precision)
    if root is None or abs(root) != 0.5:
        return False
    if n >= _SURE and not _is_square(n) and precision < 1e-5:
        return root == wanted or (total.direct and wanted == -1 and root == -0.5)
    inverse = "mul" if total.mean else "div"
    return root == wanted and node.name == inverse and total.direct


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def counted(divisors: Sequence[Scalar], over: Axes) -> tuple[Axes, tuple[Scalar, ...]]:
    """Returns the dims whose entries divisors count, and the other divisors.

    Args:
      divisors: constants that a value was divided by.
      over: dims that it is summed over afterwards. A divisor is the number of entries
        of all of them, or there are as many divisors as dims of one size.
    """
    for i, scalar in enumerate(divisors):
        if _counts(scalar, dims_lib.count_of(over)):
            return over, (*divisors[:i], *divisors[i + 1 :])
    found: list[Any] = []
    used: set[int] = set()
    for size in dict.fromkeys(d.size for d in over):
        alike = [d for d in over if d.size == size]
        named = [i for i, s in enumerate(divisors) if _counts(s, size)]
        if len(named) >= len(alike):
            found += alike
            used.update(named[: len(alike)])
    return tuple(found), tuple(s for i, s in enumerate(divisors) if i not in used)


def _counts(scalar: Scalar, n: int) -> bool:
    """Returns whether a constant is the number n."""
    if is_symbolic(n):
        return scalars.is_literal(scalar) and scalars.exponent_of(scalar, n) == 1
    return n > 1 and math.isclose(scalars.value_of(scalar), n, rel_tol=1e-6)


def note(recorder: Recorder, node: Node, size: Size) -> None:
    """Notes what becomes of a constant that was computed from a size."""
    what = f"a constant was computed from the size {dims_lib.count_of(size.over)} of "
    what += "its axis" if size.mark else "a sum"
    if getattr(recorder.options, size.option) == "rescale":
        kind, what = "rescaled", f"{what}, and follows it"
    else:
        kind, what = "kept", f'{what}, and stays: Options.{size.option} is "keep"'
    recorder.note(kind, node, what, size.over, mark=size.mark)


def _note_chance(
    node: Node, recorder: Recorder, scalar: Scalar, total: Sum | None
) -> None:
    """Notes a constant that equals a size of a sum, maybe by chance."""
    if total is None or not total.over or total.logarithm:
        return
    if node.name not in ("mul", "div"):
        return
    factor, value = _factor(node, scalar), scalars.value_of(scalar)
    for over in _candidates(total):
        n = dims_lib.count_of(over)
        if is_symbolic(n) or n < 2 or factor is None:
            continue
        if total.of_products and not (node.name == "div" and value == n):
            continue
        power = scalars.power_of(factor, n, scalars.precision_of(scalar))
        fewer = not total.of_products and n > 2 and value == n - 1
        if (power and abs(power) > 0.25) or (fewer and node.name == "div"):
            chance(recorder, node, value, over)
            return


def _note_before(node: Node, recorder: Recorder) -> None:
    """Notes an operand that was scaled by a size of the sum it is multiplied by."""
    if node.name not in ("mul", "div"):
        return
    for value, other in (node.inputs, node.inputs[::-1]):
        total, scale = other.sum, value.sum
        if total is None or scale is None or not total.over or total.of_products:
            continue
        n = dims_lib.count_of(total.over)
        if is_symbolic(n) or n < 2:
            continue
        if scalars.power_of(scale.factor, n) is not None:
            chance(recorder, node, scale.factor, total.over)


def chance(recorder: Recorder, node: Node, value: float, over: Axes) -> None:
    """Notes a constant that stays although it may have been computed from a size."""
    n = dims_lib.count_of(over)
    what = (
        f"a constant equals {value:g}, where a sum has {n} entries; nothing shows that "
        "it was computed from them, so it stays: write jnp.mean or jnp.var, or divide "
        "the sum by the size"
    )
    recorder.note("kept", node, what, over)


def follow(
    primitive: Callable[..., Any], size: Size, power: float
) -> Callable[..., list[Any]]:
    """Returns how an equation runs whose operands have a factor n^power in them.

    Args:
      primitive: the equation as a function of its operands.
      size: what n is.
      power: its exponent.
    """

    def run(view: View, *operands: Any) -> list[Any]:
        result = primitive(*operands)
        after = _after(view, size)
        if after is None:
            return [result]
        dtype = jnp.result_type(float)
        before = jnp.asarray(dims_lib.count_of(size.over), dtype)
        ratio = jnp.asarray(after, dtype) / before
        return [result * (ratio**power).astype(result.dtype)]

    return run


def _after(view: View, size: Size) -> Any:
    """Returns the size that a constant follows, or None if it stays as it is."""
    leaves = [x for d in size.over for x in dims_lib.leaves_of(d)]
    wanted = getattr(view.options, size.option) == "rescale"
    wanted = wanted and (not size.mark or any(size.mark in x.marks for x in leaves))
    after = math.prod(view.count(d) for d in size.over)
    # Counts of entries that masks leave are arrays, perhaps traced.
    same = not isinstance(after, jax.Array) and after == dims_lib.count_of(size.over)
    return after if wanted and not same else None


def _run_sized(
    bind: Callable[..., Any],
    scalar: Scalar,
    dtype: Any,
    place: int,
    size: Size,
    view: View,
    *operands: Any,
) -> list[Any]:
    """Runs an equation whose constant follows the number of entries of some dims."""
    # Bound to no node, which would contain the result: without reference cycles, an
    # unused graph is freed at once.
    after = _after(view, size)
    if after is None:
        return [bind(*operands)]
    changed = list(operands)
    number = scalars.evaluate(scalar, dims_lib.count_of(size.over), after)
    old = operands[place]
    dtype = getattr(old, "dtype", None) or dtype
    number = jnp.asarray(number).astype(dtype)
    changed[place] = jnp.broadcast_to(number, np.shape(old))
    return [bind(*changed)]
