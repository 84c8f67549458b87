"""Which sizes of an architecture `jax.export` leaves open, dense and shrunk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import export

from experiments.models.zoo.base import Architecture

# The results of an export.
YES, NO, DENSE_NO = "yes", "no", "dense no"


class Exports(NamedTuple):
    """What `jax.export` makes of a shrunk function.

    Attributes:
      found: names of symbolic dimensions, such as "b, t" ("" for none) -> `YES`; `NO`
        if only the dense function exports; `DENSE_NO` if that does not either.
      messages: the names -> the error message, where it is not `YES`.
      results: leaves of the results of the exported function, restored from its bytes,
        with as many symbolic dimensions as could be; None if nothing was exported.
    """

    found: dict[str, str]
    messages: dict[str, str]
    results: list[jax.Array] | None


def try_exports(a: Architecture, small_fn: Any, small_params: Any) -> Exports:
    """Exports an architecture and its shrunk function with static and symbolic sizes.

    Args:
      a: the architecture.
      small_fn: its shrunk function.
      small_params: the small params.
    """
    found, messages, last = {}, {}, None
    for names, dimensions in choices(a):
        inputs = abstract(a.inputs, dimensions)
        try:
            data = exported(small_fn, small_params, inputs)
            found[names], last = YES, data
        # JAX's errors about symbolic dimensions have no common class.
        except Exception as error:
            messages[names] = f"{type(error).__name__}: {error}".splitlines()[0]
            found[names] = NO if _exports(a.fn, a.params, inputs) else DENSE_NO
    if last is None:
        return Exports(found, messages, None)
    restored = export.deserialize(bytearray(last))
    results = jax.jit(restored.call)(jax.tree.leaves(small_params), *a.inputs)
    return Exports(found, messages, list(results))


def choices(a: Architecture) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the static sizes, then a symbolic batch, then a symbolic length as well.

    Each choice has the names of its symbolic dimensions, and the axes of each input.
    """
    most = a.dimensions or ("b, ...",) * len(a.inputs)
    every = [name for axes in most for name in axes.split(", ")]
    named = list(dict.fromkeys(n for n in every if n not in ("_", "...")))
    found = [("", ("...",) * len(most))]
    for names in ([n for n in named if n != "t"], named):
        axes = tuple(", ".join(_kept(n, names) for n in s.split(", ")) for s in most)
        if names and (", ".join(names), axes) not in found:
            found.append((", ".join(names), axes))
    return found


def _kept(name: str, names: list[str]) -> str:
    return name if name in (*names, "...") else "_"


def abstract(inputs: tuple[Any, ...], dimensions: tuple[str, ...]) -> Any:
    """Returns the inputs' `jax.ShapeDtypeStruct`s with these dimensions."""
    axes = tuple(
        jax.tree.map(lambda _, s=each: s, x)
        for x, each in zip(inputs, dimensions, strict=True)
    )
    return export.symbolic_args_specs(inputs, axes, scope=export.SymbolicScope())


def exported(fn: Callable[..., Any], params: Any, inputs: Any) -> bytes:
    """Returns a serialized function of the leaves of params and the inputs.

    Leaves, because not all containers of params can be serialized.
    """
    leaves, structure = jax.tree.flatten(params)

    def flat(leaves: list[jax.Array], *inputs: Any) -> list[jax.Array]:
        return jax.tree.leaves(fn(jax.tree.unflatten(structure, leaves), *inputs))

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    return bytes(export.export(jax.jit(flat))(shapes, *inputs).serialize())


def _exports(fn: Callable[..., Any], params: Any, inputs: Any) -> bool:
    try:
        exported(fn, params, inputs)
    except Exception:
        return False
    return True
