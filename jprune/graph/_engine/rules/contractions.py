"""Rules of contractions: matrix multiplication and convolution."""

import functools
import math
from typing import Any

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import (
    Axes,
    Node,
    Outcome,
    Recorder,
    Sum,
    frozen,
    unknown,
    zero,
)
from jprune.graph._engine.rules import constants, tables
from jprune.graph._engine.sizes import is_symbolic


def dot_general(node: Node, recorder: Recorder) -> Outcome:
    """Merges contracted axes, and merges batch axes."""
    left, right = node.inputs
    (left_sum, right_sum), (left_batch, right_batch) = node.params["dimension_numbers"]
    contracted, batch = [], []
    for i, j in zip(left_sum, right_sum, strict=True):
        dims_lib.unify(left.axes[i], right.axes[j])
        dims_lib.mark(left.axes[i], "summed")
        contracted.append(left.axes[i])
    if contracted and any(
        a.counted and not b.active for a, b in ((left, right), (right, left))
    ):
        tables.mark(node, recorder, contracted)  # such as positions that are resized
    for i, j in zip(left_batch, right_batch, strict=True):
        dims_lib.unify(left.axes[i], right.axes[j])
        batch.append(left.axes[i])
    free = [d for i, d in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    free += [d for i, d in enumerate(right.axes) if i not in (*right_sum, *right_batch)]
    attends = left.active and right.active
    if attends:
        for d in (*contracted, *free):
            dims_lib.mark(d, "head")
    if left.active or right.active:
        for d in batch:
            dims_lib.mark(d, "heads" if attends else "parallel")
    # A value times itself is a sum of squares, as in a root mean square.
    products = left is not right
    total = Sum(tuple(contracted), of_products=products, attends=attends)
    run = _scaled(node, recorder, total)
    # Only what is summed: a whole slice of zeros would have no gradient of its norm.
    along = (frozenset(left_sum), frozenset(right_sum))
    axes = [(*batch, *free)]
    return Outcome(axes, fill=zero, along=along, run=run, sum=total)


def _scaled(node: Node, recorder: Recorder, total: Sum) -> Any:
    """Returns how attention runs whose operands were scaled by powers of its size n.

    The product of both scales is n^-1/2 or 1 / n, as of d^-1/4 on either side.
    """
    factor = math.prod(1.0 if v.sum is None else v.sum.factor for v in node.inputs)
    n = dims_lib.count_of(total.over)
    if is_symbolic(n) or n < 2:
        return None
    if not total.attends:
        sums = [v.sum for v in node.inputs if v.sum]
        divisors = [d for s in sums for d in (*s.divisors, *s.within)]
        if total.over and constants.counted(divisors, total.over)[0]:
            constants.chance(recorder, node, n, total.over)
        return None
    for power in (-0.5, -1.0):
        if math.isclose(factor, n**power, rel_tol=1e-5):
            size = constants.Size("attention_scale", total.over)
            constants.note(recorder, node, size)
            bind = functools.partial(node.equation.primitive.bind, **node.params)
            return constants.follow(bind, size, power)
    return None


def convolution(node: Node, recorder: Recorder) -> Outcome:
    """Merges input channels, per group; freezes windows and spatial axes."""
    # A group of the output channels sees its group of the input channels, or, in the
    # derivative of such a convolution, its group of the images.
    image, kernel = node.inputs
    spec = node.params["dimension_numbers"]
    spatial = [image.axes[i] for i in spec.lhs_spec[2:]]
    spatial += [kernel.axes[i] for i in spec.rhs_spec[2:]]
    recorder.freeze(node, spatial, "it is a spatial axis of a convolution")
    batch, channels = (image.axes[i] for i in spec.lhs_spec[:2])
    features, inputs = (kernel.axes[i] for i in spec.rhs_spec[:2])
    dims_lib.mark(features, "channel")
    dims_lib.mark(channels, "channel")
    name, groups, outer = _groups(node, features)
    if name == "feature_group_count":
        of_image, channels = dims_lib.factor(channels, [groups, inputs.size])
        dims_lib.mark(of_image, "summed")
    else:
        of_image, batch = dims_lib.factor(batch, [groups, batch.size // groups])
    dims_lib.unify(of_image, outer)
    dims_lib.unify(channels, inputs)
    dims_lib.mark(inputs, "summed")
    axes: list[Any] = [None] * len(node.shapes[0])
    axes[spec.out_spec[0]], axes[spec.out_spec[1]] = batch, features
    for i in spec.out_spec[2:]:
        (axes[i],) = frozen(node.shapes[0][i : i + 1], node)

    over: Axes = (inputs, *(kernel.axes[i] for i in spec.rhs_spec[2:]))
    total = Sum(over, of_products=True)
    # The channels of an image in groups are products: whole groups are not summed.
    whole = name == "batch_group_count" or groups == 1
    along = (
        frozenset(spec.lhs_spec[1:2] if whole else ()),
        frozenset(spec.rhs_spec[1:2]),
    )
    return Outcome(
        [tuple(axes)],
        params=lambda view: {name: view.size(outer)},
        fill=zero,
        along=along,
        sum=total,
    )


def _groups(node: Node, features: Dim) -> tuple[str, int, Dim]:
    """Returns the parameter that groups a convolution, their number and their dim."""
    names = ("feature_group_count", "batch_group_count")
    name = max(names, key=node.params.__getitem__)
    groups = node.params[name]
    return name, groups, dims_lib.factor(features, [groups, features.size // groups])[0]


def ragged_dot(node: Node, recorder: Recorder) -> Outcome:
    """Rows of one operand times the matrix of their group, such as of an expert."""
    # The rows and the groups stay, as group sizes say which rows belong together.
    left, right, groups = node.inputs
    numbers = node.params["ragged_dot_dimension_numbers"]
    (left_sum, right_sum), (left_batch, right_batch) = numbers.dot_dimension_numbers
    (rows,) = numbers.lhs_ragged_dimensions
    apart = numbers.rhs_group_dimensions
    if rows in left_batch:
        return unknown(node, recorder)
    about = [left.axes[rows], *groups.axes, *[right.axes[i] for i in apart]]
    recorder.freeze(node, about, "it is an axis of the groups of a ragged product")
    for i, j in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        dims_lib.unify(left.axes[i], right.axes[j])
    contracted = [left.axes[i] for i in left_sum]
    for d in contracted:
        dims_lib.mark(d, "summed")
    gone = {*right_sum, *right_batch, *apart}
    axes = [left.axes[i] for i in left_batch]
    axes += [d for i, d in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    axes += [d for i, d in enumerate(right.axes) if i not in gone]
    if rows in left_sum:  # one product for each group
        axes = [*frozen(node.shapes[0][:1], node), *axes]
    total = Sum(tuple(contracted), of_products=True)
    return Outcome([tuple(axes)], fill=zero, sum=total)


RULES = {
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "ragged_dot_general": ragged_dot,
}
