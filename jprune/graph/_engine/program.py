"""A recorded function: its equations, with a dimension term for each axis.

The jaxpr of a function is instantiated once per call, because two calls of the same
inner function may have axes that shrink differently. One rule per primitive relates
the axes of an equation and says how the equation runs at other sizes, so that the
analysis and the evaluation cannot drift apart.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import lines, scopes
from jprune.graph._engine.dims import Dim
from jprune.graph._engine.jaxprs import body_of, live_equations
from jprune.graph._engine.values import Axes as Axes
from jprune.graph._engine.values import Scalar as Scalar
from jprune.graph._engine.values import Sum as Sum
from jprune.graph._engine.values import Value as Value

INLINED = {"jit", "pjit", "closed_call", "core_call", "composite", "core_closed_call"}
"""Calls without semantics of their own; their equations are inlined."""


class View(NamedTuple):
    """The sizes that a program runs at.

    Attributes:
      size: dim -> size of that axis in the arrays.
      count: dim -> number of kept entries, which the divisors of means become.
      indices: dim -> indices of the kept entries, or None for all. Arrays are cut.
        Those of a dim of symbolic size are a JAX array.
      mask: dim -> bools of the kept entries, or None for all. Arrays keep their size.
      options: how ambiguous numbers are treated.
    """

    size: Callable[[Dim], int]
    count: Callable[[Dim], Any]
    indices: Callable[[Dim], Any]
    mask: Callable[[Dim], Any]
    options: "Options"


class Options(NamedTuple):
    """How constants that were computed from a size change when that size shrinks.

    Attributes:
      divisors: "rescale" divides a mean or a variance by the number of entries that
        are left; "keep" leaves the divisor unchanged. A number that equals a size but
        does not show it, as in `0.25 * h.sum(-1)`, stays; `explain` names it.
      attention_scale: "keep" leaves the 1 / sqrt(d) or 1 / d of attention unchanged;
        "rescale" makes it follow the head dimension.
    """

    divisors: str = "rescale"
    attention_scale: str = "keep"


class Outcome(NamedTuple):
    """What a rule returns for an equation.

    Attributes:
      axes: the dims of each result.
      params: `view -> params` of the primitive that change with sizes, or None.
      run: `(view, *operands) -> results` in place of the primitive, or None.
      fill: `dtype -> number` that removed entries of the operands are set to, so that
        they have no effect; None if an entry of a result depends on the same entry of
        the operands only.
      along: axes that are filled: of all operands, or a tuple with those of each; None
        for all axes.
      scalar: expression of the constant that the only result is, or None.
      sum: what the only result is a sum over, or None.
    """

    axes: Sequence[Axes]
    params: Callable[[View], dict[str, Any]] | None = None
    run: Callable[..., Any] | None = None
    fill: Callable[[Any], Any] | None = None
    along: frozenset[int] | tuple[frozenset[int], ...] | None = None
    scalar: Scalar | None = None
    sum: Sum | None = None


_PLAIN = Outcome(())  # shared by the nodes that run unchanged, which are most


class Node:
    """An equation.

    Attributes:
      equation: the equation of the jaxpr.
      name: name of its primitive.
      inputs: operands.
      outputs: results.
      outcome: what its rule returned.
      inner: bodies of a loop, a branch or a custom derivative.
    """

    __slots__ = ("equation", "inner", "inputs", "name", "outcome", "outputs")

    def __init__(self, equation: Any, inputs: Sequence[Value]):
        self.equation = equation
        self.name: str = equation.primitive.name
        self.inputs = inputs
        self.outputs: Sequence[Value] = ()
        self.outcome: Outcome = _PLAIN
        self.inner: Sequence[Program] = ()

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the primitive."""
        return self.equation.params

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Recorded shapes of the results."""
        return [v.aval.shape for v in self.equation.outvars]


class Program(NamedTuple):
    """Equations in the order of their evaluation.

    Attributes:
      inputs: values of the arguments.
      nodes: equations.
      outputs: values that are returned.
    """

    inputs: Sequence[Value]
    nodes: list[Node]
    outputs: Sequence[Value]


class Note(NamedTuple):
    """Something that a user should know about a recorded function.

    Attributes:
      kind: "frozen", "rescaled", "kept", "over what is left" or "whole by default".
      what: the explanation.
      where: file, line and function of the user's code.
      about: the dims concerned.
    """

    kind: str
    what: str
    where: str
    about: Axes

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} ({self.where})"


class Recorder:
    """Instantiates jaxprs and collects notes; shared by all rules of a recording.

    Attributes:
      rules: primitive name -> `(node, recorder) -> Outcome`.
      options: how constants that were computed from a size are treated.
      order: order of the derivative being recorded, 0 for the function itself.
      scope: the named axes around the equation being recorded.
      known: values of the variables that it could refer to, innermost jaxpr first.
      calls: equations that enclose the one being recorded, outermost first.
    """

    def __init__(
        self, rules: dict[str, Callable[..., Outcome]], options: Options | None = None
    ):
        self.rules = rules
        self.options = options or Options()
        self._notes: list[tuple[Note, str | None]] = []
        self.order = 0
        self.scope = scopes.NOWHERE
        self.known: tuple[dict[Any, Value], ...] = ()
        self.calls: list[Any] = []
        self._derived: dict[Any, Any] = {}

    @property
    def notes(self) -> list[Note]:
        """Notes so far, without those about a mark that no leaf has."""
        return [n for n, mark in self._notes if not mark or _marked(n.about, mark)]

    def note(
        self,
        kind: str,
        node: Node,
        what: str,
        about: Sequence[Dim],
        mark: str | None = None,
    ) -> Note:
        """Adds a note about an equation; with a mark, if a leaf gets it in the end."""
        found = Note(kind, what, self._where(node), tuple(about))
        self._notes.append((found, mark))
        return found

    def _where(self, node: Node) -> str:
        """The user's line; for equations of JAX's own functions, that of the call."""
        for equation in (node.equation, *reversed(self.calls)):
            info = equation.source_info
            # Equal layers have equal tracebacks, and to summarize one takes long.
            where = self.once(("line", info.traceback), lambda x=info: lines.of(x))
            if where:
                return where
        return "in JAX"

    def freeze(self, node: Node, about: Sequence[Dim], what: str) -> None:
        """Freezes dims because of an equation, and notes it."""
        loose = [d for d in about if d.size != 1 and not dims_lib.why_fixed(d)]
        if not loose:
            return
        where = self.note("frozen", node, what, loose).where
        for d in loose:
            dims_lib.freeze(d, f"{what} ({where})")

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns the result of `make` for a key, computed once."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def instantiate(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        inputs: Sequence[Value],
        used: Any = None,
        around: tuple[dict[Any, Value], ...] = (),
    ) -> Program:
        """Records the equations of a jaxpr for given inputs.

        Args:
          jaxpr: a `Jaxpr`.
          constants: arrays of its constant variables, or values.
          inputs: values of its inputs.
          used: one bool for each output, or None for all. Equations that only unused
            outputs depend on are not recorded.
          around: values of the variables of enclosing jaxprs of the same program.

        Returns:
          The program. Unused outputs are placeholders.
        """
        used = [True] * len(jaxpr.outvars) if used is None else list(used)
        live = live_equations(jaxpr, used)
        known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, array in zip(jaxpr.constvars, constants, strict=True):
            known[var] = array if isinstance(array, Value) else constant(array)
        within, outside = (known, *around), self.known

        def read(atoms: Sequence[Any]) -> list[Value]:
            return [
                constant(a.val) if isinstance(a, core.Literal) else known[a]
                for a in atoms
            ]

        nodes: list[Node] = []
        for equation, wanted in live:
            given = tuple(read(equation.invars))
            if equation.primitive.name in INLINED:
                closed = body_of(equation)
                self.calls.append(equation)
                inside = self.instantiate(
                    closed.jaxpr, closed.consts, given, wanted, within
                )
                self.calls.pop()
                nodes += inside.nodes
                results = inside.outputs
            else:
                node = Node(equation, given)
                self.known = within
                self._relate(node)
                nodes.append(node)
                results = node.outputs
            known.update(zip(equation.outvars, results, strict=True))
        unused = Value((), np.dtype(bool), np.zeros((), bool))
        self.known = outside
        returned = iter(read(list(itertools.compress(jaxpr.outvars, used))))
        return Program(inputs, nodes, [next(returned) if u else unused for u in used])

    def _relate(self, node: Node) -> None:
        rule = self.rules.get(node.name, unknown)
        self.calls.append(node.equation)
        where = functools.partial(self._where, node)
        outcome = lines.within(where, rule, node, self)
        self.calls.pop()
        if outcome.params or outcome.run or outcome.fill:
            node.outcome = outcome
        active = counted = False
        for v in node.inputs:
            active, counted = active or v.active, counted or v.counted
        counted = node.name == "iota" or (counted and _counted(node.inputs))
        outputs = []
        for var, axes in zip(node.equation.outvars, outcome.axes, strict=True):
            value = Value(tuple(axes), var.aval.dtype)
            value.active, value.counted = active, counted
            outputs.append(value)
        node.outputs = tuple(outputs)
        if outcome.scalar is not None or outcome.sum is not None:
            (value,) = outputs
            value.scalar, value.sum = outcome.scalar, outcome.sum


def _counted(values: Sequence[Value]) -> bool:
    return all(v.counted or v.scalar or v.constant is not None for v in values)


def _marked(about: Axes, mark: str) -> bool:
    return any(mark in x.marks for d in about for x in dims_lib.leaves_of(d))


def constant(array: Any) -> Value:
    """Returns the value of a constant."""
    value = Value(tuple(map(dims_lib.leaf, np.shape(array))), None, array)
    value.dtype = getattr(array, "dtype", np.result_type(type(array)))
    if not value.axes:
        value.scalar = Scalar(array)
    return value


def unknown(node: Node, recorder: Recorder) -> Outcome:
    """Freezes all axes of a primitive that has no rule."""
    about = [d for v in node.inputs for d in v.axes]
    what = f"jprune has no rule for the primitive {node.name!r}; jg.trace takes rules="
    recorder.freeze(node, about, what)
    return Outcome([frozen(shape, node) for shape in node.shapes], fill=zero)


def frozen(shape: Sequence[int], node: Node) -> Axes:
    """Returns new frozen dims for a result of an equation."""
    why = lines.at(f"it comes from {node.name!r}")
    return tuple(dims_lib.leaf(n, why) for n in shape)


def zero(dtype: Any) -> Any:
    """Returns 0, which a sum ignores."""
    return np.zeros((), dtype)
