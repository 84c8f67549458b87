"""Rules of calls of code that is not JAX: all axes that meet them stay."""

from jprune.graph._engine.program import Node, Outcome, Recorder, frozen


def boundary(node: Node, recorder: Recorder) -> Outcome:
    """A kernel or a callback, written for the sizes that it is called with."""
    what = f"{node.name} runs code outside of JAX for these sizes; trace(..., rules=) "
    what += "takes a rule if it follows others"
    recorder.freeze(node, [d for v in node.inputs for d in v.axes], what)
    return Outcome([frozen(shape, node) for shape in node.shapes])


RULES = dict.fromkeys(
    ("pallas_call", "ffi_call", "pure_callback", "io_callback"), boundary
)
