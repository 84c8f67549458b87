"""Explains why axes of params cannot shrink, most weights first."""

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jprune import tree
from jprune.graph._cost import COUNTED
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Note, Value
from jprune.graph._engine.sizes import exceeds
from jprune.graph._trace import Graph, param_values

_COLUMNS = 100
_INDENT = "    "
_LINES = 24  # of the reasons why axes are whole; half as many of other remarks
_LINE_OF_CODE = re.compile(r"(.*?) \(([^()]+:\d+(?::\d+)? \([^()]*\)|in JAX)\)", re.S)

_UNUSED = "unused: no result depends on it"
_ONE = "one entry: there is nothing to remove"
_APART = "not summed over: no product, sum or loop runs over it, so it forms no group"
_CLOSED = (
    "closed over: the function multiplies by arrays that are not among its params; "
    "pass them as params to prune them"
)


class _Concern(NamedTuple):
    """What a reason concerns, each once and in order; dicts whose values are None."""

    names: dict[str, None]
    where: dict[str, None]
    paths: dict[str, None]


def _nothing() -> _Concern:
    return _Concern({}, {}, {})


def explain(graph: Graph, most: int | None = 6) -> str:
    """Explains what cannot shrink and why: "why was nothing pruned?".

    Frozen does not mean important: such an axis was not ranked at all.

    Args:
      graph: the recorded function.
      most: number of names that are listed below a reason. The answer has at most
        about 40 lines; None lists all reasons, all lines of code and all names.

    Returns:
      How many groups can shrink, and how many of the weights lie in them. Then one
      entry for each reason, with the line of your code that it comes from where there
      is one, and below it the names that it concerns. First the reasons why axes of
      params stay as they are. Those that keep leaves whole, of which no axis can
      shrink, say how many weights these have, and come in that order:

      - "frozen": axes that cannot shrink, `path[axes]`, and what mends it, if anything
        does. A primitive without a rule, for example, can be given one;
      - "unused", "one entry" and "not summed over": leaves and axes without a group;
      - "closed over": arrays that the function multiplies by, but that are no params.

      And what else there is to know:

      - "rescaled" and "kept": groups whose size a constant was computed from, such as
        the divisor of a mean. It follows the size, or does not; see `Options`. What
        only equals a size, as 0.25 does after a sum of 4 entries, is "kept", too;
      - "over what is left": groups that a maximum or the like is over;
      - "whole by default": groups of tokens or positions, which `is_width` leaves out;
      - "changed in place": state that lies in the objects that the function is given.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"] + p["bias"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> params["bias"] = jnp.ones(2)
      >>> print(jg.explain(jg.trace(mlp, params, jnp.ones((5, 3)))))
      1 group can shrink. Its leaves hold 40 of 42 weights.
      frozen, keeps 2 weights whole: it is an axis of the result ''
          bias[0], out[1]
      frozen: it is an axis of an input
          in[0]
    """
    shrinking = {m.path for g in graph.groups.values() for m in g.members}
    weights = {
        path: math.prod(d.size for d in axes) for path, axes in graph.axes.items()
    }
    whole = {p: n for p, n in weights.items() if p not in shrinking}
    kept = {  # of a leaf that can shrink otherwise, a reason keeps no weight whole
        why: (sum(whole.get(p, 0) for p in each.paths), each)
        for why, each in _whole_axes(graph).items()
    }
    ordered = sorted(kept.items(), key=lambda item: -item[1][0])  # stable
    reasons = [_entry(_kept_whole(why, n), each, most) for why, (n, each) in ordered]
    closed = _closed_over(graph)
    reasons += [_entry(_CLOSED, closed, most)] if closed.names else []
    remarks = [_entry(w, each, most) for w, each in _remarks(graph).items()]
    return "\n".join(
        [
            _headline(graph, weights, whole),
            *_first(reasons, None if most is None else _LINES),
            *_first(remarks, None if most is None else _LINES // 2),
        ]
    )


def _headline(
    graph: Graph, weights: Mapping[str, int], whole: Mapping[str, int]
) -> str:
    total, n = sum(weights.values()), len(graph.groups)
    if not weights:
        return "Nothing can shrink, as there are no params: the tree has no leaves."
    if not n:
        return (
            f"Nothing can shrink: no axis of {total:,} weights is free and summed over."
        )
    groups, leaves = ("1 group", "Its") if n == 1 else (f"{n} groups", "Their")
    inside = total - sum(whole.values())
    return f"{groups} can shrink. {leaves} leaves hold {inside:,} of {total:,} weights."


def _kept_whole(why: str, weights: int) -> str:
    kind, rest = why.split(": ", 1)
    unit = "weight" if weights == 1 else "weights"
    return f"{kind}, keeps {weights:,} {unit} whole: {rest}" if weights else why


def _whole_axes(graph: Graph) -> dict[str, _Concern]:
    """Returns why axes of params stay as they are: reason -> what it concerns."""
    found: dict[str, _Concern] = {}
    unused = _unused(graph)
    for path, axes in graph.axes.items():
        each: dict[str, list[str]] = {}
        for i, d in enumerate(axes):
            for why in dict.fromkeys(
                filter(None, map(_why_whole, dims_lib.leaves_of(d)))
            ):
                each.setdefault(why, []).append(str(i))
        if path in unused:
            each = {_UNUSED: []}
        elif all(d.size == 1 for d in axes):
            each = {_ONE: []}
        for why, numbers in each.items():
            what, where = _divided(why)
            reason = found.setdefault(what, _nothing())
            name = f"{path}[{', '.join(numbers)}]" if numbers else path
            reason.names[name] = reason.paths[path] = None
            reason.where.update(dict.fromkeys(where))
    return found


def _why_whole(one: Dim) -> str:
    if one.size in (0, 1):
        return ""
    if one.frozen:
        return f"frozen: {one.frozen}"
    return "" if "summed" in one.marks else _APART


def _divided(why: str) -> tuple[str, list[str]]:
    """Divides a reason into what it says and the line of code, if it names one."""
    found = _LINE_OF_CODE.fullmatch(why)
    return (found[1], [found[2]]) if found else (why, [])


def _unused(graph: Graph) -> set[str]:
    """Returns the paths of the params that no result depends on."""
    program = graph.program
    used = {v for node in program.nodes for v in node.inputs} | {*program.outputs}
    return {path for v, path in param_values(graph).items() if v not in used}


def _closed_over(graph: Graph) -> _Concern:
    """Returns the arrays in products that are constants of the program."""
    found = _nothing()
    made: dict[Value, Value] = {}  # a constant that was cast or scaled -> itself

    def constant(v: Value) -> bool:
        return v.scalar is not None or made.get(v, v).constant is not None

    for node in graph.program.nodes:
        for v in node.inputs:
            array = made.get(v, v).constant
            if array is None or not exceeds(dims_lib.count_of(v.axes), 1):
                continue
            if node.name in COUNTED:
                found.names[f"{array.dtype}{list(np.shape(array))}"] = None
                found.where[lines.of(node.equation.source_info) or "in JAX"] = None
            elif len(node.outputs) == 1 and all(map(constant, node.inputs)):
                made[node.outputs[0]] = made.get(v, v)
    return found


def _remarks(graph: Graph) -> dict[str, _Concern]:
    """Returns what becomes of constants, of maxima, of tables and of state."""
    found: dict[str, _Concern] = {}
    for note in graph.notes:
        if note.kind != "frozen" and (names := _live_groups(graph, note)):
            reason = found.setdefault(f"{note.kind}: {note.what}", _nothing())
            reason.names.update(dict.fromkeys(names))
            reason.where[note.where] = None
    if graph.state:
        names = [*graph.axes, *(f"input {p}" for p in tree.leaf_paths(graph.inputs))]
        why = "changed in place by each call, by the small function as well"
        found[why] = _nothing()
        found[why].names.update(dict.fromkeys(names[i] for i in graph.state))
    return found


def _live_groups(graph: Graph, note: Note) -> list[str]:
    """Returns the names of the groups that a note is about; [] if all is frozen."""
    about = {x for d in note.about for x in dims_lib.leaves_of(d)}
    found = [n for n, g in graph.groups.items() if dims_lib.resolve(g.dim) in about]
    if note.kind == "whole by default":  # experts may be chosen by one-hot vectors
        found = [n for n in found if graph.groups[n].kind == "table"]
    return found


def _entry(why: str, reason: _Concern, most: int | None) -> list[str]:
    """Returns the lines of a reason: itself, indented by 2, and names, by 4."""
    where = list(reason.where)
    if most is not None and len(where) > 1:
        where = [f"{where[0]} and {len(where) - 1} more"]
    text = f"{why} ({', '.join(where)})" if where else why
    fitted = [
        textwrap.wrap(
            line,
            _COLUMNS,
            initial_indent=first,
            subsequent_indent=first or "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line, first in ((text, ""), (_listed(list(reason.names), most), _INDENT))
    ]
    return [line for lines in fitted for line in lines]


def _listed(names: Sequence[str], most: int | None) -> str:
    """Lists names, as many as a line holds unless all are wanted."""
    if most is None:
        return ", ".join(names)
    for n in range(min(most, len(names)), 0, -1):
        gone = len(names) - n
        text = ", ".join(names[:n]) + (f" and {gone} more" if gone else "")
        if len(text) <= _COLUMNS - len(_INDENT):
            return text
    return f"{len(names)} names" if len(names) > 1 else names[0]


def _first(entries: Sequence[list[str]], lines: int | None) -> Iterator[str]:
    """Yields the lines of the first entries, and how many are left out."""
    used = 0
    for i, entry in enumerate(entries):
        used += len(entry)
        if lines is not None and used > lines and i:
            yield f"and {len(entries) - i} more: explain(graph, most=None) lists all"
            return
        yield from entry
