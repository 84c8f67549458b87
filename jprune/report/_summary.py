"""Sparsity and bytes of pruned params, per leaf and in total: as data, as a table."""

import math
from typing import Any

import jax
import numpy as np

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune._core.quantities import quantity, rounded
from jprune._core.tables import Column, print_table

_NOTE = (
    "Bytes sparse: the kept values and one bit per weight, in storage. Masked products "
    "run as dense ones: only smaller arrays run faster."
)
_NAMED = "left out by its name"
_SUMS = ("size", "kept", "bytes_dense", "bytes_sparse")


def summary(params: base.Params, masks: base.Masks) -> dict[str, Any]:
    """Returns sparsity and bytes, per leaf and in total, as Python numbers.

    `bytes_dense` counts all values. `bytes_sparse` counts the kept values and one bit
    per weight, the smallest lossless form of an unstructured mask that can be read
    without a search. Whole channels (a mask of size one along an axis) need one bit per
    channel.

    Args:
      params: any pytree of arrays.
      masks: masks of the params, from `prune` or `masks_of`.

    Returns:
      A dict of three entries. `leaves`: path -> {shape, dtype, size, kept, sparsity,
      prunable, why_not, collapsed, bytes_dense, bytes_sparse}, where `prunable` is
      False for a scalar mask, `why_not` is then the reason, and `collapsed` is True if
      no weight of a leaf is kept. `left_out`: paths of the floating-point leaves of two
      axes or more that are never pruned because of their names, such as embeddings:
      `jprune.is_kernel` is False for them. `total`: the sums, the number of collapsed
      leaves, `sparsity` of the prunable weights and `sparsity_of_all` weights.

    Raises:
      PruningError: if the masks do not fit the params, or inside `jit`, where `metrics`
        is what to call.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params, masks = jp.prune({"kernel": jnp.eye(4)}, jp.recipes.magnitude(0.75))
      >>> summary(params, masks)["total"]["bytes_sparse"]  # 4 values and 16 bits
      18
    """
    counts = jax.tree.leaves(masks_lib.kept(params, masks))
    if any(isinstance(count, jax.core.Tracer) for count in counts):
        raise base.PruningError(
            "summary returns Python numbers, which are not known inside jit, vmap or "
            "scan. Use jp.metrics(opt_state, params) or jp.report.mask_metrics(params, "
            "masks) there."
        )
    counts = jax.device_get(counts)
    leaves = {
        path: _leaf(path, w, m, int(count))
        for path, w, m, count in zip(
            tree.leaf_paths(params),
            jax.tree.leaves(params),
            jax.tree.leaves(masks),
            counts,
            strict=True,
        )
    }
    left_out = [path for path, row in leaves.items() if row["why_not"] == _NAMED]
    rows = list(leaves.values())
    return {"leaves": leaves, "left_out": left_out, "total": _total(rows)}


def _leaf(path: str, w: Any, m: Any, kept: int) -> dict[str, Any]:
    size, bits = math.prod(np.shape(w)), math.prod(np.shape(m))
    width = w.dtype.itemsize
    prunable = np.shape(m) != ()
    return {
        "shape": list(np.shape(w)),
        "dtype": str(w.dtype),
        "size": size,
        "kept": kept,
        "sparsity": 1 - kept / size if size else 0.0,
        "prunable": prunable,
        "why_not": None if prunable else _why_not(path, w),
        "collapsed": size > 0 and kept == 0,
        "bytes_dense": size * width,
        "bytes_sparse": kept * width + (-(-bits // 8) if prunable else 0),
    }


def _why_not(path: str, w: Any) -> str:
    """Returns why a leaf has a scalar mask: by convention, or by choice."""
    if not tree.is_float(path, w):
        return "not floating point"
    if np.ndim(w) < 2:
        return "fewer than two axes"
    if not np.size(w):
        return "empty"
    return "not selected" if tree.is_kernel(path, w) else _NAMED


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {name: sum(row[name] for row in rows) for name in _SUMS}
    prunable = [row for row in rows if row["prunable"]]
    size = sum(row["size"] for row in prunable)
    kept = sum(row["kept"] for row in prunable)
    return sums | {
        "sparsity": 1 - kept / size if size else 0.0,
        "sparsity_of_all": 1 - sums["kept"] / sums["size"] if sums["size"] else 0.0,
        "collapsed": sum(row["collapsed"] for row in rows),
    }


def print_summary(params: base.Params, masks: base.Masks) -> None:
    """Prints `summary` as a table: a row per prunable leaf, one for the others.

    The sparsity in a row is that of the weights in it: of the prunable leaves together,
    and in the last line of all leaves.

    Paths stay whole: where the terminal is too narrow, columns are left out and named
    below the table. Numbers of 10,000 and more are rounded to three digits; `summary`
    has exact ones.

    Args:
      params: any pytree of arrays.
      masks: masks of the params, from `prune` or `masks_of`.

    Raises:
      ImportError: if rich is not installed.
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"in": jnp.ones((4, 8)), "out": jnp.ones((8, 2)), "b": jnp.ones(2)}
      >>> masks = {name: jnp.ones(w.shape, bool) for name, w in params.items()}
      >>> masks |= {"in": jnp.arange(32).reshape(4, 8) < 8, "b": jnp.array(True)}
      >>> print_summary(params, masks)  # doctest: +NORMALIZE_WHITESPACE, +ELLIPSIS
       leaf                 sparsity  kept  of  ...
       ───...
       in                     75.00%     8  32  ...
       out                     0.00%    16  16  ...
       all prunable           50.00%    24  48  ...
       1 never pruned, 8 B               2   2  ...
       ───...
       all leaves             48.00%    26  50  ...
    """
    found = summary(params, masks)
    total, leaves = found["total"], found["leaves"]
    pruned = {path: row for path, row in leaves.items() if row["prunable"]}
    others = [row for row in leaves.values() if not row["prunable"]]
    rest = {key: sum(row[key] for row in others) for key in _SUMS}
    size = quantity(rest["bytes_dense"], "B")
    some = {key: total[key] - rest[key] for key in _SUMS}
    some["sparsity"] = total["sparsity"]
    rows: list[Any] = [*pruned.values()]
    names = [*pruned]
    if others:
        rows += [some, rest]
        names += ["all prunable", f"{len(others)} never pruned, {size}"]

    def column(title: str, key: str, **more: Any) -> Column:
        return Column(
            title, [rounded(r[key]) for r in rows], rounded(total[key]), **more
        )

    of_all = total["sparsity_of_all"]
    shapes = ["x".join(map(str, row.get("shape", []))) for row in rows]
    columns = [
        Column("leaf", names, "all leaves", justify="left"),
        Column("sparsity", [_percent(row) for row in rows], f"{of_all:.2%}"),
        column("kept", "kept"),
        column("of", "size"),
        column("bytes sparse", "bytes_sparse", dispensable=True),
        Column("shape", shapes, dispensable=True),
        column("bytes dense", "bytes_dense", dispensable=True),
    ]
    print_table(columns, _caption(found["left_out"]), "print_summary")


def _percent(row: dict[str, Any]) -> str:
    gone = " collapsed" if row.get("collapsed") is True else ""
    return f"{row['sparsity']:.2%}{gone}" if "sparsity" in row else ""


def _caption(left_out: list[str]) -> str:
    if not left_out:
        return _NOTE
    most = 6
    more = f" and {len(left_out) - most} more" if len(left_out) > most else ""
    return f"{_NOTE} Never pruned for their names: {', '.join(left_out[:most])}{more}."
