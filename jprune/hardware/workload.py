"""Builds, joins and measures workloads: the operations of a network.

`jprune.hardware.networks` has well-known networks; `jprune.hardware.from_graph` makes a
workload from any JAX function.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jprune._core import base
from jprune.hardware import _ranges
from jprune.hardware._accelerator import as_float32
from jprune.hardware._workload import (
    DEFAULTS,
    Names,
    Workload,
    check,
    check_fields,
    check_names,
)
from jprune.hardware._workload import DENSE as DENSE
from jprune.hardware._workload import N_OF_M as N_OF_M
from jprune.hardware._workload import UNSTRUCTURED as UNSTRUCTURED


def product(m: Any, n: Any, k: Any, *, name: str = "", **fields: Any) -> Workload:
    """Returns the workload of one matrix product.

    Args:
      m: rows of the inputs, 0 for an operation without multiply-adds.
      n: columns of the weights.
      k: inner size, over which the products are summed.
      name: what tables and pictures call it.
      **fields: other fields of `Workload`; by default one dense product of 8 bits that
        reads A and W from DRAM and writes its result there.

    Returns:
      A `Workload` of one operation, float32; checked.

    Raises:
      PruningError: if a field is unknown or out of range; names it.

    Example:
      >>> float(multiply_adds(product(512, 768, 3072)))
      1207959552.0
    """
    given = {**DEFAULTS, "m": m, "n": n, "k": k, **fields}
    check_fields(given)
    rows = {k: as_float32(v)[None] for k, v in given.items()}
    return check(Workload(**rows, names=Names((name,) if name else ())))


def chain(operations: Sequence[Workload]) -> Workload:
    """Concatenates workloads, and their names.

    Args:
      operations: workloads of one or more operations each.

    Returns:
      A `Workload`; operations without a name have "" beside others that have one.

    Raises:
      PruningError: if there is none, or one has names, but not for each operation.

    Example:
      >>> two = chain([product(64, 64, 64, name="hidden"), product(64, 10, 64)])
      >>> two.n.tolist(), list(two.names)
      ([64.0, 10.0], ['hidden', ''])
    """
    if not operations:
        raise base.PruningError("A workload needs at least one operation; got none.")
    names: list[str] = []
    for each in operations:
        check_names(each)
        names += each.names or [""] * each.m.shape[0]
    plain = [each._replace(names=Names()) for each in operations]
    joined = jax.tree.map(lambda *rows: jnp.concatenate(rows), *plain)
    return joined._replace(names=Names(names if any(names) else ()))


def rename(workload: Workload, names: Sequence[str]) -> Workload:
    """Returns the workload with other names of its operations.

    Args:
      workload: the operations.
      names: one name for each operation, "" for one without; empty for no names.

    Returns:
      A `Workload` of the same arrays.

    Raises:
      PruningError: if there are names, but not one for each operation.

    Example:
      >>> rename(product(64, 64, 64), ["hidden"]).names
      ('hidden',)
    """
    named = workload._replace(names=Names(names))
    check_names(named)
    return named


def repeated(workload: Workload, times: float) -> Workload:
    """Returns the workload with each operation repeated.

    Args:
      workload: the operations.
      times: factor by which `repeats` is multiplied, not negative.

    Returns:
      A `Workload` of the same operations.

    Raises:
      PruningError: if the factor is negative; a traced one is a `checkify` debug check.

    Example:
      >>> repeated(product(64, 64, 64), 12).repeats.tolist()
      [12.0]
    """
    _ranges.check_numbers(_ranges.ANY, times=times)
    return workload._replace(repeats=workload.repeats * times)


def sizes(workload: Workload) -> list[Any]:
    """Returns batch, m, n and k after pruning, not rounded.

    Args:
      workload: the operations.

    Returns:
      Four arrays, `(operations,)`.

    Example:
      >>> import jax.numpy as jnp
      >>> half = product(64, 32, 16, keep=jnp.array([1.0, 1.0, 0.5, 1.0]))
      >>> [x.tolist() for x in sizes(half)]
      [[1.0], [64.0], [16.0], [16.0]]
    """
    whole = (workload.batch, workload.m, workload.n, workload.k)
    return [s * workload.keep[..., i] for i, s in enumerate(whole)]


def multiply_adds(workload: Workload) -> Any:
    """Returns the multiply-adds after pruning, zeros and refetches included.

    Args:
      workload: the operations.

    Returns:
      A scalar; a multiply-add is two operations of a throughput.

    Example:
      >>> two = chain([product(4, 8, 16), product(4, 2, 8)])
      >>> int(multiply_adds(two))  # 512 + 64
      576
    """
    return jnp.sum(multiply_adds_per_operation(workload), axis=-1)


def multiply_adds_per_operation(workload: Workload) -> Any:
    """Returns the multiply-adds of each operation, with its repeats.

    Args:
      workload: the operations.

    Returns:
      An array, `(operations,)`; `multiply_adds` is its sum.

    Example:
      >>> two = chain([product(4, 8, 16), product(4, 2, 8)])
      >>> multiply_adds_per_operation(repeated(two, 3)).tolist()
      [1536.0, 192.0]
    """
    b, m, n, k = sizes(workload)
    return b * m * n * k * (1 + workload.refetch) * workload.repeats


def dense_multiply_adds(workload: Workload) -> Any:
    """Returns the multiply-adds of the network before pruning.

    Throughputs of sparse machines are often given in these "dense-equivalent"
    operations, and may exceed the peak.

    Args:
      workload: the operations.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> half = product(4, 8, 16, keep=jnp.array([1.0, 1.0, 0.5, 1.0]))
      >>> int(dense_multiply_adds(half)), int(multiply_adds(half))
      (512, 256)
    """
    whole = workload.batch * workload.m * workload.n * workload.k
    return jnp.sum(whole * workload.repeats, axis=-1)
