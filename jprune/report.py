"""Summaries of pruned params: sparsity and bytes, per leaf and in total.

    summary          plain data: a dict for each leaf and one for all
    print_summary    the same as a table

Bytes are those of storage: of a pruned leaf, the kept values and its mask as bits.
"""

import math
from typing import Any

import jax
import numpy as np

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base

_NOTE = (
    "Bytes sparse: the kept values and one bit per weight, in storage. Masked products "
    "run as dense ones: only smaller arrays run faster."
)


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
      A dict of two entries. `leaves`: path -> {shape, dtype, size, kept, sparsity,
      prunable, collapsed, bytes_dense, bytes_sparse}, where `prunable` is False for a
      scalar mask, and `collapsed` is True if no weight of a leaf is kept. `total`: the
      sums, the number of collapsed leaves, `sparsity` of the prunable weights and
      `sparsity_of_all` weights.

    Raises:
      PruningError: if the masks do not fit the params.

    Example:
      >>> import jax.numpy as jnp, jprune as jp
      >>> params, masks = jp.prune({"kernel": jnp.eye(4)}, jp.recipes.magnitude(0.75))
      >>> summary(params, masks)["total"]["bytes_sparse"]  # 4 values and 16 bits
      18
    """
    counts = jax.device_get(jax.tree.leaves(masks_lib.kept(params, masks)))
    leaves = {
        path: _leaf(w, m, int(count))
        for path, w, m, count in zip(
            tree.leaf_paths(params),
            jax.tree.leaves(params),
            jax.tree.leaves(masks),
            counts,
            strict=True,
        )
    }
    return {"leaves": leaves, "total": _total(list(leaves.values()))}


def _leaf(w: Any, m: Any, kept: int) -> dict[str, Any]:
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
        "collapsed": size > 0 and kept == 0,
        "bytes_dense": size * width,
        "bytes_sparse": kept * width + (-(-bits // 8) if prunable else 0),
    }


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {
        name: sum(row[name] for row in rows)
        for name in ("size", "kept", "bytes_dense", "bytes_sparse")
    }
    prunable = [row for row in rows if row["prunable"]]
    size = sum(row["size"] for row in prunable)
    kept = sum(row["kept"] for row in prunable)
    return sums | {
        "sparsity": 1 - kept / size if size else 0.0,
        "sparsity_of_all": 1 - sums["kept"] / sums["size"] if sums["size"] else 0.0,
        "collapsed": sum(row["collapsed"] for row in rows),
    }


def print_summary(params: base.Params, masks: base.Masks) -> None:
    """Prints `summary` as a table, with one row per leaf and the totals.

    Args:
      params: any pytree of arrays.
      masks: masks of the params, from `prune` or `masks_of`.

    Raises:
      ImportError: if rich is not installed.
      PruningError: if the masks do not fit the params.
    """
    try:
        from rich import console, table, text
    except ImportError as error:
        raise ImportError(
            "print_summary needs rich: pip install 'jprune[report]'."
        ) from error
    found = summary(params, masks)
    out = table.Table(caption=_NOTE, show_footer=True)
    total = found["total"]
    out.add_column("leaf", "all leaves", overflow="fold", min_width=20)
    for name, footer in (
        ("shape", ""),
        ("kept", f"{total['kept']:,} of {total['size']:,}"),
        ("sparsity", f"{total['sparsity']:.2%}"),
        ("bytes dense", f"{total['bytes_dense']:,}"),
        ("bytes sparse", f"{total['bytes_sparse']:,}"),
    ):
        out.add_column(name, footer, justify="right")
    for path, row in found["leaves"].items():
        out.add_row(
            text.Text(path),  # a path may look like markup
            "x".join(map(str, row["shape"])),
            f"{row['kept']:,} of {row['size']:,}",
            f"{row['sparsity']:.2%}" + (" collapsed" if row["collapsed"] else "")
            if row["prunable"]
            else "not pruned",
            f"{row['bytes_dense']:,}",
            f"{row['bytes_sparse']:,}",
        )
    console.Console().print(out)
