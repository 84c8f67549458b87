"""Terms of dimensions: what they consist of; `dims` relates them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from jprune.graph._engine.sizes import count_of

Form = Literal["leaf", "product", "concatenation"]

_births = itertools.count()
_UNMARKED: frozenset[str] = frozenset()


class Dim:
    """A dimension term, equal to itself only; `resolve` it first, never modify it.

    Attributes:
      born: creation number; the older of two merged leaves stays.
      size: number of entries.
      form: "leaf", "product" or "concatenation".
      parts: factors of a product, outermost first, or pieces of a concatenation.
      parent: the term that this dim was merged into, or None.
      frozen: for a leaf, the reason why it cannot shrink, or "".
      marks: for a leaf, how the program uses it, such as "summed".
    """

    __slots__ = ("born", "form", "frozen", "marks", "parent", "parts", "size")

    def __init__(
        self,
        size: int,
        form: Form = "leaf",
        parts: tuple["Dim", ...] = (),
        frozen: str = "",
    ):
        self.born = next(_births)
        self.size = size
        self.form: Form = form
        self.parts = parts
        self.parent: Dim | None = None
        self.frozen = frozen
        self.marks = _UNMARKED


def leaf(size: int, frozen: str = "") -> Dim:
    """Returns a new leaf.

    Args:
      size: number of entries.
      frozen: the reason why it cannot shrink, or "".
    """
    return Dim(size, frozen=frozen)


def product(parts: Sequence[Dim]) -> Dim:
    """Returns the product of dims, outermost factor first."""
    factors = [f for p in parts for f in factors_of(p)]
    if len(factors) == 1:
        return factors[0]
    return Dim(count_of(factors), "product", tuple(factors)) if factors else leaf(1)


def concatenation(parts: Sequence[Dim]) -> Dim:
    """Returns the concatenation of dims."""
    pieces = [q for p in parts for q in pieces_of(p)]
    if len(pieces) == 1:
        return pieces[0]
    size = sum(p.size for p in pieces)
    return Dim(size, "concatenation", tuple(pieces)) if pieces else leaf(0)


def resolve(d: Dim) -> Dim:
    """Returns the term that a dim was merged into, or the dim itself."""
    root = d
    while root.parent is not None:
        root = root.parent
    while d.parent is not None and d.parent is not root:
        d.parent, d = root, d.parent
    return root


def factors_of(d: Dim) -> list[Dim]:
    """Returns the factors of a product, outermost first; for other dims, [d]."""
    return [f for f in _within(d, ("product",)) if f.size != 1]


def pieces_of(d: Dim) -> list[Dim]:
    """Returns the pieces of a concatenation; for other dims, [d]."""
    return [p for p in _within(d, ("concatenation",)) if p.size]


def leaves_of(d: Dim) -> Iterator[Dim]:
    """Yields the leaves of a term in order, repeated as often as they occur."""
    d = resolve(d)
    return iter((d,)) if d.form == "leaf" else _within(d, ("product", "concatenation"))


def _within(d: Dim, forms: tuple[str, ...]) -> Iterator[Dim]:
    """Expands terms of the given forms; iterative, because terms can be deep."""
    waiting = [d]
    while waiting:
        d = resolve(waiting.pop())
        if d.form in forms:
            waiting.extend(reversed(d.parts))
        else:
            yield d
