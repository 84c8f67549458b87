"""Rules of reductions and other primitives that combine the entries of an axis."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import routing
from jprune.graph._engine.program import (
    Axes,
    Node,
    Outcome,
    Recorder,
    Sum,
    View,
    frozen,
    zero,
)
from jprune.graph._engine.rules import constants
from jprune.graph._engine.rules.elementwise import joined
from jprune.graph._engine.sizes import is_symbolic


def _least(dtype: Any) -> Any:
    """Returns the least number, which a maximum ignores."""
    if dtype == np.dtype(bool):
        return np.zeros((), bool)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).min
    return jnp.asarray(-jnp.inf, dtype)


def _greatest(dtype: Any) -> Any:
    """Returns the greatest number, which a minimum ignores."""
    if dtype == np.dtype(bool):
        return np.ones((), bool)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).max
    return jnp.asarray(jnp.inf, dtype)


def _one(dtype: Any) -> Any:
    return np.ones((), dtype)


def _all_bits(dtype: Any) -> Any:
    return ~np.zeros((), dtype)


FILLS = {
    "reduce_sum": zero,
    "reduce_max": _least,
    "reduce_min": _greatest,
    "reduce_prod": _one,
    "reduce_and": _all_bits,
    "reduce_or": zero,
    "reduce_xor": zero,
}
"""Reduction -> `dtype -> number` that the reduction ignores."""


def reduction(node: Node, recorder: Recorder) -> Outcome:
    """Reduces axes that may shrink, over the entries that are kept."""
    value, gone = node.inputs[0], set(node.params["axes"])
    over = tuple(value.axes[i] for i in sorted(gone))
    left = tuple(d for i, d in enumerate(value.axes) if i not in gone)
    for d in over:
        dims_lib.mark(d, "summed")
    # Only along reduced axes: a slice of nothing but infinities has a NaN gradient.
    along = frozenset(gone)
    if node.name == "reduce_sum":
        run, total = summed(node, recorder, over)
        return Outcome([left], fill=zero, along=along, run=run, sum=total)
    if over:
        what = f"{node.name} is over the entries that are left"
        recorder.note("over what is left", node, what, over)
    return Outcome([left], fill=FILLS[node.name], along=along)


def summed(node: Node, recorder: Recorder, over: Axes) -> tuple[Any, Sum]:
    """Returns how a sum runs, or None if unchanged, and what it is over.

    Args:
      node: the sum of one array over some of its axes.
      recorder: takes notes of constants that follow.
      over: dims of these axes.
    """
    before = node.inputs[0].sum
    if before is None:
        return None, Sum(over)
    further = before.power == 1 and before.direct and not before.of_products
    if further and not (before.mean or before.logarithm):
        over = (*before.over, *over)
    counted, rest = constants.counted(before.divisors, over)
    if counted:  # (x / n).sum(), which is a mean
        size = constants.Size("divisors", counted)
        constants.note(recorder, node, size)
        add = functools.partial(_only, node)
        left = tuple(d for d in over if d not in counted)
        total = Sum(left or over, mean=not left, divisors=rest)
        return constants.follow(add, size, -1.0), total
    n = dims_lib.count_of(over)
    whole = not is_symbolic(n) and n > 1
    if whole and math.isclose(before.factor, 1 / n, rel_tol=1e-6):
        constants.chance(recorder, node, before.factor, over)
    elif whole and constants.counted(before.within, over)[0]:
        # (x / n * y).sum(), a contraction whose operand was divided
        constants.chance(recorder, node, n, over)
    return None, Sum(over, divisors=rest, within=before.within)


def _only(node: Node, x: Any) -> Any:
    """Returns the only result of an equation with one operand."""
    primitive = node.equation.primitive
    found = primitive.bind(x, **node.params)
    return found[0] if primitive.multiple_results else found


def _far_below(dtype: Any) -> Any:
    """Returns the least finite number: its exponential is 0, and has a gradient."""
    return jnp.finfo(dtype).min


_CUMULATIVE = {
    "cumsum": zero,
    "cumprod": _one,
    "cummax": _least,
    "cummin": _greatest,
    "cumlogsumexp": _far_below,
}
"""Cumulative reduction -> `dtype -> number` that it ignores."""


def cumulative(node: Node, recorder: Recorder) -> Outcome:
    """Reduces the entries up to each one, over those that are kept."""
    axes = node.inputs[0].axes
    axis = node.params["axis"] % len(axes)
    if node.name != "cumsum":
        what = f"{node.name} is over the entries that are left"
        recorder.note("over what is left", node, what, axes[axis : axis + 1])
    return Outcome([axes], fill=_CUMULATIVE[node.name], along=frozenset({axis}))


def along(name: str) -> Any:
    """Returns the rule of a primitive that acts along the axes in a parameter.

    Args:
      name: name of the parameter.
    """

    def rule(node: Node, recorder: Recorder) -> Outcome:
        given = node.params[name]
        axes = {int(a) for a in (given if np.ndim(given) else (given,))}
        rank = len(node.inputs[0].axes)
        return acting(node, recorder, {a % rank for a in axes})

    return rule


def acting(node: Node, recorder: Recorder, axes: set[int]) -> Outcome:
    """Freezes the axes that a primitive acts along; the others keep their dims.

    Args:
      node: the equation; operands and results have the same axes, except for sizes.
      recorder: takes notes of the frozen axes.
      axes: axes that the primitive acts along.
    """
    for value in node.inputs:
        acted = [d for i, d in enumerate(value.axes) if i in axes]
        recorder.freeze(node, acted, f"{node.name} acts along this axis")
    return Outcome(_passing(node, axes))


def _passing(node: Node, axes: set[int]) -> list[Axes]:
    """Returns the dims of results, of which a primitive makes the given axes anew."""
    results = []
    for shape in node.shapes:
        passing = [-1 if i in axes else n for i, n in enumerate(shape)]
        found = list(joined(node.inputs, passing))
        for i in axes:
            (found[i],) = frozen(shape[i : i + 1], node)
        results.append(tuple(found))
    return results


def argument(node: Node, recorder: Recorder) -> Outcome:
    """An argmax or argmin: positions along an axis, for `routing` to look at later."""
    value, axis = node.inputs[0], routing.axis_of(node)
    left = tuple(d for i, d in enumerate(value.axes) if i != axis)
    if recorder.order:
        what = f"{node.name} returns positions along this axis"
        recorder.freeze(node, value.axes[axis : axis + 1], what)
    fill = _least if node.name == "argmax" else _greatest
    return _choice(node, [left], fill)


def top_k(node: Node, recorder: Recorder) -> Outcome:
    """The greatest entries and their positions, for `routing` to look at later."""
    axis = routing.axis_of(node)
    if recorder.order:
        return acting(node, recorder, {axis})
    return _choice(node, _passing(node, {axis}), _least)


def _choice(node: Node, axes: list[Axes], fill: Any) -> Outcome:
    """Chooses among the entries that are left, and numbers them as in the whole."""
    axis = routing.axis_of(node)

    def run(view: View, *operands: Any) -> list[Any]:
        found = node.equation.primitive.bind(*operands, **node.params)
        *values, places = found if node.equation.primitive.multiple_results else [found]
        return [*values, routing.numbered(view, node.inputs[0].axes[axis], places)]

    return Outcome(axes, run=run, fill=fill, along=frozenset({axis}))


def fft(node: Node, recorder: Recorder) -> Outcome:
    """Freezes the transformed axes, which are the last ones."""
    rank = len(node.inputs[0].axes)
    acted = range(rank - len(node.params["fft_lengths"]), rank)
    return acting(node, recorder, set(acted))


def window(node: Node, recorder: Recorder) -> Outcome:
    """Freezes the axes that windows slide along; the others keep their dims."""
    count = len(node.inputs[0].axes)
    one = (1,) * count
    shape = node.params["window_dimensions"]
    strides = node.params.get("window_strides") or one
    padding = node.params.get("padding") or ((0, 0),) * count
    dilations = (
        node.params.get("base_dilation") or one,
        node.params.get("window_dilation") or one,
    )
    axes = {
        i
        for i in range(count)
        if (shape[i], strides[i], dilations[0][i]) != (1, 1, 1)
        or tuple(padding[i]) != (0, 0)
    }
    return acting(node, recorder, axes)


RULES = {
    **dict.fromkeys(FILLS, reduction),
    **dict.fromkeys(("argmax", "argmin"), argument),
    **dict.fromkeys(_CUMULATIVE, cumulative),
    "rev": along("dimensions"),
    "sort": along("dimension"),
    "top_k": top_k,
    "approx_top_k": along("reduction_dimension"),
    "fft": fft,
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min"), window
    ),
    # Derivatives of a maximum or minimum over windows.
    **dict.fromkeys(("select_and_scatter_add", "select_and_gather_add"), window),
}
