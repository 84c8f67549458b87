"""Rules of collectives, which combine or move arrays along a named axis.

A named axis is an axis that `jax.vmap` maps, or one of a mesh in `jax.shard_map`. All
positions along it run the same program, so that an entry goes from all of them or from
none. Where their blocks are joined to one axis, or an axis is dealt out in blocks, it
is a product whose outer factor, the number of positions, stays.
"""

from typing import Any

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import scopes
from jprune.graph._engine.program import Node, Outcome, Recorder, Sum, Value, zero
from jprune.graph._engine.rules.reductions import FILLS, summed

_FILLS = {
    "psum": zero,
    "psum_invariant": zero,
    "pmax": FILLS["reduce_max"],
    "pmin": FILLS["reduce_min"],
}
"""Collective -> `dtype -> number` that it ignores."""


def reduction(node: Node, recorder: Recorder) -> Outcome:
    """A sum or maximum over named axes, and over axes that `vmap` has mapped."""
    given = scopes.names_of(node.params["axes"])
    gone = {int(a) for a in given if isinstance(a, int)}  # of the operands
    results, over = [], []
    for value in node.inputs:
        results.append(tuple(d for i, d in enumerate(value.axes) if i not in gone))
        over += [d for i, d in enumerate(value.axes) if i in gone]
    for d in over:
        dims_lib.mark(d, "summed")
    if node.name in ("pmax", "pmin") and over:
        what = f"{node.name} is over the entries that are left"
        recorder.note("over what is left", node, what, over)
    run, total = None, None
    if len(node.inputs) == 1 and node.name in ("psum", "psum_invariant"):
        if not over:
            total = _total(node, recorder, node.inputs[0])
        elif len(gone) == len(given):  # mapped axes only, as of a `reduce_sum`
            run, total = summed(node, recorder, tuple(over))
        else:
            total = Sum(tuple(over))
    if not gone:
        return Outcome(results, sum=total)
    along = frozenset(gone)
    return Outcome(results, run=run, fill=_FILLS[node.name], along=along, sum=total)


def _total(node: Node, recorder: Recorder, value: Value) -> Sum | None:
    """Returns what a sum over positions of a mesh is over.

    Each position has summed its own entries: the entries of all.
    """
    before = value.sum
    if before is None or before.power != 1:
        return None
    names = [a for a in scopes.names_of(node.params["axes"]) if not isinstance(a, int)]
    n = _members(node, recorder, names)
    everywhere = () if n == 1 else (scopes.positions(n, names),)
    return before._replace(over=(*everywhere, *before.over))


def _members(node: Node, recorder: Recorder, names: Any) -> int:
    """Returns how many positions take part in one collective."""
    groups = node.params.get("axis_index_groups")
    if groups is not None:
        return len(groups[0])
    return node.params.get("axis_size") or scopes.count(recorder.scope.sizes, names)


def moved(node: Node, recorder: Recorder) -> Outcome:
    """Arrays change places along a named axis, entry by entry."""
    del recorder
    return Outcome([v.axes for v in node.inputs])


def all_gather(node: Node, recorder: Recorder) -> Outcome:
    """Joins the arrays of all positions, along a new axis or along an old one."""
    axes, params = list(node.inputs[0].axes), node.params
    names, axis = scopes.names_of(params["axis_name"]), params["all_gather_dimension"]
    n = _members(node, recorder, names)
    if params["tiled"]:
        axes[axis] = scopes.joined(axes[axis], n, names)
    else:
        axes.insert(axis, scopes.positions(n, names))
    return Outcome([tuple(axes)])


def reduce_scatter(node: Node, recorder: Recorder) -> Outcome:
    """Deals an axis out in blocks, each summed over all positions."""
    axes, params = list(node.inputs[0].axes), node.params
    names, axis = scopes.names_of(params["axis_name"]), params["scatter_dimension"]
    inner = scopes.dealt(axes[axis], _members(node, recorder, names), names)
    if params["tiled"]:
        axes[axis] = inner
    else:
        recorder.freeze(node, [axes[axis]], "its entries are dealt out to devices")
        del axes[axis]
    return Outcome([tuple(axes)])


def all_to_all(node: Node, recorder: Recorder) -> Outcome:
    """Deals one axis out in blocks, and joins the received ones along another."""
    axes, params = list(node.inputs[0].axes), node.params
    names = scopes.names_of(params["axis_name"])
    n = _members(node, recorder, names)
    split, joins = params["split_axis"], params["concat_axis"]
    axes[split] = scopes.dealt(axes[split], n, names)
    axes[joins] = scopes.joined(axes[joins], n, names)
    return Outcome([tuple(axes)])


def axis_index(node: Node, recorder: Recorder) -> Outcome:
    """The position along a named axis."""
    del node, recorder
    return Outcome([()])


RULES = {
    **dict.fromkeys(_FILLS, reduction),
    **dict.fromkeys(("ppermute", "pbroadcast", "pcast"), moved),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), all_gather),
    "reduce_scatter": reduce_scatter,
    "all_to_all": all_to_all,
    "axis_index": axis_index,
}
