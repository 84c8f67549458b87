"""Axes of tables: a token or a position is an entry, and the user needs them all.

They are summed over where a one-hot vector reads a table, or where a table of positions
is resized, so that they are groups; but a table without some of its entries is no
smaller network: it is one that does not know some of its inputs.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Node, Recorder


def mark(node: Node, recorder: Recorder, axes: Sequence[Dim]) -> None:
    """Marks axes of tables, and notes that they stay whole by default."""
    what = "its entries are tokens or positions of a table; where= can name its group"
    recorder.note("whole by default", node, what, axes)
    for d in axes:
        dims_lib.mark(d, "table")


def one_hot(node: Node, recorder: Recorder) -> None:
    """Marks the axis of one-hot vectors, which compare inputs with its positions."""
    if node.name != "eq":
        return
    for given, places in (node.inputs, node.inputs[::-1]):
        if places.counted and given.active and jnp.issubdtype(given.dtype, jnp.integer):
            each = [d for d in places.axes if d.size != 1]
            mark(node, recorder, [d for d in each if _is_counted(d)])


def _is_counted(d: Dim) -> bool:
    return any("counted" in x.marks for x in dims_lib.leaves_of(d))
