"""The term algebra against NumPy: what it relates is what reshapes and slices do.

Random operations relate dims. Afterwards every leaf that may shrink loses random
entries, and each relation has to hold for what is left: a factored dim is the reshape
of its parts, a split one their concatenation, unified ones are equal.
"""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune.graph._engine import dims, layout
from jprune.graph._plan import mask_of

SIZES = [1, 2, 3, 4, 6, 8, 12, 24]


def divisors(n):
    return [k for k in range(1, n + 1) if n % k == 0]


def divisions(pick, n):
    """Sizes with the product n; `pick` chooses an item of a list."""
    if n == 0:
        return [2, 0]
    found = []
    while n > 1:
        found.append(pick(divisors(n)[1:]))
        n //= found[-1]
    if pick([False, True]):
        found.insert(pick(range(len(found) + 1)), 1)
    return found


def cuts(pick, n):
    """Sizes with the sum n, some 0."""
    unit = pick(divisors(n) or [1])
    at = sorted(unit * pick(range(n // unit + 1)) for _ in range(pick(range(4))))
    return list(np.diff([0, *at, n]).tolist())


def outer(parts):
    """Entries of a product that are there: those that all factors have."""
    return functools.reduce(np.logical_and.outer, parts, np.array(True))


class World:
    """Dims, and the relations that hold between them."""

    def __init__(self, sizes):
        self.dims = [dims.leaf(n) for n in sizes]
        self.relations = []

    def factor(self, pick, d):
        sizes = divisions(pick, d.size)
        parts = dims.factor(d, sizes)
        assert [p.size for p in parts] == sizes
        self.dims += parts
        self.relations.append(("product", d, parts))

    def split(self, pick, d):
        sizes = cuts(pick, d.size)
        parts = dims.split(d, sizes)
        assert [p.size for p in parts] == sizes
        self.dims += parts
        self.relations.append(("concatenation", d, parts))

    def join(self, pick, d):
        e = pick(self.dims)
        if d.size * e.size <= 96 and pick([False, True]):
            self.dims.append(dims.product([d, e]))
            self.relations.append(("product", self.dims[-1], [d, e]))
        elif d.size + e.size <= 48:
            self.dims.append(dims.concatenation([d, e]))
            self.relations.append(("concatenation", self.dims[-1], [d, e]))

    def unify(self, pick, d):
        e = pick([e for e in self.dims if e.size == d.size])
        dims.unify(d, e)
        self.relations.append(("same", d, [e]))

    def freeze(self, pick, d):
        dims.freeze(d, "frozen by hand")

    def frozen(self):
        """For each dim which entries no unfrozen leaf has a part in."""
        return [
            layout.evaluate(
                d,
                lambda x: np.full(x.size, bool(x.frozen)),
                lambda a, b: np.logical_and.outer(a, b).reshape(-1),
                lambda a, b: np.concatenate([a, b]),
            )
            for d in self.dims
        ]

    def check(self, seed):
        rng = np.random.default_rng(seed)
        leaves = dict.fromkeys(x for d in self.dims for x in dims.leaves_of(d))
        kept = {
            x: rng.random(x.size) < 0.6
            for x in leaves
            if x.size > 1 and not x.frozen  # those that a group can be
        }

        def entries(d):
            mask = mask_of(d, kept)
            return np.ones(d.size, bool) if mask is None else mask

        for kind, d, parts in self.relations:
            masks = [entries(p) for p in parts]
            if kind == "product":
                np.testing.assert_array_equal(entries(d), outer(masks).reshape(-1))
            else:
                np.testing.assert_array_equal(entries(d), np.concatenate(masks))
        for d in self.dims:
            if not d.size:
                continue
            there = np.ones(d.size, bool)
            for x in dict.fromkeys(dims.leaves_of(d)):
                for place in layout.positions(d, x):
                    assert sorted(set(place[place >= 0])) == list(range(x.size))
                    keep = kept.get(x, np.ones(x.size, bool))
                    there &= (place < 0) | keep[place]
            np.testing.assert_array_equal(entries(d), there)

    def check_sizes(self):
        for d in self.dims:
            known = layout.evaluate(
                d, lambda x: x.size, lambda a, b: a * b, lambda a, b: a + b
            )
            assert known == d.size == dims.resolve(d).size


def check_a_world(pick, sizes, steps, actions):
    world = World(sizes)
    frozen = world.frozen()
    for _ in range(steps):
        getattr(world, pick(actions))(pick, pick(world.dims))
        world.check_sizes()
        now = world.frozen()
        for before, after in zip(frozen, now, strict=False):
            assert np.all(after | ~before)  # what is frozen stays frozen
        frozen = now
    for seed in range(3):
        world.check(seed)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_relations_hold_for_what_is_left(data):
    def pick(items):
        return data.draw(st.sampled_from(items))

    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=2, max_size=6))
    actions = ["factor", "split", "join", "unify", "unify", "freeze"]
    check_a_world(pick, sizes, data.draw(st.integers(1, 12)), actions)


@pytest.mark.parametrize("seed", range(4))
def test_relations_hold_for_terms_of_terms(seed):
    """Axes of one size, so that products, concatenations and both often meet."""
    rng = np.random.default_rng(seed)

    def pick(items):
        return items[rng.integers(len(items))]

    for _ in range(100):
        sizes = [pick([12, 24, 36])] * 3 + [2, 3]
        check_a_world(pick, sizes, 8, ["factor", "split", "join", "unify", "unify"])


def alike(parts):
    """Whether terms are one leaf each, and all the same."""
    leaves = [list(dims.leaves_of(p)) for p in parts]
    return all(len(x) == 1 and x[0] is leaves[0][0] for x in leaves)


@pytest.mark.parametrize(("n", "k"), [(12, 4), (12, 8), (8, 4), (10, 6), (24, 18)])
def test_a_roll_leaves_one_leaf_of_the_greatest_common_divisor(n, k):
    d = dims.leaf(n)
    first, last = dims.split(d, [n - k, k])
    dims.unify(d, dims.concatenation([last, first]))
    size = math.gcd(n, k)
    pieces = dims.split(d, [size] * (n // size))
    assert alike(pieces)
    assert not pieces[0].frozen


@pytest.mark.parametrize("k", [1, 5, 1023])
def test_a_roll_of_a_long_axis_ends(k):
    """2048 pieces that may not shrink; no recursion as deep as the axis is long."""
    d = dims.leaf(2048)
    first, last = dims.split(d, [2048 - k, k])
    dims.unify(d, dims.concatenation([last, first]))
    assert all(x.frozen or x.size == 1 for x in dims.leaves_of(d))
    assert layout.positions(d, next(dims.leaves_of(d)))


def test_two_orders_of_two_pieces_make_them_one():
    a, b = dims.leaf(3), dims.leaf(3)
    dims.unify(dims.concatenation([a, b]), dims.concatenation([b, a]))
    assert alike([a, b])


def test_factors_that_do_not_fit_freeze():
    d = dims.leaf(24)
    six = dims.factor(d, [6, 4])
    four = dims.factor(d, [4, 6])
    assert all(x.frozen for p in (*six, *four) for x in dims.leaves_of(p))
    assert "(6, 4)" in four[0].frozen or "6 x 4" in four[0].frozen


def test_factors_that_fit_refine():
    d = dims.leaf(24)
    outer, inner = dims.factor(d, [12, 2])
    heads, rest = dims.factor(d, [3, 8])
    assert [x.size for x in dims.leaves_of(d)] == [3, 4, 2]
    assert [x.size for x in dims.leaves_of(outer)] == [3, 4]
    assert [x.size for x in dims.leaves_of(rest)] == [4, 2]
    assert alike([heads, dims.factors_of(outer)[0]])
    assert alike([inner, dims.factors_of(rest)[1]])


def test_a_product_over_pieces_shares_the_inner_factor():
    """Queries, keys and values in one matrix: three times heads times entries."""
    d = dims.leaf(24)
    pieces = dims.split(d, [8, 8, 8])
    heads = [dims.factor(p, [2, 4]) for p in pieces]
    outer, inner = dims.factor(d, [6, 4])
    assert alike([inner, *(h[1] for h in heads)])
    assert [x.size for x in dims.leaves_of(outer)] == [2, 2, 2]
    assert not any(x.frozen for x in dims.leaves_of(d))


@pytest.mark.parametrize("swapped", [False, True])
def test_pieces_of_a_product_share_its_inner_factors(swapped):
    """A concatenation of 12 and 24 entries meets a product 3 x 4 x 3."""
    outer, middle, inner = dims.leaf(3), dims.leaf(4), dims.leaf(3)
    pieces = [dims.leaf(12), dims.leaf(24)]
    terms = [dims.product([outer, middle, inner]), dims.concatenation(pieces)]
    dims.unify(*(reversed(terms) if swapped else terms))
    assert [x.size for x in dims.leaves_of(outer)] == [1, 2]
    for piece, n in zip(pieces, (1, 2), strict=True):
        factors = dims.factor(piece, [n, 4, 3])
        assert alike([factors[1], middle])
        assert alike([factors[2], inner])
    assert alike([dims.factor(pieces[1], [2, 12])[0], dims.pieces_of(outer)[1]])
    assert not any(x.frozen for t in (outer, middle, inner) for x in dims.leaves_of(t))
    first, _ = layout.positions(terms[1], middle)  # one for each piece
    np.testing.assert_array_equal(first, [*np.repeat(np.arange(4), 3), *[-1] * 24])


def test_a_product_is_split_along_its_outermost_factor():
    outer, middle, inner = dims.leaf(3), dims.leaf(2), dims.leaf(2)
    parts = dims.split(dims.product([outer, middle, inner]), [4, 8])
    assert [p.size for p in parts] == [4, 8]
    assert [x.size for x in dims.leaves_of(outer)] == [1, 2]
    for part, n in zip(parts, (1, 2), strict=True):
        first, *rest = dims.factor(part, [n, 2, 2])
        assert first.size == n
        assert alike([rest[0], middle])
        assert alike([rest[1], inner])
    parts = dims.split(dims.product([middle, inner, dims.leaf(3)]), [3, 9])
    assert [p.size for p in parts] == [3, 9]  # 1 and 3 of 2 x 2
    assert middle.frozen == inner.frozen != ""
    assert "2 x 2 x 3 and as 3 + 9" in middle.frozen
    assert [bool(x.frozen) for x in dims.leaves_of(parts[1])] == [True, False]


def test_pieces_that_cut_through_two_factors_freeze_them():
    """Pieces of 4 and 8 entries are 2 + 4 times 2, and no pieces of 2 x 3 times 2."""
    factors = [dims.leaf(2), dims.leaf(3), dims.leaf(2)]
    pieces = [dims.leaf(4), dims.leaf(8)]
    dims.unify(dims.product(factors), dims.concatenation(pieces))
    heads = [dims.factor(p, [p.size // 2, 2]) for p in pieces]
    assert alike([factors[2], heads[0][1], heads[1][1]])
    assert not factors[2].frozen
    why = "an axis of size 12 is used both as 2 x 3 x 2 and as (2 x 2) + (4 x 2)"
    for one in (factors[0], factors[1], heads[0][0], heads[1][0]):
        assert one.frozen == why


def test_sizes_have_to_be_equal():
    with pytest.raises(ValueError, match="sizes 3 and 4"):
        dims.unify(dims.leaf(3), dims.leaf(4))


def test_a_term_says_why_it_is_frozen():
    d = dims.leaf(6)
    dims.freeze(d, "first")
    dims.freeze(d, "second")
    parts = dims.factor(d, [2, 3])
    assert {x.frozen for x in parts} == {"first"}
