"""Summaries: what a mask tree keeps, and what that is worth in bytes."""

import math
from typing import Any

import jax
import numpy as np

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base

_NOTE = (
    "Bytes sparse: the kept values and one bit a weight, at rest. Masks are dense "
    "in compute: only smaller arrays run faster."
)


def summary(params: base.Params, masks: base.Masks) -> dict[str, Any]:
    """Returns what the masks keep of each leaf and of all, as plain numbers.

    Bytes are those of the values (`dense`), and of the kept values plus a bit
    mask of one bit for each weight (`sparse`), the smallest lossless form of an
    unstructured mask that needs no search to read. Whole channels (a mask of
    size one along an axis) need a bit for each channel only.

    Args:
      params: any pytree of arrays.
      masks: its masks, from `prune` or `masks_of`.

    Returns:
      `leaves`: path -> {shape, dtype, size, kept, sparsity, prunable, collapsed,
      bytes_dense, bytes_sparse}; `prunable` is False under a scalar mask, and
      `collapsed` is True where nothing of a leaf is left. `total`: the same
      sums, with `sparsity` of what is prunable and `sparsity_of_all`.

    Raises:
      PruningError: if the masks are not masks of these params.

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
    """Prints `summary` as a table, a line for each leaf and one for all.

    Args:
      params: any pytree of arrays.
      masks: its masks.

    Raises:
      ImportError: if rich is not installed.
      PruningError: if the masks are not masks of these params.
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
