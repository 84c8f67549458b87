"""Rules of primitives that read or write at computed positions.

Indexed axes are frozen; axes that are taken as a whole keep their dims.
"""

from typing import Any

import jax.numpy as jnp

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Node, Outcome, Recorder, View, zero
from jprune.graph._engine.rules import scalars
from jprune.graph._engine.rules.shapes import sizes
from jprune.graph._engine.sizes import exceeds, is_symbolic


def dynamic_slice(node: Node, recorder: Recorder) -> Outcome:
    """A slice at a computed position."""
    axes = []
    for d, n in zip(node.inputs[0].axes, node.params["slice_sizes"], strict=True):
        if d.size == n:
            axes.append(d)  # a whole axis can start at 0 only
        else:
            recorder.freeze(node, [d], "it is sliced at a computed position")
            axes.append(dims_lib.leaf(n, lines.at("it comes from a dynamic slice")))
    found = tuple(axes)
    return Outcome([found], params=lambda view: {"slice_sizes": sizes(view, found)})


def dynamic_update_slice(node: Node, recorder: Recorder) -> Outcome:
    """Overwrites a slice at a computed position."""
    operand, update = node.inputs[:2]
    for d, new in zip(operand.axes, update.axes, strict=True):
        if d.size == new.size:
            dims_lib.unify(d, new)
        else:
            recorder.freeze(node, [d, new], "it is written at a computed position")
    return Outcome([operand.axes])


def gather(node: Node, recorder: Recorder) -> Outcome:
    """Reads slices at computed positions: embeddings, caches, permutations."""
    if (found := _slice_of(node)) is not None:
        return _slice(node, *found)
    operand, indices = node.inputs
    spec, taken = node.params["dimension_numbers"], node.params["slice_sizes"]
    removed = {*spec.collapsed_slice_dims, *spec.operand_batching_dims}
    kept = [i for i in range(len(operand.axes)) if i not in removed]
    places = iter(indices.axes[:-1])  # the last axis holds the coordinates
    dims_lib.freeze(indices.axes[-1], lines.at("it holds coordinates of a gather"))
    windows = dict(zip(spec.offset_dims, kept, strict=True))
    axes: list[Dim] = []
    for i, n in enumerate(node.shapes[0]):
        if i not in windows:
            axes.append(next(places))
            continue
        d = operand.axes[windows[i]]
        if d.size == n:
            axes.append(d)
        else:
            recorder.freeze(node, [d], "it is read at a computed position")
            axes.append(dims_lib.leaf(n, lines.at("it comes from a gather")))
    for i in spec.collapsed_slice_dims:
        recorder.freeze(node, [operand.axes[i]], "it is indexed")
    batching = (spec.operand_batching_dims, spec.start_indices_batching_dims)
    for i, j in zip(*batching, strict=True):
        dims_lib.unify(operand.axes[i], indices.axes[j])
    whole = [d.size == n for d, n in zip(operand.axes, taken, strict=True)]

    def params(view: View) -> dict[str, Any]:
        return {
            "slice_sizes": tuple(
                view.size(d) if w and i not in removed else n
                for i, (d, n, w) in enumerate(
                    zip(operand.axes, taken, whole, strict=True)
                )
            )
        }

    return Outcome([tuple(axes)], params=params)


def _slice_of(node: Node) -> tuple[int, Any] | None:
    """Returns which axis a gather slices, and from where, as x[:, 4:] does.

    So JAX writes a slice of an array that has an axis of symbolic size. None if the
    positions are computed, or could be out of bounds.
    """
    operand, indices = node.inputs
    spec, taken = node.params["dimension_numbers"], node.params["slice_sizes"]
    if indices.scalar is None or indices.shape != (1,) or len(spec.start_index_map) > 1:
        return None
    (axis,) = spec.start_index_map
    size, start = operand.axes[axis].size, scalars.size_named(indices.scalar)
    if start is None or not any(is_symbolic(d.size) for d in operand.axes):
        return None
    others = [d.size == n for d, n in zip(operand.axes, taken, strict=True)]
    del others[axis]
    inside = exceeds(0, start) is False
    inside = inside and exceeds(start + taken[axis], size) is False
    return (axis, start) if inside and all(others) else None


def _slice(node: Node, axis: int, start: Any) -> Outcome:
    """A slice of an array with symbolic sizes, which JAX writes as a gather."""
    operand, taken = node.inputs[0], node.params["slice_sizes"][axis]
    d = operand.axes[axis]
    before, piece, _ = dims_lib.split(d, [start, taken, d.size - start - taken])
    axes = [piece if i == axis else each for i, each in enumerate(operand.axes)]
    gone = node.params["dimension_numbers"].collapsed_slice_dims
    bind = node.equation.primitive.bind

    def run(view: View, x: Any, at: Any) -> list[Any]:
        begin = jnp.full(at.shape, view.size(before), at.dtype)
        return [bind(x, begin, **node.params | {"slice_sizes": sizes(view, axes)})]

    return Outcome([tuple(e for i, e in enumerate(axes) if i not in gone)], run=run)


def scatter(node: Node, recorder: Recorder) -> Outcome:
    """Writes or adds slices at computed positions."""
    operand, indices, updates = node.inputs
    spec = node.params["dimension_numbers"]
    dims_lib.freeze(indices.axes[-1], lines.at("it holds coordinates of a scatter"))
    removed = {*spec.inserted_window_dims, *spec.operand_batching_dims}
    kept = [i for i in range(len(operand.axes)) if i not in removed]
    windows = dict(zip(spec.update_window_dims, kept, strict=True))
    places = iter(indices.axes[:-1])
    adds = node.name in ("scatter-add", "scatter-sub")
    for i, d in enumerate(updates.axes):
        if i not in windows:
            place = next(places)
            dims_lib.unify(d, place)
            if not adds:  # a removed update would still overwrite
                recorder.freeze(node, [place], "it indexes the updates of a scatter")
        elif operand.axes[windows[i]].size == d.size:
            dims_lib.unify(d, operand.axes[windows[i]])
        else:
            about = [d, operand.axes[windows[i]]]
            recorder.freeze(node, about, "it is written at a computed position")
    for i in spec.inserted_window_dims:
        recorder.freeze(node, [operand.axes[i]], "it is indexed")
    batching = (spec.operand_batching_dims, spec.scatter_indices_batching_dims)
    for i, j in zip(*batching, strict=True):
        dims_lib.unify(operand.axes[i], indices.axes[j])
    # Removed updates must not be added to the kept entries.
    indexed = frozenset(i for i in range(len(updates.axes)) if i not in windows)
    along = (frozenset(), frozenset(), indexed)
    return Outcome([operand.axes], fill=zero if adds else None, along=along)


RULES = {
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    **dict.fromkeys(
        (
            "scatter",
            "scatter-add",
            "scatter-sub",
            "scatter-mul",
            "scatter-min",
            "scatter-max",
        ),
        scatter,
    ),
}
