"""A recorded function: its equations, with a dimension term for each axis.

The jaxpr of a function is instantiated call by call, since two calls of one inner
function may have axes that shrink differently. A rule for each primitive relates the
axes of an equation, and says how the equation is run on other sizes; so what is
analysed and what is run cannot drift apart.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core, source_info_util

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine.dims import Dim

Axes = tuple[Dim, ...]

INLINED = {"jit", "pjit", "closed_call", "core_call", "composite", "core_closed_call"}
"""Calls that only group equations."""


class Scalar(NamedTuple):
    """How a constant came about, so that sizes in it can be found and changed.

    Attributes:
      value: a number, where `primitive` is None.
      primitive: what was applied to the operands.
      params: its parameters.
      operands: scalars.
    """

    value: Any
    primitive: Any = None
    params: Any = None
    operands: tuple["Scalar", ...] = ()


class Sum(NamedTuple):
    """That a value is a sum over some axes, or a power of one.

    Attributes:
      over: the dims that were summed.
      power: of the sum.
      of_products: whether a contraction summed, and not a plain sum.
      attends: whether both its operands depend on the function's inputs.
    """

    over: Axes
    power: float = 1.0
    of_products: bool = False
    attends: bool = False


class Value:
    """An array of the program.

    Attributes:
      axes: a dim for each axis.
      dtype: its type.
      constant: the array itself, where the program knows it.
      scalar: where all entries are one constant: how that came about.
      sum: where the value is a sum: over what.
      active: whether it depends on the function's inputs, and not on params alone.
    """

    __slots__ = ("active", "axes", "constant", "dtype", "scalar", "sum")

    def __init__(self, axes: Axes, dtype: Any, constant: Any = None):
        self.axes = axes
        self.dtype = dtype
        self.constant = constant
        self.scalar: Scalar | None = None
        self.sum: Sum | None = None
        self.active = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The recorded shape."""
        return tuple(d.size for d in self.axes)


class View(NamedTuple):
    """At which sizes a program runs.

    Attributes:
      size: of an axis of the arrays.
      count: how many entries of a dim there are in truth; what divisors become.
      indices: the entries of a dim that are left, or None for all.
      mask: which entries of a dim of full size are there in truth, or None for all.
      options: how ambiguous numbers are read.
    """

    size: Callable[[Dim], int]
    count: Callable[[Dim], Any]
    indices: Callable[[Dim], np.ndarray | None]
    mask: Callable[[Dim], Any]
    options: "Options"


class Options(NamedTuple):
    """How numbers that come from a size are read when that size shrinks.

    Attributes:
      divisors: "rescale" makes the divisor of a mean or a variance the number of
        entries that are left; "keep" leaves it.
      attention_scale: "keep" leaves the 1 / sqrt(d) of attention; "rescale" has it
        follow the head dimension.
    """

    divisors: str = "rescale"
    attention_scale: str = "keep"


class Outcome(NamedTuple):
    """What a rule says of an equation.

    Attributes:
      axes: for each result its dims.
      params: `view -> params` of the primitive that change with sizes; or None.
      run: `(view, *operands) -> results` instead of the primitive; or None.
      fill: what removed entries of operands must be so that they do not count: None
        where an entry of a result depends on the same entry of operands only; else
        `dtype -> number`.
      along: which axes of the operands are filled, or None for all.
    """

    axes: Sequence[Axes]
    params: Callable[[View], dict[str, Any]] | None = None
    run: Callable[..., Any] | None = None
    fill: Callable[[Any], Any] | None = None
    along: frozenset[int] | None = None


_PLAIN = Outcome(())  # of all nodes that run as they are: most


class Node:
    """An equation.

    Attributes:
      equation: of the jaxpr.
      inputs: operands.
      outputs: results.
      outcome: what its rule says, but for the dims of the results, which these have.
      inner: the bodies of a loop, a branch or a custom derivative.
    """

    __slots__ = ("equation", "inner", "inputs", "outcome", "outputs")

    def __init__(self, equation: Any, inputs: Sequence[Value]):
        self.equation = equation
        self.inputs = inputs
        self.outputs: Sequence[Value] = ()
        self.outcome: Outcome = _PLAIN
        self.inner: Sequence[Program] = ()

    @property
    def name(self) -> str:
        """Of the primitive."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Of the primitive."""
        return self.equation.params

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The recorded shapes of the results."""
        return [tuple(v.aval.shape) for v in self.equation.outvars]


class Program(NamedTuple):
    """Equations in order.

    Attributes:
      inputs: values that are given.
      nodes: equations.
      outputs: values that are returned.
    """

    inputs: Sequence[Value]
    nodes: list[Node]
    outputs: Sequence[Value]


class Note(NamedTuple):
    """Something that a user should know of a recorded function.

    Attributes:
      kind: "frozen", "rescaled" or "over what is left".
      what: in words.
      where: file, line and function of the user's code.
      about: the dims that are concerned.
    """

    kind: str
    what: str
    where: str
    about: Axes

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} ({self.where})"


class Recorder:
    """What rules share while a function is recorded.

    Attributes:
      rules: primitive name -> `(node, recorder) -> Outcome`.
      notes: found so far.
      order: of the derivative that is being recorded, 0 for the function itself.
      calls: the equations that the one being recorded lies in, outermost first.
    """

    def __init__(self, rules: dict[str, Callable[..., Outcome]]):
        self.rules = rules
        self.notes: list[Note] = []
        self.order = 0
        self.calls: list[Any] = []
        self._derived: dict[Any, Any] = {}
        self._facts: tuple[Scalar | None, Sum | None] = (None, None)

    def note(self, kind: str, node: Node, what: str, about: Sequence[Dim]) -> None:
        """Adds a note on an equation."""
        self.notes.append(Note(kind, what, self._where(node), tuple(about)))

    def _where(self, node: Node) -> str:
        """The user's line; inside JAX's own functions that of their call."""
        for equation in (node.equation, *reversed(self.calls)):
            where = source_info_util.summarize(equation.source_info)
            if where:
                return where
        return "in JAX"

    def freeze(self, node: Node, about: Sequence[Dim], what: str) -> None:
        """Freezes dims because of an equation."""
        loose = [d for d in about if d.size > 1 and not dims_lib.why_fixed(d)]
        if not loose:
            return
        self.note("frozen", node, what, loose)
        for d in loose:
            dims_lib.freeze(d, str(self.notes[-1]))

    def facts(self, scalar: Scalar | None, total: Sum | None) -> None:
        """Notes of the equation's only result that it is a constant, or a sum."""
        self._facts = (scalar, total)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what was made before for a key, or makes it."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def instantiate(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        inputs: Sequence[Value],
        used: Any = None,
    ) -> Program:
        """Records the equations of a jaxpr for some inputs.

        Args:
          jaxpr: a `Jaxpr`.
          constants: arrays for its constant variables.
          inputs: values for its inputs.
          used: a bool for each output, or None for all; others are not recorded.

        Returns:
          The program; outputs that are not used are missing from its nodes.
        """
        used = [True] * len(jaxpr.outvars) if used is None else list(used)
        live = _live(jaxpr, used)
        known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, array in zip(jaxpr.constvars, constants, strict=True):
            known[var] = constant(array)

        def read(atom: Any) -> Value:
            return constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        nodes: list[Node] = []
        for equation, wanted in live:
            given = tuple([read(a) for a in equation.invars])
            if equation.primitive.name in INLINED:
                closed = _inner(equation)
                self.calls.append(equation)
                inside = self.instantiate(closed.jaxpr, closed.consts, given, wanted)
                self.calls.pop()
                nodes += inside.nodes
                results = inside.outputs
            else:
                node = Node(equation, given)
                self._relate(node)
                nodes.append(node)
                results = node.outputs
            known.update(zip(equation.outvars, results, strict=True))
        nothing = Value((), np.dtype(bool), np.zeros((), bool))
        outputs = [
            read(v) if u else nothing for v, u in zip(jaxpr.outvars, used, strict=True)
        ]
        return Program(inputs, nodes, outputs)

    def _relate(self, node: Node) -> None:
        rule = self.rules.get(node.name)
        self._facts = (None, None)
        self.calls.append(node.equation)
        said = unknown(node, self) if rule is None else rule(node, self)
        self.calls.pop()
        if any(part is not None for part in said[1:]):
            node.outcome = said
        scalar, total = (None, None) if node.inner else self._facts
        active = any(v.active for v in node.inputs)
        outputs = []
        for var, axes in zip(node.equation.outvars, said.axes, strict=True):
            value = Value(tuple(axes), var.aval.dtype)
            value.active = active
            outputs.append(value)
        node.outputs = tuple(outputs)
        if len(node.outputs) == 1:
            node.outputs[0].scalar, node.outputs[0].sum = scalar, total


def constant(array: Any) -> Value:
    """Returns the value of a constant."""
    value = Value(tuple(map(dims_lib.leaf, np.shape(array))), None, array)
    value.dtype = getattr(array, "dtype", np.result_type(type(array)))
    if not value.axes:
        value.scalar = Scalar(array)
    return value


def unknown(node: Node, recorder: Recorder) -> Outcome:
    """Returns the outcome of a primitive without a rule: all its axes are frozen."""
    about = [d for v in node.inputs for d in v.axes]
    recorder.freeze(node, about, f"jprune has no rule for the primitive {node.name!r}")
    return Outcome([frozen(shape, node) for shape in node.shapes], fill=zero)


def frozen(shape: Sequence[int], node: Node) -> Axes:
    """Returns new dims that cannot shrink, after an equation."""
    return tuple(dims_lib.leaf(n, f"it comes from {node.name!r}") for n in shape)


def zero(dtype: Any) -> Any:
    """Returns the number that adds nothing."""
    return np.zeros((), dtype)


def _inner(equation: Any) -> Any:
    """The closed jaxpr of a call."""
    for name in ("jaxpr", "call_jaxpr"):
        if name in equation.params:
            found = equation.params[name]
            return found if hasattr(found, "consts") else core.ClosedJaxpr(found, ())
    raise TypeError(f"jprune does not know the call {equation.primitive.name!r}.")


def _live(jaxpr: Any, used: list[bool]) -> list[tuple[Any, list[bool] | None]]:
    """The equations that matter for the used outputs, with which results do.

    None if all do, as of nearly every equation.
    """
    wanted = {
        v
        for v, u in zip(jaxpr.outvars, used, strict=True)
        if u and not isinstance(v, core.Literal)
    }
    live: list[tuple[Any, list[bool] | None]] = []
    for equation in reversed(jaxpr.eqns):
        results = [v in wanted for v in equation.outvars]
        if any(results) or equation.effects:
            live.append((equation, None if all(results) else results))
            for v in equation.invars:
                if not isinstance(v, core.Literal):
                    wanted.add(v)
    live.reverse()
    return live
