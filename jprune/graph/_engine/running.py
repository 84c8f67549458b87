"""Runs a recorded program at other sizes than those it was recorded for."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune.graph._engine import meshes
from jprune.graph._engine.program import Axes, Node, Program, Value, View


def run(program: Program, view: View, *args: Any) -> list[Any]:
    """Runs a program at the sizes of a view.

    Args:
      program: the program.
      view: the sizes.
      *args: arrays for the inputs of the program, at those sizes.

    Returns:
      Arrays for the outputs of the program.
    """
    known = dict(zip(program.inputs, args, strict=True))

    def read(value: Value) -> Any:
        found = known.get(value)
        return shrunk(value.constant, value.axes, view) if found is None else found

    for node in program.nodes:
        operands = [read(v) for v in node.inputs]
        with meshes.around(node.equation):
            results = _evaluated(node, view, operands)
        known.update(zip(node.outputs, results, strict=True))
    return [read(v) for v in program.outputs]


def _evaluated(node: Node, view: View, operands: list[Any]) -> Any:
    """Returns the results of an equation."""
    fill, along = node.outcome.fill, node.outcome.along
    if fill is not None:
        each = along if isinstance(along, tuple) else (along,) * len(operands)
        operands = [
            filled(x, v.axes, view, fill, axes)
            for x, v, axes in zip(operands, node.inputs, each, strict=True)
        ]
    if node.outcome.run is not None:
        return node.outcome.run(view, *operands)
    params = node.params
    if node.outcome.params:
        params = params | node.outcome.params(view)
    if params.get("out_sharding") is not None or params.get("sharding") is not None:
        (result,) = node.outputs
        shape = tuple(view.size(d) for d in result.axes)
        params = params | meshes.changes(params, result.shape, shape)
    found = node.equation.primitive.bind(*operands, **params)
    return found if node.equation.primitive.multiple_results else [found]


def shrunk(array: Any, axes: Axes, view: View) -> Any:
    """Returns the kept entries of an array."""
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
    """Sets the removed entries of an array to a value that has no effect.

    Args:
      array: array of full size.
      axes: its dims.
      view: says which entries are removed.
      fill: `dtype -> number` without effect, such as 0 in a sum.
      along: axes whose removed entries are set, or None for all.
    """
    for axis, d in enumerate(axes):
        mask = None if along is not None and axis not in along else view.mask(d)
        if mask is not None:
            mask = mask.reshape((-1,) + (1,) * (len(axes) - axis - 1))
            mask = meshes.like(mask, array)
            array = jax.numpy.where(mask, array, fill(array.dtype))
    return array
