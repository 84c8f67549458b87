"""Dimensions as terms: a leaf, a product or a concatenation of dimensions.

An axis of length 12 may be a leaf, or a product of 3 heads and 4 head dimensions, or
a concatenation of 8 channels of one layer and 4 of another. Three operations relate
the axes of a program:

    factor(d, [3, 4])      d is a product, outermost factor first
    split(d, [8, 4])       d is a concatenation
    unify(a, b)            a and b are the same dimension

They refine leaves and merge them by union-find. At the end, axes that must shrink
together share a leaf. Where two views of an axis cannot be aligned, all leaves
involved are frozen, that is, never pruned: this is conservative and always correct.
"""

import functools
import math
from collections.abc import Callable, Sequence

from jprune.graph._engine import lines, terms
from jprune.graph._engine.sizes import count_of as count_of
from jprune.graph._engine.sizes import divides, exceeds, is_symbolic
from jprune.graph._engine.terms import Dim as Dim
from jprune.graph._engine.terms import factors_of as factors_of
from jprune.graph._engine.terms import leaf as leaf
from jprune.graph._engine.terms import leaves_of as leaves_of
from jprune.graph._engine.terms import pieces_of as pieces_of
from jprune.graph._engine.terms import product as product
from jprune.graph._engine.terms import resolve as resolve

MOST_CUTS = 128
"""Limit on the refinements that align two terms; beyond it they are frozen.

An axis added to itself rolled by one would otherwise be cut into single entries."""


def concatenation(parts: Sequence[Dim]) -> Dim:
    """Returns the concatenation of dims."""
    d = terms.concatenation(parts)
    why = _unknown(d, [p.size for p in pieces_of(d)])
    return leaf(d.size, why) if why else d


def why_fixed(d: Dim) -> str:
    """Returns why no entry of a dim can be removed, or "" if some can."""
    why = ""
    for one in leaves_of(d):
        if not one.frozen and one.size not in (0, 1):
            return ""
        why = why or one.frozen
    return why or "each of its entries is used on its own"


def freeze(d: Dim, why: str) -> None:
    """Freezes all leaves of a term; a leaf keeps its first reason."""
    for one in leaves_of(d):
        one.frozen = one.frozen or why


def mark(d: Dim, word: str) -> None:
    """Records on all leaves of a term how the program uses them."""
    for one in leaves_of(d):
        if word not in one.marks:
            one.marks = _union(one.marks, frozenset((word,)))


@functools.cache
def _union(a: frozenset[str], b: frozenset[str]) -> frozenset[str]:
    return a | b  # one object shared by all leaves with the same marks


def factor(d: Dim, sizes: Sequence[int]) -> list[Dim]:
    """Views a dim as a product and returns its factors, one for each size.

    Args:
      d: the dim to factor.
      sizes: sizes of the factors, outermost first; their product is `d.size`.
    """
    found = iter(_factor(resolve(d), [s for s in sizes if s != 1]))
    return [leaf(1) if s == 1 else next(found) for s in sizes]


def _factor(d: Dim, sizes: list[int]) -> list[Dim]:
    if len(sizes) <= 1:
        return [d] * len(sizes)
    why = "empty" if d.size == 0 else why_fixed(d) or _unknown(d, sizes)
    if why:
        return [leaf(s, why) for s in sizes]
    if d.form == "leaf":
        new = [leaf(s) for s in sizes]
        _become(d, product(new))
        return new
    if d.form == "concatenation":
        return _factor_pieces(d, sizes)
    queue, found = factors_of(d), []
    for i, size in enumerate(sizes):
        taken: list[Dim] = []
        rest = size
        while rest != 1:
            queue = _expanded(queue, factors_of)
            first = queue.pop(0)
            if divides(first.size, rest):
                taken.append(first)
            elif divides(rest, first.size):
                outer, inner = factor(first, [rest, first.size // rest])
                taken.append(outer)
                queue.insert(0, inner)
            else:
                why = _misfit(d, " x ".join(map(str, sizes)), *taken, first, *queue)
                return found + [leaf(s, why) for s in sizes[i:]]
            rest //= taken[-1].size
        found.append(product(taken))
    return found


def _factor_pieces(d: Dim, sizes: list[int]) -> list[Dim]:
    """Factors a concatenation: its pieces share all factors but the outermost."""
    inner = d.size // sizes[0]
    pieces = pieces_of(d)
    if not all(divides(inner, p.size) for p in pieces):
        return _factor_misaligned(d, sizes)
    views = [factor(p, [p.size // inner, *sizes[1:]]) for p in pieces]
    for view in views[1:]:
        for a, b in zip(views[0][1:], view[1:], strict=True):
            unify(a, b)
    return [concatenation([v[0] for v in views]), *views[0][1:]]


def _factor_misaligned(d: Dim, sizes: list[int]) -> list[Dim]:
    """Factors a concatenation whose pieces end inside of an inner factor.

    Blocks of the greatest length that divides all pieces and the inner factor may
    shrink alike; their numbers stay. So do normalizations of 32 groups over 1280 and
    640 channels: groups of 60 are 3 blocks of 20, and the pieces are 64 and 32 of them.
    """
    why = _misfit(d, " x ".join(map(str, sizes)))
    pieces = pieces_of(d)
    known = not any(map(is_symbolic, [*sizes, *[p.size for p in pieces]]))
    block = 1
    if len(sizes) == 2 and known:
        block = math.gcd(sizes[-1], *[p.size for p in pieces])
    if block == 1:
        freeze(d, why)
        return [leaf(s, why) for s in sizes]
    views = [factor(p, [p.size // block, block]) for p in pieces]
    inner = views[0][1]
    for outer, other in views:
        freeze(outer, why)
        unify(inner, other)
    return [leaf(sizes[0], why), product([leaf(sizes[1] // block, why), inner])]


def split(d: Dim, sizes: Sequence[int]) -> list[Dim]:
    """Views a dim as a concatenation and returns its pieces, one for each size.

    Args:
      d: the dim to split.
      sizes: sizes of the pieces, perhaps 0; their sum is `d.size`.
    """
    found = iter(_split(resolve(d), [s for s in sizes if s]))
    return [next(found) if s else leaf(0) for s in sizes]


def _split(d: Dim, sizes: list[int]) -> list[Dim]:
    if len(sizes) <= 1:
        return [d] * len(sizes)
    why = why_fixed(d) or _unknown(d, sizes)
    if why:
        return [leaf(s, why) for s in sizes]
    if d.form == "leaf":
        new = [leaf(s) for s in sizes]
        _become(d, concatenation(new))
        return new
    if d.form == "product":
        return _split_product(d, sizes)
    queue, found = pieces_of(d), []
    for size in sizes:
        taken: list[Dim] = []
        rest = size
        while rest:
            queue = _expanded(queue, pieces_of)
            first = queue.pop(0)
            if (greater := exceeds(first.size, rest)) is None:
                why = _misfit(d, " + ".join(map(str, sizes)), d)
                return [leaf(s, why) for s in sizes]
            if greater:
                first, after = split(first, [rest, first.size - rest])
                queue.insert(0, after)
            taken.append(first)
            rest -= first.size
        found.append(concatenation(taken))
    return found


def _split_product(d: Dim, sizes: list[int]) -> list[Dim]:
    """Splits a product into pieces of its outermost factor, each times the others."""
    outer, rest = _outermost(factors_of(d), sizes)
    counts = [s // count_of(rest) for s in sizes]
    if len(outer) == 1:
        return [product([piece, *rest]) for piece in split(outer[0], counts)]
    why = _misfit(d, " + ".join(map(str, sizes)), *outer)
    return [product([leaf(n, why), *rest]) for n in counts]


def _outermost(factors: list[Dim], sizes: list[int]) -> tuple[list[Dim], list[Dim]]:
    """Divides factors into outer and inner ones; the inner count divides all sizes."""
    for i in range(1, len(factors)):
        if all(divides(count_of(factors[i:]), s) for s in sizes):
            return factors[:i], factors[i:]
    return factors, []


def unify(a: Dim, b: Dim) -> None:
    """Merges two dims of the same size.

    Args:
      a: a dim.
      b: another dim. If no entry of one can be removed, both are frozen.

    Raises:
      ValueError: if their sizes differ.
    """
    a, b = resolve(a), resolve(b)
    if a.size != b.size:
        raise ValueError(f"Dims of sizes {a.size} and {b.size} cannot be merged.")
    if a is b or a.size in (0, 1):
        return
    why = why_fixed(a) or why_fixed(b)
    if why:
        freeze(a, why)
        freeze(b, why)
    elif a.form == b.form == "leaf":  # the older leaf stays, so its masks stay valid
        _become(*((a, b) if a.born > b.born else (b, a)))
    elif a.form == "leaf":
        _become(a, b)
    elif b.form == "leaf":
        _become(b, a)
    elif a.form == b.form == "product":
        _align(a, b, factors_of, _halve)
    elif a.form == b.form == "concatenation":
        _align(a, b, pieces_of, _cut)
    elif a.form == "product":
        _unify_product_with_pieces(a, b)
    else:
        _unify_product_with_pieces(b, a)


def _align(
    a: Dim,
    b: Dim,
    parts_of: Callable[[Dim], list[Dim]],
    cut: Callable[[Dim, int], list[Dim] | None],
) -> None:
    """Merges two terms of the same form, part by part of their common refinement."""
    left, right = parts_of(a), parts_of(b)
    for _ in range(len(left) + len(right) + MOST_CUTS):
        left, right = _expanded(left, parts_of), _expanded(right, parts_of)
        if not left and not right:
            return
        x, y = left[0], right[0]
        if x.size == y.size:
            unify(left.pop(0), right.pop(0))
            continue
        if both := cut(x, y.size):
            left[:1] = both
        elif both := cut(y, x.size):
            right[:1] = both
        else:
            break
    _misfit(a, _shape(b), *left, *right)


def _halve(d: Dim, size: int) -> list[Dim] | None:
    return factor(d, [size, d.size // size]) if divides(size, d.size) else None


def _cut(d: Dim, size: int) -> list[Dim] | None:
    return split(d, [size, d.size - size]) if exceeds(d.size, size) else None


def _unify_product_with_pieces(a: Dim, b: Dim) -> None:
    pieces = pieces_of(b)
    outer, rest = _outermost(factors_of(a), [p.size for p in pieces])
    inner, counts = count_of(rest), [f.size for f in rest]
    first = []
    for piece in pieces:
        head, *tail = factor(piece, [piece.size // inner, *counts])
        for x, y in zip(tail, rest, strict=True):
            unify(x, y)
        first.append(head)
    if len(outer) == 1:
        unify(outer[0], concatenation(first))
    else:
        _misfit(a, _shape(b), *outer, *first)


def _unknown(d: Dim, sizes: Sequence[int]) -> str:
    """Freezes a dim of known size in parts that are symbolic, as t and 16 - t."""
    if is_symbolic(d.size) or not any(map(is_symbolic, sizes)):
        return ""
    return _misfit(d, ", ".join(map(str, sizes)), d)


def _become(d: Dim, term: Dim) -> None:
    """Merges a leaf into a term."""
    d.parent = term
    for one in leaves_of(term):
        one.frozen = one.frozen or d.frozen
        one.marks = _union(one.marks, d.marks)


def _expanded(queue: list[Dim], parts_of: Callable[[Dim], list[Dim]]) -> list[Dim]:
    """Replaces the first dim of a queue by its parts, if it has been refined."""
    while queue:
        if parts := parts_of(queue[0]):
            return parts + queue[1:]
        queue = queue[1:]
    return queue


def _misfit(d: Dim, other: str, *parts: Dim) -> str:
    """Freezes parts of a dim, as two views of it cannot be aligned; returns why."""
    both = f"{_shape(d)} and as {other}"
    why = lines.at(f"an axis of size {d.size} is used both as {both}")
    for one in parts:
        freeze(one, why)
    return why


def _shape(d: Dim) -> str:
    """Formats a term, such as "(3 x 4) + 12"."""
    d = resolve(d)
    if d.form == "leaf":
        return str(d.size)
    sign = " x " if d.form == "product" else " + "
    return sign.join(f"({s})" if " " in s else s for s in map(_shape, d.parts))
