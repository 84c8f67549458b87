"""Rules of elementwise primitives."""

from collections.abc import Sequence

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import (
    Axes,
    Node,
    Outcome,
    Recorder,
    Scalar,
    Value,
)
from jprune.graph._engine.rules import constants, tables
from jprune.graph._engine.rules.scalars import scalar_of
from jprune.graph._engine.rules.sums import sum_of

NAMES = tuple(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy
    copy_p cos cosh device_put digamma div eq eq_to erf erf_inv erfc exp exp2 expm1
    floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to
    lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg nextafter
    not one_minus_square optimization_barrier or polygamma polynomial
    population_count pow pvary real reduce_precision regularized_incomplete_beta rem
    round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign
    sin sinh sqrt square stage stop_gradient sub tan tanh xor zeta
    """.split()  # noqa: SIM905 (ninety strings in quotes read no better)
)


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
    tables.one_hot(node, recorder)
    found = constants.constant_of(node, recorder, results[0])
    if found is None:
        return Outcome(results, scalar=scalar_of(node), sum=sum_of(node))
    run, total = found
    return Outcome(results, run=run, sum=total)


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
