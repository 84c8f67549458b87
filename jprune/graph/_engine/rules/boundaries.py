"""Rules of calls that stay as they are: all axes that meet them are frozen."""

from typing import Any

from jprune.graph._engine.jaxprs import alone
from jprune.graph._engine.program import Node, Outcome, Recorder, View, frozen


def boundary(node: Node, recorder: Recorder) -> Outcome:
    """A kernel or a callback, written for the sizes that it is called with."""
    what = f"{node.name} runs code outside of JAX for these sizes; trace(..., rules=) "
    what += "takes a rule if it follows others"
    recorder.freeze(node, [d for v in node.inputs for d in v.axes], what)
    return Outcome([frozen(shape, node) for shape in node.shapes])


def parallel(node: Node, recorder: Recorder) -> Outcome:
    """A `jax.pmap` of JAX before 0.8; later ones are a `jax.shard_map`."""
    what = "it meets jax.pmap, which this version of JAX compiles for these sizes; "
    what += "jax.shard_map and jax.vmap are followed"
    recorder.freeze(node, [d for v in node.inputs for d in v.axes], what)
    call = alone(node.equation)

    def run(view: View, *operands: Any) -> list[Any]:
        del view
        return list(call(*operands))

    return Outcome([frozen(shape, node) for shape in node.shapes], run=run)


RULES = {
    **dict.fromkeys(
        ("pallas_call", "ffi_call", "pure_callback", "io_callback"), boundary
    ),
    "xla_pmap": parallel,
}
