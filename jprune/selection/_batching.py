"""Batches of leaves: many small leaves of one shape cost as much as one.

Without batches, a tree of thousands of biases and norms would compile, and launch, a
reduction for each of them. A batch is one leaf, or several leaves stacked along a new
first axis. The kernels of a search are written for one leaf and mapped over the batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.selection import _rows

_SMALL = 2**14  # entries: larger leaves get reductions of their own
_SMALL_ON_CPU = 2**17  # where the host can read and stack leaves in place
_SMALL_IN_ROWS = 2**18  # of larger leaves, a copy would cost too much memory
_MANY = 4  # leaves of one shape: fewer are not worth stacking


class Batch(NamedTuple):
    """Leaves that are searched together.

    Attributes:
      values: the leaf, or the leaves stacked along a first axis; leaves of different
        shapes are flattened, and padded with the smallest score.
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
      on_host: whether values are known, so that the host can stack leaves of different
        shapes; leaves on several devices are then not stacked.
      in_rows: inside a trace, whether to cut leaves of all shapes into rows, which
        would gather leaves that are sharded.

    Returns:
      Batches that together hold every leaf once.
    """
    classes: dict[Any, list[int]] = {}
    for i, (x, spec) in enumerate(zip(leaves, specs, strict=True)):
        classes.setdefault(_class(i, x, spec, on_host, in_rows), []).append(i)
    batches = []
    for name, members in classes.items():
        if len(members) < _MANY:
            batches += [
                Batch(leaves[i], np.array([i], np.int32), False, specs[i])
                for i in members
            ]
            continue
        parts = [leaves[i] for i in members]
        indices = np.array(members, np.int32)
        if name == _IN_ROWS:
            values, layout = _rows.cut(parts, dtype, _least_score(dtype))
            batches.append(Batch(values, indices, True, None, layout))
            continue
        values = _stack_on_host(parts, dtype) if on_host else jnp.stack(parts)
        batches.append(Batch(values, indices, True))
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
        if b.layout is not None:
            rows = _rows.join(found, b.layout, parts)
        elif isinstance(found, jax.core.Tracer):
            rows = [_rows.slice_at(found, i, 1)[0] for i in range(len(parts))]
        else:
            rows = [
                row[: np.size(x)].reshape(np.shape(x))
                for row, x in zip(np.asarray(found), parts, strict=True)
            ]
            rows = _put(rows, parts[0])
        for i, row in zip(b.leaves, rows, strict=True):
            result[i] = row
    return result


_IN_ROWS = "rows"


def _class(i: int, x: Any, spec: Any, on_host: bool, in_rows: bool) -> Any:
    """Leaves of equal class are stacked; a leaf that is not is its own class."""
    size = np.size(x)
    if in_rows and spec is None and size <= _SMALL_IN_ROWS:
        return _IN_ROWS
    if spec is not None or size > (_SMALL_ON_CPU if on_host else _SMALL):
        return i
    if not on_host:
        return np.shape(x), jnp.result_type(x)
    device: Any = None
    if isinstance(x, jax.Array):
        devices = x.sharding.device_set
        if len(devices) > 1:
            return i
        # Elsewhere a large leaf stays on its device.
        if size > _SMALL and any(d.platform != "cpu" for d in devices):
            return i
        device = x.committed and x.sharding
    return _row_length(size), jnp.result_type(x), device


def _row_length(size: int) -> int:
    """A power of two, so that few kernels serve all sizes."""
    return 1 << max(0, size - 1).bit_length()


def _stack_on_host(leaves: list[Any], dtype: jnp.dtype) -> jax.Array:
    """Flat leaves as the rows of one array, padded with the smallest score.

    Searches never count the padding: pivots are above the smallest key, and ranks are
    those of entries. The smallest score is that of the dtype in which scores are
    compared: a leaf's own dtype may have no infinity, and its smallest integer may be
    larger than scores of other leaves.
    """
    host = [np.asarray(x) for x in jax.device_get(leaves)]
    most = max(x.size for x in host)
    # Large leaves, which are few, are not padded further than to the largest of them.
    length = most if most > _SMALL else _row_length(most)
    rows = np.full((len(host), length), _least_score(dtype), dtype)
    for row, x in zip(rows, host, strict=True):
        row[: x.size] = x.ravel()
    return _put([rows], leaves[0])[0]


def _least_score(dtype: jnp.dtype) -> Any:
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _put(arrays: list[np.ndarray], like: Any) -> list[jax.Array]:
    """Puts NumPy arrays on the device of a leaf, committed if the leaf is."""
    committed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(arrays, like.sharding if committed else None)
