"""Rules of what says where arrays are: `shard_map`, shardings and their constraints."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from jprune.graph._engine import meshes, scopes
from jprune.graph._engine.program import Axes, Node, Outcome, Recorder, Value, View
from jprune.graph._engine.running import run


def shard_map(node: Node, recorder: Recorder) -> Outcome:
    """A program that each device runs on its blocks of the arrays."""
    params, sizes = node.params, _sizes(node)
    options = {
        "mesh": params["mesh"],
        "axis_names": set(sizes),
        "check_vma": params["check_vma"],
    }
    given = []
    for value, spec in zip(node.inputs, params["in_specs"], strict=True):
        new = Value(_blocks(value.axes, spec, sizes), value.dtype)
        new.active, new.scalar = value.active, value.scalar
        given.append(new)
    outer = recorder.scope
    recorder.scope = scopes.of_mesh(outer, sizes, options)
    body = recorder.instantiate(params["jaxpr"], (), given)
    recorder.scope = outer
    node.inner = [body]
    specs = {name: tuple(params[name]) for name in ("in_specs", "out_specs")}
    axes = [
        _whole(value.axes, spec, sizes)
        for value, spec in zip(body.outputs, params["out_specs"], strict=True)
    ]

    def go(view: View, *operands: Any) -> list[Any]:
        def mapped(*xs: Any) -> tuple[Any, ...]:
            return tuple(run(body, view, *xs))

        return list(jax.shard_map(mapped, **specs, **options)(*operands))

    return Outcome(axes, run=go)


def _sizes(node: Node) -> dict[str, int]:
    """Returns the sizes of the mesh axes that a `shard_map` maps over."""
    params = node.params
    names = params.get("newly_manual_axes", params.get("manual_axes"))
    return {k: v for k, v in params["mesh"].shape.items() if k in names}


def devices_of(node: Node) -> int:
    """Returns the number of blocks that a `shard_map` runs its body on."""
    return math.prod(_sizes(node).values())


def _shards(spec: Any, axis: int, sizes: Mapping[str, int]) -> tuple[int, Any]:
    names = scopes.names_of(spec[axis]) if axis < len(spec) else ()
    return scopes.count(sizes, names), names


def _blocks(axes: Axes, spec: Any, sizes: Mapping[str, int]) -> Axes:
    """Returns the dims of one device's block of an array."""
    return tuple(scopes.dealt(d, *_shards(spec, i, sizes)) for i, d in enumerate(axes))


def _whole(axes: Axes, spec: Any, sizes: Mapping[str, int]) -> Axes:
    """Returns the dims of the array that the devices' blocks make."""
    return tuple(scopes.joined(d, *_shards(spec, i, sizes)) for i, d in enumerate(axes))


def reshard(node: Node, recorder: Recorder) -> Outcome:
    """Shards an array anew; an axis that is no longer divisible is whole."""
    del recorder
    axes, wanted = node.inputs[0].axes, node.params["dst_sharding"]

    def params(view: View) -> dict[str, Any]:
        shape = tuple(view.size(d) for d in axes)
        return {"dst_sharding": meshes.fitted(wanted, shape)}

    return Outcome([axes], params=params)


RULES = {"shard_map": shard_map, "reshard": reshard, "mesh_cast": reshard}
