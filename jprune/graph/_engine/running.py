"""Running a recorded program at other sizes than it was recorded for."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune.graph._engine.program import Axes, Program, Value, View


def run(program: Program, view: View, *args: Any) -> list[Any]:
    """Runs a program at the sizes of a view.

    Args:
      program: what to run.
      view: at which sizes.
      *args: arrays for its inputs, of those sizes.

    Returns:
      Arrays for its outputs.
    """
    known = {id(v): x for v, x in zip(program.inputs, args, strict=True)}

    def read(value: Value) -> Any:
        found = known.get(id(value))
        return shrunk(value.constant, value.axes, view) if found is None else found

    for node in program.nodes:
        operands = [read(v) for v in node.inputs]
        if node.outcome.fill is not None:
            operands = [
                filled(x, v.axes, view, node.outcome.fill, node.outcome.along)
                for x, v in zip(operands, node.inputs, strict=True)
            ]
        if node.outcome.run is not None:
            results = node.outcome.run(view, *operands)
        else:
            changed = node.outcome.params(view) if node.outcome.params else {}
            results = node.equation.primitive.bind(*operands, **node.params | changed)
            if not node.equation.primitive.multiple_results:
                results = [results]
        known.update((id(v), x) for v, x in zip(node.outputs, results, strict=True))
    return [read(v) for v in program.outputs]


def shrunk(array: Any, axes: Axes, view: View) -> Any:
    """Returns the entries of an array that are left."""
    for axis, d in enumerate(axes):
        left = view.indices(d)
        if left is not None:
            take = np.take if isinstance(array, np.ndarray) else jax.numpy.take
            array = take(array, left, axis=axis)
    return array


def filled(
    array: Any,
    axes: Axes,
    view: View,
    fill: Callable[[Any], Any],
    along: frozenset[int] | None = None,
) -> Any:
    """Returns an array whose removed entries do not count.

    Args:
      array: of full size.
      axes: its dims.
      view: which entries are removed.
      fill: what does not count, for a type.
      along: only entries that are removed from these axes; None for all.
    """
    for axis, d in enumerate(axes):
        mask = None if along is not None and axis not in along else view.mask(d)
        if mask is not None:
            mask = mask.reshape((-1,) + (1,) * (len(axes) - axis - 1))
            array = jax.numpy.where(mask, array, fill(array.dtype))
    return array
