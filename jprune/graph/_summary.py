"""Summaries: the cost of each product of a function before and after pruning."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base, canvas
from jprune._core.quantities import rounded
from jprune._core.tables import Column, print_table
from jprune.graph import _cost
from jprune.graph._cost import Operation, Sizes
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.sizes import added
from jprune.graph._groups import Group, check_known
from jprune.graph._trace import Graph

MEASURES = {
    "parameters": _cost.parameters,
    "multiply_adds": _cost.multiply_adds,
    "bytes_moved": _cost.bytes_moved,
}

_TITLES = ("parameters", "multiply-adds", "bytes moved")

# Okabe and Ito's colours, which people with colour blindness can distinguish.
COLOURS = {
    "hidden": "#0072B2",
    "channel": "#009E73",
    "heads": "#D55E00",
    "head": "#E69F00",
    "expert": "#CC79A7",
    "layer": "#56B4E9",
    "table": "#F0E442",
}

_NOTE = (
    "Matrix products and convolutions in order; those in a scan count once for each "
    "iteration. Bytes read and written, each operand once. A leaf of two products is "
    "in both rows, and once in the total."
)


def summary(
    graph: Graph,
    params: base.Params | None = None,
    masks: base.Masks | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Returns the cost of each product of a function and of all, as plain data.

    Args:
      graph: the recorded function.
      params: arrays. Without masks, their zeros count as pruned.
      masks: masks of the params, as from `jprune.masks_of`. They count as pruned
        weights, not as smaller arrays, which only `sizes` describes.
      sizes: sizes of groups, as from `sizes(graph, keep)`; missing ones are whole.

    Returns:
      `operations`: a list of {name, where, leaves, groups, sparsity, before, after},
      where `groups` are those that its cost depends on, `sparsity` is that of its
      leaves (None without masks and params), and `before` and `after` are each
      {parameters, multiply_adds, bytes_moved}. `rest`: {leaves, sparsity, before,
      after} of the leaves that no product multiplies by, such as biases, scales and
      embeddings. `total`: {sparsity, before, after} of all. Figures are integers where
      sizes are, and symbolic where sizes are.

    Raises:
      PruningError: if there is no such group, if params or masks do not belong to the
        graph, or if sizes are fractional and others symbolic.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> shapes = {"in": jnp.zeros((3, 8)), "out": jnp.zeros((8, 2))}
      >>> graph = jg.trace(mlp, shapes, jnp.zeros((5, 3)))
      >>> found = jg.summary(graph, sizes={"in[1]": 4})
      >>> [row["after"]["multiply_adds"] for row in found["operations"]]
      [60, 40]
      >>> found["total"]["before"]["multiply_adds"]
      200
    """
    check_known(graph.groups, sizes or {})
    kept = _kept(graph, params, masks)
    each = _cost.operations(graph)
    before, after = _cost.measure(graph), _cost.measure(graph, sizes)
    used = {path for o in each for path in o.leaves}
    rest = [path for path in graph.axes if path not in used]
    return {
        "operations": [
            {
                "name": o.name,
                "where": o.where,
                "leaves": list(o.leaves),
                "groups": _groups_of(graph, o),
                "sparsity": _sparsity(graph, o.leaves, kept),
                "before": _costs(graph, before, o),
                "after": _costs(graph, after, o),
            }
            for o in each
        ],
        "rest": {
            "leaves": rest,
            "sparsity": _sparsity(graph, rest, kept),
            "before": {"parameters": _parameters(graph, before, rest)},
            "after": {"parameters": _parameters(graph, after, rest)},
        },
        "total": {
            "sparsity": _sparsity(graph, graph.axes, kept),
            "before": {n: _plain(f(graph)) for n, f in MEASURES.items()},
            "after": {n: _plain(f(graph, sizes)) for n, f in MEASURES.items()},
        },
    }


def _kept(graph: Graph, params: Any, masks: Any) -> dict[str, int] | None:
    """Returns the number of kept weights of each leaf; None without params or masks."""
    if params is not None:
        found = [np.shape(x) for x in jax.tree.leaves(params)]
        ours = [x.shape for x in jax.tree.leaves(graph.params)]
        if tree.leaf_paths(params) != list(graph.axes) or found != ours:
            raise base.PruningError(
                "These are not the params that were traced: paths or shapes differ."
            )
    if masks is not None:
        counts = masks_lib.kept(graph.params, masks)
    elif params is not None:
        counts = jax.tree.map(lambda w: np.count_nonzero(np.asarray(w)), params)
    else:
        return None
    counts = jax.device_get(jax.tree.leaves(counts))
    return dict(zip(graph.axes, map(int, counts), strict=True))


def _sparsity(graph: Graph, paths: Any, kept: Mapping[str, int] | None) -> float | None:
    if kept is None:
        return None
    size = sum(dims_lib.count_of(graph.axes[path]) for path in paths)
    return 1 - sum(kept[path] for path in paths) / size if size else 0.0


def _groups_of(graph: Graph, o: Operation) -> list[str]:
    axes = (*o.factors, *(d for given in o.operands for d in given), *o.result)
    met = {one for d in axes for one in dims_lib.leaves_of(d)}
    return [n for n, g in graph.groups.items() if dims_lib.resolve(g.dim) in met]


def _costs(graph: Graph, size: Any, o: Operation) -> dict[str, Any]:
    arrays = zip((*o.operands, o.result), o.item_bytes, strict=True)
    moved = added(_cost.elements(size, axes) * each for axes, each in arrays)
    return {
        "parameters": _parameters(graph, size, o.leaves),
        "multiply_adds": _plain(_cost.elements(size, o.factors)),
        "bytes_moved": _plain(moved),
    }


def _parameters(graph: Graph, size: Any, paths: Any) -> Any:
    return _plain(added(_cost.elements(size, graph.axes[path]) for path in paths))


def _plain(x: Any) -> Any:
    if export.is_symbolic_dim(x):
        return x
    return int(x) if float(x).is_integer() else float(x)


def print_summary(
    graph: Graph,
    params: base.Params | None = None,
    masks: base.Masks | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Prints `summary` as a table with one line for each product and one for all.

    Paths stay whole: where the terminal is too narrow, columns are left out and named
    below the table. Numbers of 10,000 and more are rounded to three digits; `summary`
    has exact ones.

    Args:
      graph: the recorded function.
      params: as in `summary`.
      masks: as in `summary`.
      sizes: as in `summary`; with them, figures read "before → after".

    Raises:
      ImportError: if rich is not installed.
      PruningError: as in `summary`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> g = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> left = {"in[1]": 4}
      >>> jg.print_summary(g, sizes=left)  # doctest: +NORMALIZE_WHITESPACE, +ELLIPSIS
       multiplies by...parameters  multiply-adds...
       ───...
       in           ...24 → 12       120 → 60...
       out          ...16 → 8        80 → 40...
       0 others     ...0...
       ───...
       all          ...40 → 20      200 → 100...
    """
    found = summary(graph, params, masks, sizes)
    total, rows, rest = found["total"], found["operations"], found["rest"]
    others = [f"{len(rest['leaves'])} others"]
    lines = [_short(row["where"]) for row in rows]
    names = ["\n".join(row["leaves"]) or "activations" for row in rows]

    def costs(title: str, key: str, **more: Any) -> Column:
        last = _both(rest) if key == "parameters" else ""
        cells = [*(_both(row, key) for row in rows), last]
        return Column(title, cells, _both(total, key), **more)

    columns = [
        Column("multiplies by", names + others, "all", justify="left"),
        Column("line", [*lines, ""], dispensable=True, justify="left"),
        costs("parameters", "parameters"),
        costs("multiply-adds", "multiply_adds"),
        costs("bytes moved", "bytes_moved", dispensable=True),
    ]
    if total["sparsity"] is not None:
        each = [_percent(row) if row["leaves"] else "" for row in (*rows, rest)]
        columns.append(Column("sparsity", each, _percent(total)))
    print_table(columns, _NOTE, "print_summary")


def _percent(row: Mapping[str, Any]) -> str:
    return f"{row['sparsity']:.2%}"


def _both(row: Mapping[str, Any], key: str = "parameters") -> str:
    before, after = row["before"][key], row["after"][key]
    short = _text(before)
    return short if before == after else f"{short} → {_text(after)}"


def _text(x: Any) -> str:
    return str(x) if export.is_symbolic_dim(x) else rounded(x)


def _short(where: str) -> str:
    """Shortens a source location to the file's name, line and function."""
    path, _, function = where.partition(" ")
    name, *numbers = path.rsplit("/", 1)[-1].split(":")
    return f"{':'.join([name, *numbers[:1]])} {function}".strip()


def draw_widths(graph: Graph, sizes: Sizes, path_or_axes: Any) -> Any:
    """Draws the width of every group before and after pruning.

    Args:
      graph: the recorded function.
      sizes: sizes of groups, as from `sizes(graph, keep)`; missing ones are whole.
      path_or_axes: path of a PNG file to write, or matplotlib axes to draw on.

    Returns:
      The axes: one bar for each group, in the order of the params and coloured by
      kind, solid for the kept and pale for the removed entries.

    Raises:
      ImportError: if matplotlib is not installed.
      PruningError: if there is no such group, or no group at all.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> from matplotlib.figure import Figure
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> axes = jg.draw_widths(graph, {"in[1]": 4}, Figure().subplots())
      >>> full, kept = axes.containers
      >>> [int(bar.get_width()) for bar in (*full, *kept)]
      [8, 4]
    """
    check_known(graph.groups, sizes)
    if not graph.groups:
        raise base.PruningError("There is no group to draw.")
    size = (8, 1.1 + 0.22 * len(graph.groups))
    with canvas.axes_of(path_or_axes, size, "draw_widths") as axes:
        from matplotlib.patches import Patch

        _draw_bars(axes, list(graph.groups.values()), sizes)
        kinds = dict.fromkeys(g.kind for g in graph.groups.values())
        handles = [Patch(color=COLOURS[kind], label=kind) for kind in kinds]
        canvas.legend_above(axes, len(kinds), handles)
    return axes


def _draw_bars(axes: Any, groups: Sequence[Group], sizes: Sizes) -> None:
    """Draws and labels a bar for each group, the first on top."""
    colours = [COLOURS[g.kind] for g in groups]
    full = [g.size for g in groups]
    left = [float(sizes.get(g.name, g.size)) for g in groups]
    rows = range(len(groups))
    axes.barh(rows, full, color=colours, alpha=0.25, height=0.75)
    axes.barh(rows, left, color=colours, height=0.75)
    for row, before, after in zip(rows, full, left, strict=True):
        note = f"{before}" if after == before else f"{before} → {after:.4g}"
        axes.text(before, row, f" {note}", va="center", fontsize=8)
    axes.set_yticks(rows, [g.name for g in groups], fontsize=8)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max(full))
    axes.set_xlabel("width: entries of the group (pale: removed)")
    axes.spines[["top", "right"]].set_visible(False)
