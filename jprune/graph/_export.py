"""A function on plain trees, exported by JAX: what a process without its code runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from jprune import tree
from jprune._core import base
from jprune.graph._plain import from_plain, to_plain
from jprune.graph._state import check, watched
from jprune.graph._trace import is_weak

PLATFORMS = ("cpu", "cuda", "tpu")


class Serialized(NamedTuple):
    """An exported function as bytes.

    Attributes:
      data: what `jax.export.deserialize` reads.
      about: its inputs, platforms, order of derivatives and state, and what was left
        out and why; plain JSON.
    """

    data: bytes
    about: dict[str, Any]


def serialize(
    fn: Callable[..., Any],
    params: base.Params,
    inputs: tuple[Any, ...],
    platforms: Sequence[str] | None,
    vjp_order: int | None,
) -> Serialized:
    """Exports and serializes a function of plain trees.

    Args:
      fn: `(params, *inputs) -> results`.
      params: its params; their shapes count.
      inputs: its inputs, or `jax.ShapeDtypeStruct`s, also with symbolic shapes.
      platforms: names of platforms; None for those of cpu, cuda, tpu and the present
        one for which it can be lowered.
      vjp_order: how many times it can be differentiated; None for once, if at all.

    Returns:
      A `Serialized`. The function in it takes plain params and inputs and returns plain
      results; with the new params beside them, if `fn` changes its params in place.

    Raises:
      PruningError: if it cannot be lowered or differentiated, or if it changes an input
        in place.
    """
    args = jax.tree.map(_struct, (params, *inputs))
    plain_fn, types = _on_plain_trees(fn, args)
    structs = tuple(map(to_plain, args))
    jax.jit(plain_fn).trace(*structs)  # errors of the function itself
    state = check((params, *inputs), list(types), list(types.values()))
    exported, without_platforms = _lowered(plain_fn, structs, platforms)
    data, order, without_vjp = _with_vjp(exported, vjp_order)
    paths = tree.leaf_paths(params)
    about = {
        "inputs": [_described(x) for x in structs[1:]],
        "platforms": list(exported.platforms),
        "vjp_order": order,
        "state": [paths[i] for i in state],
        "left_out": without_platforms | without_vjp,
    }
    return Serialized(data, about)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    """The type of an array, for one device: without its sharding."""
    dtype = jax.dtypes.result_type(x)
    return jax.ShapeDtypeStruct(np.shape(x), dtype, weak_type=is_weak(x))


def _on_plain_trees(
    fn: Callable[..., Any], like: tuple[Any, ...]
) -> tuple[Callable[..., Any], dict[int, jax.ShapeDtypeStruct]]:
    """The function of plain trees; and the params that it changes: number -> type."""
    with_state, state = watched(fn)
    types: dict[int, jax.ShapeDtypeStruct] = {}
    count = len(jax.tree.leaves(like[0]))

    def plain_fn(*plain: Any) -> Any:
        args = [from_plain(x, y) for x, y in zip(plain, like, strict=True)]
        # Before the call: what it does to a dict that it is given is its own matter.
        leaves, structure = jax.tree.flatten(args[0])
        results, new = with_state(*args)
        if any(i >= count for i in state):
            paths = tree.leaf_paths(like[1:])
            changed = [paths[i - count] for i in state if i >= count]
            raise base.PruningError(
                f"The function changes its inputs {changed} in place, which would be "
                "lost: make them part of the params, such as a tuple, or return them."
            )
        results = to_plain(results)
        if not state:
            return results
        for i, value in zip(state, new, strict=True):
            leaves[i] = value
            types[i] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return results, to_plain(structure.unflatten(leaves))

    return plain_fn, types


def _lowered(
    fn: Callable[..., Any], structs: tuple[Any, ...], platforms: Sequence[str] | None
) -> tuple[export.Exported, dict[str, str]]:
    """Exports for all platforms; for those that can be, if none are named."""

    def lower(names: Sequence[str]) -> export.Exported:
        return export.export(jax.jit(fn), platforms=tuple(names))(*structs)

    if isinstance(platforms, str) or (platforms is not None and not platforms):
        raise base.PruningError(
            f"platforms is a list of names, such as ['cpu']; got {platforms!r}."
        )
    here = export.default_export_platform()  # ROCm is in no default
    names, why = list(platforms or dict.fromkeys((*PLATFORMS, here))), {}
    try:
        return lower(names), why
    except Exception as error:
        failed = error
    if platforms is None:
        for name in names:
            try:
                lower([name])
            except Exception as error:
                why[name] = _said(error)
        if possible := [name for name in names if name not in why]:
            names = possible
            try:
                return lower(names), why
            except Exception as error:
                failed = error
    raise base.PruningError(
        f"The function cannot be exported for {', '.join(names)}: {_said(failed)} "
        "platforms=[...] names those that it has to run on."
    ) from failed


def _with_vjp(
    exported: export.Exported, order: int | None
) -> tuple[bytes, int, dict[str, str]]:
    """Serializes with derivatives; without, if there are none and none are asked."""
    try:
        wanted = 1 if order is None else order
        return bytes(exported.serialize(vjp_order=wanted)), wanted, {}
    except Exception as error:
        if order is None:
            data = bytes(exported.serialize(vjp_order=0))
            return data, 0, {"gradient": _said(error)}
        raise base.PruningError(
            f"The function cannot be serialized with vjp_order={order}: "
            f"{_said(error)} vjp_order=0 saves it without gradients."
        ) from error


def _described(struct: Any) -> Any:
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", struct)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('. ')}."
