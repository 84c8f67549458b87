"""Rules of loops and branches: a carried value has the same dims in all iterations."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.program import Node, Outcome, Program, Recorder, Value, View
from jprune.graph._engine.running import run
from jprune.graph._engine.sizes import is_symbolic


def inside(values: Sequence[Value], active: bool, skip: int = 0) -> list[Value]:
    """Returns values for the inputs of a body, with the dims of the outer values.

    Args:
      values: outer values.
      active: whether all of them depend on the function's inputs, as carried values
        do if one of them does.
      skip: number of leading axes that they lose.
    """
    made = []
    for value in values:
        new = Value(value.axes[skip:], value.dtype)
        new.active = active or value.active
        new.scalar = value.scalar if not skip else None
        made.append(new)
    return made


def same(values: Sequence[Value], others: Sequence[Value]) -> None:
    """Merges the dims of values with those of others, axis by axis."""
    for value, other in zip(values, others, strict=True):
        for d, e in zip(value.axes, other.axes, strict=True):
            dims_lib.unify(d, e)


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Returns the numbers of constant and of carried operands of a scan.

    Args:
      params: parameters of the primitive; since JAX 0.12 they hold pytrees.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)


def scan(node: Node, recorder: Recorder) -> Outcome:
    """A loop over a leading axis: stacked layers or time steps."""
    counts = scan_counts(node.params)
    constants, carried, each = _cut(node.inputs, *counts)
    active = any(v.active for v in carried + each)
    length = dims_lib.leaf(node.params["length"])
    for value in each:
        dims_lib.unify(length, value.axes[0])
    if not each:
        what = "it is the length of a scan without stacked arrays"
        dims_lib.freeze(length, lines.at(what))
    dims_lib.mark(length, "summed")
    dims_lib.mark(length, "layer")
    begin = inside(carried, active)
    for value in begin:
        value.scalar = None
    # Stacked params stay params: only what is carried depends on what was computed.
    given = [*inside(constants, False), *begin, *inside(each, False, skip=1)]
    closed = node.params["jaxpr"]
    body = recorder.instantiate(closed.jaxpr, closed.consts, given)
    node.inner = [body]
    after, results = body.outputs[: counts[1]], body.outputs[counts[1] :]
    same(after, begin)
    options = {name: node.params[name] for name in ("reverse", "unroll")}
    go = functools.partial(_run_scan, body, counts, length, options)
    axes = [v.axes for v in begin] + [(length, *v.axes) for v in results]
    return Outcome(axes, run=go)


def _run_scan(
    body: Program,
    counts: tuple[int, int],
    length: Dim,
    options: dict[str, Any],
    view: View,
    *operands: Any,
) -> list[Any]:
    fixed, first, rest = _cut(operands, *counts)
    stays = view.mask(length)

    def turn(carry: Any, given: Any) -> Any:
        stay, given = given
        found = run(body, view, *fixed, *carry, *given)
        new, out = found[: counts[1]], found[counts[1] :]
        if stay is not None:  # a removed iteration leaves the carry unchanged
            new = [jnp.where(stay, a, b) for a, b in zip(new, carry, strict=True)]
        return new, out

    size = view.size(length)
    size = None if is_symbolic(size) else size  # JAX reads it off the stacked arrays
    last, out = lax.scan(turn, first, (stays, rest), length=size, **options)
    return [*last, *out]


def _cut(
    values: Any, first: int, second: int
) -> tuple[list[Any], list[Any], list[Any]]:
    values = list(values)
    return values[:first], values[first : first + second], values[first + second :]


def while_(node: Node, recorder: Recorder) -> Outcome:
    """A loop that runs while a condition holds."""
    params = node.params
    counts = params["cond_nconsts"], params["body_nconsts"]
    tests, constants, carried = _cut(node.inputs, *counts)
    begin = inside(carried, any(v.active for v in carried))
    for value in begin:
        value.scalar = None
    condition, body = (
        recorder.instantiate(
            params[name].jaxpr, params[name].consts, [*inside(fixed, False), *begin]
        )
        for name, fixed in (("cond_jaxpr", tests), ("body_jaxpr", constants))
    )
    node.inner = [condition, body]
    same(body.outputs, begin)

    def go(view: View, *operands: Any) -> list[Any]:
        first, second, start = _cut(operands, *counts)
        return lax.while_loop(
            lambda carry: run(condition, view, *first, *carry)[0],
            lambda carry: run(body, view, *second, *carry),
            start,
        )

    return Outcome([v.axes for v in begin], run=go)


def cond(node: Node, recorder: Recorder) -> Outcome:
    """Branches; merges the dims of their results."""
    given = node.inputs[1:]
    branches = [
        recorder.instantiate(b.jaxpr, b.consts, inside(given, False))
        for b in node.params["branches"]
    ]
    node.inner = branches
    for other in branches[1:]:
        same(branches[0].outputs, other.outputs)

    def go(view: View, index: Any, *operands: Any) -> list[Any]:
        made = [functools.partial(run, branch, view) for branch in branches]
        return lax.switch(index, made, *operands)

    return Outcome([v.axes for v in branches[0].outputs], run=go)


def remat(node: Node, recorder: Recorder) -> Outcome:
    """A part that is recomputed for its derivative (`jax.checkpoint`)."""
    body = recorder.instantiate(node.params["jaxpr"], (), node.inputs)
    node.inner = [body]
    options = {
        name: node.params[name]
        for name in ("prevent_cse", "policy")
        if name in node.params
    }

    def go(view: View, *operands: Any) -> list[Any]:
        again = functools.partial(run, body, view)
        return jax.checkpoint(again, **options)(*operands)

    return Outcome([v.axes for v in body.outputs], run=go)


RULES = {
    "scan": scan,
    "while": while_,
    "cond": cond,
    **dict.fromkeys(("checkpoint", "remat", "remat2"), remat),
}
