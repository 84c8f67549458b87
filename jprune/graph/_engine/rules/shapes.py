"""Rules of primitives that only move elements: reshapes, slices, concatenations."""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines, meshes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Axes, Node, Outcome, Recorder, Value, View
from jprune.graph._engine.rules.elementwise import joined
from jprune.graph._engine.rules.scalars import scalar_of
from jprune.graph._engine.rules.sums import sum_of
from jprune.graph._engine.running import shrunk
from jprune.graph._engine.sizes import exceeds, is_symbolic


def sizes(view: View, axes: Sequence[Dim]) -> tuple[int, ...]:
    """Returns the shape of an array with these dims."""
    return tuple(view.size(d) for d in axes)


def reshape(node: Node, recorder: Recorder) -> Outcome:
    """Factors the smallest runs of axes that have the same number of elements."""
    axes, order = node.inputs[0].axes, node.params.get("dimensions")
    if order is not None:  # the axes change places first
        axes = [axes[i] for i in order]
    found = regroup(axes, node.shapes[0])
    return _moved(node, found, lambda view: {"new_sizes": sizes(view, found)})


def _moved(node: Node, axes: Axes, params: Any = None) -> Outcome:
    """Returns the outcome of a primitive whose result has the elements of its operand.

    Args:
      node: the equation.
      axes: dims of the result.
      params: `view -> params` of the primitive that change with sizes, or None.
    """
    return Outcome([axes], params=params, scalar=scalar_of(node), sum=sum_of(node))


def regroup(axes: Sequence[Dim], shape: Sequence[int]) -> Axes:
    """Returns the dims of an array after a reshape.

    Args:
      axes: dims before.
      shape: sizes after.
    """
    if 0 in shape:
        why = lines.at("it is an axis of an empty array")
        for d in axes:
            dims_lib.freeze(d, why)
        return tuple(dims_lib.leaf(n, why) for n in shape)
    wanted = [n for n in shape if n != 1]
    # A run ends where both have the same number of elements from the first axis on:
    # symbolic sizes have no order that would say which of the two is behind.
    ends = {n: i for i, n in enumerate(itertools.accumulate(wanted, operator.mul), 1)}
    found: list[Dim] = []
    run: list[Dim] = []
    count = 1
    for d in axes:
        if d.size == 1:
            continue
        run.append(d)
        count *= d.size
        if count in ends:
            outs = wanted[len(found) : ends[count]]
            found += dims_lib.factor(dims_lib.product(run), outs)
            run = []
    if run:  # equal by a constraint on the symbols only
        found += dims_lib.factor(dims_lib.product(run), wanted[len(found) :])
    each = iter(found)
    return tuple(dims_lib.leaf(1) if n == 1 else next(each) for n in shape)


def broadcast_in_dim(node: Node, recorder: Recorder) -> Outcome:
    """Adds axes with new dims, which later equations may merge with others."""
    given, places = node.inputs[0].axes, node.params["broadcast_dimensions"]
    shape = node.shapes[0]
    axes = [dims_lib.leaf(n) for n in shape]
    for d, place in zip(given, places, strict=True):
        if d.size == shape[place]:
            axes[place] = d
    found = tuple(axes)
    return _moved(node, found, lambda view: {"shape": sizes(view, found)})


def squeeze(node: Node, recorder: Recorder) -> Outcome:
    """Drops axes of size 1."""
    del recorder
    drop = {a % len(node.inputs[0].axes) for a in node.params["dimensions"]}
    return _moved(node, _without(node.inputs[0], drop))


def _without(value: Value, drop: Any) -> Axes:
    return tuple(d for i, d in enumerate(value.axes) if i not in drop)


def transpose(node: Node, recorder: Recorder) -> Outcome:
    """Reorders axes."""
    del recorder
    axes = node.inputs[0].axes
    return _moved(node, tuple(axes[i] for i in node.params["permutation"]))


def concatenate(node: Node, recorder: Recorder) -> Outcome:
    """Concatenates dims."""
    del recorder
    axis, shape = node.params["dimension"], list(node.shapes[0])
    shape[axis] = -1
    axes = list(joined(node.inputs, shape))
    axes[axis] = dims_lib.concatenation([v.axes[axis] for v in node.inputs])
    return Outcome([tuple(axes)])


def stack(node: Node, recorder: Recorder) -> Outcome:
    """Stacks arrays along a new axis, a concatenation of pieces of size 1."""
    del recorder
    shape = node.inputs[0].shape
    axes = list(joined(node.inputs, shape))
    new = dims_lib.concatenation([dims_lib.leaf(1) for _ in node.inputs])
    axes.insert(node.params["axis"] % len(node.shapes[0]), new)
    return Outcome([tuple(axes)])


def unstack(node: Node, recorder: Recorder) -> Outcome:
    """Splits an axis into its entries."""
    del recorder
    value, axis = node.inputs[0], node.params["axis"] % len(node.inputs[0].axes)
    dims_lib.split(value.axes[axis], [1] * len(node.shapes))
    return Outcome([_without(value, {axis}) for _ in node.shapes])


def split(node: Node, recorder: Recorder) -> Outcome:
    """Splits a dim into pieces."""
    del recorder
    axes, axis = node.inputs[0].axes, node.params["axis"]
    parts = dims_lib.split(axes[axis], node.params["sizes"])
    found = [(*axes[:axis], part, *axes[axis + 1 :]) for part in parts]
    return Outcome(found, params=lambda view: {"sizes": sizes(view, parts)})


def slice_(node: Node, recorder: Recorder) -> Outcome:
    """Takes a contiguous or a strided piece of each dim."""
    start, limit = node.params["start_indices"], node.params["limit_indices"]
    strides = node.params["strides"] or (1,) * len(start)
    pieces, axes = [], []
    each = zip(start, limit, strides, node.shapes[0], strict=True)
    for d, (a, b, stride, n) in zip(node.inputs[0].axes, each, strict=True):
        if stride == 1:
            parts = dims_lib.split(d, [a, b - a, d.size - b])
            pieces.append(parts)
            axes.append(parts[1])
            continue
        outer = _every(d, a, b, stride)
        if outer is None:
            recorder.freeze(node, [d], f"it is sliced with stride {stride}")
            outer = dims_lib.leaf(n, lines.at("it comes from a strided slice"))
        pieces.append(
            (dims_lib.leaf(a, lines.at("it is before a strided slice")), outer, d)
        )
        axes.append(outer)

    def params(view: View) -> dict[str, Any]:
        begin, end = [], []
        for parts, a, b, stride in zip(pieces, start, limit, strides, strict=True):
            if stride != 1:
                # Either frozen, or the inner factor of size `stride` is.
                fewer = view.size(parts[1])
                begin.append(a)
                end.append(
                    b if fewer == parts[1].size else (fewer - 1) * stride + a + 1
                )
                continue
            begin.append(view.size(parts[0]))
            end.append(begin[-1] + view.size(parts[1]))
        return {"start_indices": tuple(begin), "limit_indices": tuple(end)}

    return Outcome([tuple(axes)], params=params)


def _every(d: Dim, start: int, limit: int, stride: int) -> Dim | None:
    """Returns the outer factor of a dim, if a strided slice selects just that."""
    if (
        any(map(is_symbolic, (d.size, start, limit)))
        or d.size % stride
        or start >= stride
        or len(range(start, limit, stride)) != (d.size // stride)
    ):
        return None
    outer, inner = dims_lib.factor(d, [d.size // stride, stride])
    dims_lib.freeze(inner, lines.at(f"it is sliced with stride {stride}"))
    return outer


def pad(node: Node, recorder: Recorder) -> Outcome:
    """Adds entries before and after each dim, or cuts them off."""
    axes = []
    for d, n, (low, high, interior) in zip(
        node.inputs[0].axes, node.shapes[0], node.params["padding_config"], strict=True
    ):
        if low == high == interior == 0:
            axes.append(d)
        elif interior or exceeds(0, low) is not False or exceeds(0, high) is not False:
            recorder.freeze(node, [d], "its padding is interior or negative")
            axes.append(dims_lib.leaf(n, lines.at("it comes from a padding")))
        else:
            ends = [dims_lib.leaf(k, lines.at("it is a padding")) for k in (low, high)]
            axes.append(dims_lib.concatenation([ends[0], d, ends[1]]))
    return Outcome([tuple(axes)])


def iota(node: Node, recorder: Recorder) -> Outcome:
    """Counts along an axis; when that shrinks, returns the indices that are kept."""
    del recorder
    axes = tuple(map(dims_lib.leaf, node.shapes[0]))
    axis, dtype = node.params["dimension"], node.params["dtype"]
    dims_lib.mark(axes[axis], "counted")

    def run(view: View, *operands: Any) -> list[Any]:
        del operands
        left = view.indices(axes[axis])
        shape = sizes(view, axes)
        if left is None:
            where = meshes.fitted(node.params.get("sharding"), shape)
            return [lax.broadcasted_iota(dtype, shape, axis, out_sharding=where)]
        numbers = jnp.asarray(left).astype(dtype)
        where = meshes.fitted(node.params.get("sharding"), shape)
        return [lax.broadcast_in_dim(numbers, shape, (axis,), out_sharding=where)]

    return Outcome([axes], run=run)


def tile(node: Node, recorder: Recorder) -> Outcome:
    """Repeats whole axes."""
    del recorder
    axes = []
    for d, n in zip(node.inputs[0].axes, node.shapes[0], strict=True):
        times = dims_lib.leaf(
            n // d.size if d.size != 0 else n,
            lines.at("it counts repetitions of a tile"),
        )
        axes.append(dims_lib.product([times, d]) if n != d.size else d)
    return Outcome([tuple(axes)])


def random_bits(node: Node, recorder: Recorder) -> Outcome:
    """Draws random bits for the full shape and takes those of the kept entries."""
    # Bits of a smaller shape would be other bits: those of kept entries would change.
    keys = node.inputs[0].axes
    recorder.freeze(node, keys, "it is an axis of PRNG keys")
    axes = (*keys, *map(dims_lib.leaf, node.shapes[0][len(keys) :]))
    draw = functools.partial(node.equation.primitive.bind, **node.params)
    return Outcome([axes], run=lambda view, key: [shrunk(draw(key), axes, view)])


def constrain(node: Node, recorder: Recorder) -> Outcome:
    """Constrains the sharding of an array, if its smaller axes are divisible."""
    del recorder
    bind = node.equation.primitive.bind

    def run(view: View, x: Any) -> list[Any]:
        del view
        try:
            node.params["sharding"].shard_shape(x.shape)
        except ValueError:
            return [x]
        return [bind(x, **node.params)]

    return Outcome([node.inputs[0].axes], run=run)


def observe(node: Node, recorder: Recorder) -> Outcome:
    """Passes arrays to a callback without results."""
    del node, recorder
    return Outcome(())


RULES = {
    "reshape": reshape,
    "broadcast_in_dim": broadcast_in_dim,
    "squeeze": squeeze,
    "transpose": transpose,
    "concatenate": concatenate,
    "split": split,
    "stack": stack,
    "unstack": unstack,
    "slice": slice_,
    "pad": pad,
    "iota": iota,
    "tile": tile,
    "random_bits": random_bits,
    "sharding_constraint": constrain,
    **dict.fromkeys(("debug_callback", "debug_print"), observe),
}
