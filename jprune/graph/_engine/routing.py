"""Routers, which choose experts by the positions of the greatest entries of an axis.

Positions along an axis are numbers, and numbers can be used in any way, so an axis is
frozen where `top_k` or `argmax` acts along it. A router compares the positions with
those along another axis, as `jax.nn.one_hot` does:

    best, chosen = top_k(gates, k);  weights = best @ (chosen[:, None] == iota(experts))

If the positions serve for nothing else, then the two axes are the same experts, and
may shrink together: positions among the experts that are left become their numbers
among all, and so do the kept entries of the iota.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import terms
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Node, Program, Recorder, Value, View
from jprune.graph._engine.sizes import exceeds

MOVES = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "expand_dims",
    "reshape",
    "slice",
    "squeeze",
    "transpose",
}
"""Primitives that leave positions what they are."""

Users = Mapping[Value, list[Node]]


def axis_of(node: Node) -> int:
    """Returns the axis along which a `top_k`, `argmax` or `argmin` acts."""
    axis = node.params["axes"][0] if "axes" in node.params else node.params.get("axis")
    return (-1 if axis is None else axis) % len(node.inputs[0].axes)


def least_of(d: Dim) -> int:
    """Returns how many entries of a leaf a router takes at once, 1 if none does."""
    taken = [int(word[4:]) for word in d.marks if word.startswith("top ")]
    return min(d.size, max(taken)) if taken else 1


def numbered(view: View, d: Dim, positions: Any) -> Any:
    """Returns the numbers among all entries of positions among those that are left."""
    left = view.indices(d)
    return positions if left is None else jnp.asarray(left, positions.dtype)[positions]


def relate(program: Program, recorder: Recorder) -> None:
    """Relates routers to their experts; freezes the axes of other positions.

    Args:
      program: the whole program, after all its equations were recorded.
      recorder: takes notes.
    """
    for body in _bodies(program):
        choices = [n for n in body.nodes if n.name in ("top_k", "argmax", "argmin")]
        users = _users(body) if choices else {}
        for node in choices:
            _relate(node, _compared(node.outputs[-1], body, users), recorder)


def _relate(node: Node, experts: list[Dim] | None, recorder: Recorder) -> None:
    d = node.inputs[0].axes[axis_of(node)]
    count = node.params.get("k", 1)
    same = experts and all(e.size == d.size for e in experts)
    if not same or not exceeds(d.size, count):
        what = "returns positions along" if node.name != "top_k" else "acts along"
        recorder.freeze(node, [d], f"{node.name} {what} this axis")
        return
    for e in experts or ():
        dims_lib.unify(d, e)
    for word in ("routed", f"top {count}"):
        dims_lib.mark(d, word)
    what = f"{node.name} is over the entries that are left"
    recorder.note("over what is left", node, what, [d])


def _bodies(program: Program) -> Iterator[Program]:
    yield program
    for node in program.nodes:
        for body in node.inner:
            yield from _bodies(body)


def _users(program: Program) -> Users:
    found: dict[Value, list[Node]] = {}
    for node in program.nodes:
        for v in node.inputs:
            found.setdefault(v, []).append(node)
    return found


def _compared(positions: Value, program: Program, users: Users) -> list[Dim] | None:
    """Returns the axes whose positions a value is compared with.

    None if it is used otherwise, or not at all.
    """
    if positions in program.outputs or positions not in users:
        return None
    found: list[Dim] = []
    for node in users[positions]:
        if node.name in MOVES:
            further = _compared(node.outputs[0], program, users)
        elif node.name in ("eq", "ne") and node.inputs.count(positions) == 1:
            (other,) = (v for v in node.inputs if v is not positions)
            further = [d for d in other.axes if d.size != 1] if other.counted else None
        else:
            further = None
        if not further or not all(map(_is_counted, further)):
            return None
        found += further
    return found


def _is_counted(d: Dim) -> bool:
    return any("counted" in x.marks for x in terms.leaves_of(d))
