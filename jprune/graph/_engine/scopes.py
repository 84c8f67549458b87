"""Named axes: the mapped axes and mesh axes in whose scope equations are recorded."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines
from jprune.graph._engine.dims import Dim


class Scope(NamedTuple):
    """The named axes that collectives may refer to.

    Attributes:
      sizes: name -> number of positions along it.
      enter: `make -> make()`, evaluated where the names are known to JAX.
    """

    sizes: Mapping[str, int]
    enter: Callable[[Callable[[], Any]], Any]


NOWHERE = Scope({}, lambda make: make())


def of_names(sizes: Mapping[str, int]) -> Scope:
    """Returns the scope of named axes that the caller of a function binds."""

    def enter(make: Callable[[], Any]) -> Any:
        found: list[Any] = []
        jax.make_jaxpr(lambda: found.append(make()), axis_env=list(sizes.items()))()
        return found[0]

    return Scope(sizes, enter) if sizes else NOWHERE


def of_mesh(outer: Scope, sizes: Mapping[str, int], options: Any) -> Scope:
    """Returns the scope of the body of a `jax.shard_map`.

    Args:
      outer: the scope around it.
      sizes: sizes of the mesh axes that the body may name.
      options: keyword arguments of `jax.shard_map` besides its specs.
    """

    def enter(make: Callable[[], Any]) -> Any:
        found: list[Any] = []

        def body() -> tuple[()]:
            found.append(make())
            return ()

        mapped = jax.shard_map(body, in_specs=(), out_specs=(), **options)
        outer.enter(lambda: jax.eval_shape(mapped))
        return found[0]

    return Scope({**outer.sizes, **sizes}, enter)


def names_of(entry: Any) -> tuple[Any, ...]:
    """Returns axis names, given as one name, as several, or as None."""
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, tuple | list | frozenset) else (entry,)


def count(sizes: Mapping[str, int], names: Sequence[Any]) -> int:
    """Returns the number of positions along several named axes."""
    return math.prod(sizes.get(name, 1) for name in names)


def positions(n: int, names: Sequence[Any]) -> Dim:
    """Returns the dim that counts positions along named axes, which all stay."""
    quoted = ", ".join(map(repr, names))
    return dims_lib.leaf(n, lines.at(f"it counts positions along the axis {quoted}"))


def dealt(d: Dim, n: int, names: Sequence[Any]) -> Dim:
    """Returns the dim of one of the n equal blocks that a dim is dealt out in.

    Entry i of all blocks is one entry: the blocks stay equal when it is removed.

    Args:
      d: the whole dim.
      n: number of blocks, which divides its size.
      names: named axes along which they are dealt out.
    """
    if n == 1:
        return d
    outer, inner = dims_lib.factor(d, [n, d.size // n])
    dims_lib.unify(outer, positions(n, names))
    return inner


def joined(d: Dim, n: int, names: Sequence[Any]) -> Dim:
    """Returns the dim that n equal blocks from positions along named axes make."""
    return d if n == 1 else dims_lib.product([positions(n, names), d])


def varies(aval: Any) -> bool:
    """Returns whether a type says that the array differs along a mesh axis."""
    if hasattr(aval, "mat"):  # since JAX 0.10
        return bool(aval.mat.varying)
    return bool(getattr(aval, "vma", ()))
