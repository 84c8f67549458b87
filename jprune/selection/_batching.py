"""Batches of leaves: many small leaves cost as much as one.

Without batches, a tree of thousands of biases and norms would compile, and launch, a
reduction for each of them. A batch is one leaf, several leaves of one shape stacked
along a new first axis, or leaves of all shapes cut into rows. The kernels of a search
are written for one leaf, or one row, and mapped over the batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.selection import _rows

_SMALL = 2**14  # entries: larger leaves get reductions of their own
_SMALL_IN_ROWS = 2**18  # where leaves are not moved for it: it costs a copy of them
_MANY = 4  # leaves: fewer are not worth stacking


class Batch(NamedTuple):
    """Leaves that are searched together.

    Attributes:
      values: the leaf, the leaves stacked along a first axis, or rows that leaves were
        cut into, padded with the smallest score.
      leaves: (B,) int32, indices of the leaves in the tree.
      stacked: whether `values` has the additional first axis.
      spec: inside `jax.shard_map`, the `PartitionSpec` of the leaf.
      layout: if `values` are rows that leaves were cut into, which rows are whose.
    """

    values: Any
    leaves: np.ndarray
    stacked: bool
    spec: Any = None
    layout: _rows.Layout | None = None


def batch(
    leaves: Sequence[Any],
    specs: Sequence[Any],
    dtype: jnp.dtype,
    on_host: bool,
    in_rows: bool = False,
) -> list[Batch]:
    """Groups leaves into batches.

    Args:
      leaves: arrays.
      specs: `PartitionSpec` of each leaf inside `jax.shard_map`, or None.
      dtype: dtype in which scores are compared.
      on_host: whether values are known, so that the host can cut leaves into rows;
        leaves on several devices are then batches of their own.
      in_rows: inside a trace, whether to cut leaves into rows, which would gather
        leaves that are sharded.

    Returns:
      Batches that together hold every leaf once.
    """
    classes: dict[Any, list[int]] = {}
    for i, (x, spec) in enumerate(zip(leaves, specs, strict=True)):
        classes.setdefault(_class(i, x, spec, on_host, in_rows), []).append(i)
    batches = []
    for kind, members in classes.items():
        if len(members) < _MANY:
            batches += [
                Batch(leaves[i], np.array([i], np.int32), False, specs[i])
                for i in members
            ]
            continue
        parts, indices = [leaves[i] for i in members], np.array(members, np.int32)
        if on_host or kind == _ROWS:
            values, layout = _in_rows(parts, dtype, on_host)
            batches.append(Batch(values, indices, True, None, layout))
        else:
            batches.append(Batch(jnp.stack(parts), indices, True))
    return batches


def unbatch(
    batches: Sequence[Batch], masks: Sequence[Any], like: Sequence[Any]
) -> list[Any]:
    """Splits the masks of batches into one mask per leaf, in the order of the tree.

    Args:
      batches: batches from `batch`.
      masks: masks of the values of each batch.
      like: the leaves.

    Returns:
      A list of masks, on the devices of their leaves.
    """
    result: list[Any] = [None] * len(like)
    for b, found in zip(batches, masks, strict=True):
        if not b.stacked:
            result[b.leaves[0]] = found
            continue
        parts = [like[i] for i in b.leaves]
        if b.layout is None:
            rows = [_rows.slice_at(found, i, 1)[0] for i in range(len(parts))]
        elif isinstance(found, jax.core.Tracer):
            rows = _rows.join(found, b.layout, parts)
        else:
            rows = _put(_rows.join(np.asarray(found), b.layout, parts), parts[0])
        for i, row in zip(b.leaves, rows, strict=True):
            result[i] = row
    return result


_ROWS = "rows"  # the class of traced leaves of all shapes


def _class(i: int, x: Any, spec: Any, on_host: bool, in_rows: bool) -> Any:
    """Leaves of equal class are a batch; a leaf that is not is its own class."""
    size = np.size(x)
    if spec is not None or size > _SMALL_IN_ROWS:
        return i
    if not on_host:
        sharding = jax.typeof(x).sharding  # on a mesh of explicit axes
        if in_rows and not any(sharding.spec):
            return _ROWS
        return i if size > _SMALL else (np.shape(x), jnp.result_type(x), sharding)
    if not isinstance(x, jax.Array):
        return "host"
    devices = x.sharding.device_set
    # From other devices than CPUs, only small leaves are moved.
    moved = size > _SMALL and any(d.platform != "cpu" for d in devices)
    return i if len(devices) > 1 or moved else ("host", x.committed and x.sharding)


def _in_rows(
    leaves: list[Any], dtype: jnp.dtype, on_host: bool
) -> tuple[jax.Array, _rows.Layout]:
    """Leaves cut into rows, padded with the smallest score.

    Searches never count the padding: pivots are above the smallest key, and ranks are
    those of entries. The smallest score is that of the dtype in which scores are
    compared: a leaf's own dtype may have no infinity, and its smallest integer may be
    larger than scores of other leaves.
    """
    least = -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    layout, length = _rows.layout_of(leaves)
    if not on_host:
        return _rows.cut(leaves, layout, length, dtype, least), layout
    known = [np.asarray(x) for x in jax.device_get(leaves)]
    rows, layout = _rows.cut_on_host(known, layout, length, dtype, least)
    return _put([rows], leaves[0])[0], layout


def _put(arrays: list[np.ndarray], like: Any) -> list[jax.Array]:
    """Puts NumPy arrays on the device of a leaf, committed if the leaf is."""
    committed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(arrays, like.sharding if committed else None)
