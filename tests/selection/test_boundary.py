"""How many passes a search takes: on bad keys, and against an adversary."""

import contextlib

import jax
import numpy as np
import pytest
from jax import experimental

from jprune._core import counting
from jprune.selection import _boundary

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64


def bound(bits):
    """Passes for keys of some bits.

    A pass that divides the bracket evenly gains three bits, one that guesses at
    least one bit, because it has a pivot in the middle of what is left on either
    side. If it gained less than three, an even one follows. So two passes gain at
    least four bits; and two more for what rounding leaves.
    """
    return 2 * bits // 4 + 2


# Turns are of NumPy on the host, and of JAX in a trace.
HOST = _boundary.begin, _boundary.pivots, _boundary.narrow
TRACE = tuple(map(jax.jit, HOST))
both_sides = pytest.mark.parametrize("turns", [HOST, TRACE], ids=["host", "trace"])


def start(begin, keys, budget, size):
    task = _boundary.Task(counting.total(np.array([budget])), np.uint32([size]))
    around = _boundary.bracket(keys[:1], keys[-1:], task.sizes, evenly=True)
    return begin(around, task), task


def passes(turns, keys, budget):
    """Searches sorted keys with NumPy as what counts, and checks what is found."""
    begin, pivots, narrow = turns
    turn, task = start(begin, keys, budget, keys.size)
    number = 0
    while bool(turn.open[0]):
        at = np.asarray(pivots(turn.bracket, task))
        reach = keys.size - np.searchsorted(keys, at, side="left")
        turn = narrow(turn, task, at, reach.astype(np.uint32))
        number += 1
        assert number <= 100
    if budget >= keys.size:
        assert number == 0
        return 0
    low, last, at_low, above, _ = (x[0] for x in jax.device_get(turn.bracket))
    assert above == (keys > last).sum()
    assert above == budget or (
        low == last and at_low == (keys >= low).sum() and above <= budget < at_low
    )
    return number


def budgets(size, rng):
    some = rng.integers(0, size + 1, 5).tolist()
    return {0, 1, 2, size // 3, size // 2, size - 1, size, size + 1, *some}


def families(bits, rng):
    """Keys that mislead who guesses that they are spread evenly."""
    top, n = 2**bits - 1, 1000
    small = rng.integers(0, 2**10, n).tolist()
    yield "two far clusters", [*range(n), *(top - i for i in range(n))]
    yield "two wide clusters", [*small, *(top - x for x in small)]
    yield "geometric", [int(2.0 ** (bits * i / n)) for i in range(n)]
    yield "geometric from the top", [top - int(2.0 ** (bits * i / n)) for i in range(n)]
    yield "all equal", [7] * n
    yield "an outlier below", [0, *(top - x for x in small)]
    yield "an outlier above", [*small, top]
    yield "outliers at both ends", [0, *(top // 3 + x for x in small), top]
    yield "powers of two", [2**i for i in range(bits) for _ in range(i + 1)]
    yield "in a row", range(n)
    yield "zeros", [0] * (4 * n) + rng.integers(0, top, n, np.uint64).tolist()
    middle = rng.integers(top // 2, top, n, np.uint64).tolist()
    yield "zeros in the middle", [top // 2] * (4 * n) + middle
    yield "gaps", [int(top * f) + i for f in (0, 1e-6, 0.3, 0.9) for i in range(50)]
    yield (
        "towers",
        [2 ** (2**i) for i in range(6)] + [top - 2 ** (2**i) for i in range(6)],
    )
    thirds = [
        sum((i >> j & 1) * 2 / 3 ** (j + 1) for j in range(9)) for i in range(512)
    ]
    yield "thirds", [int(top * x) for x in thirds]
    yield "exponents in thirds", [int(2 ** (bits * x)) for x in thirds]


@both_sides
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_no_keys_take_many_passes(bits, turns):
    rng, most = np.random.default_rng(bits), {}
    dtype = np.uint64 if bits == 64 else np.uint32
    with enable_x64(True) if bits == 64 else contextlib.nullcontext():
        for name, numbers in families(bits, rng):
            held = [min(max(x, 0), 2**bits - 1) for x in numbers]
            keys = np.sort(np.array(held, dtype))
            most[name] = max(passes(turns, keys, b) for b in budgets(keys.size, rng))
    assert max(most.values()) <= bound(bits), most
    assert max(most.values()) > bound(bits) // 2, most  # the keys are bad indeed
    assert most["all equal"] == 0


@both_sides
@pytest.mark.parametrize("bits", [16, 32])
def test_no_adversary_makes_many_passes(bits, turns):
    """Who answers has no keys, but keeps the widest bracket and misleads guesses."""
    begin, pivots, narrow = turns
    rng, most, size = np.random.default_rng(0), 0, 2**31
    for _ in range(40):
        budget = int(rng.integers(1, size - 1))
        ends = np.array([0, 2**bits - 1], np.uint32)
        turn, task = start(begin, ends, budget, size)
        number = 0
        while bool(turn.open[0]):
            old = jax.device_get(turn.bracket)
            at = np.asarray(pivots(turn.bracket, task))
            keys = at[0].astype(np.int64)
            cells = np.unique([int(old.low[0]), *keys, int(old.last[0]) + 1])
            width = np.diff(cells)
            cell = rng.choice(np.flatnonzero(width == width.max()))
            many, few = int(old.at_low[0]), int(old.above[0])
            high = [budget + 1, many, (budget + many) // 2][rng.integers(3)]
            low = [budget - 1, few, (budget + few) // 2][rng.integers(3)]
            high, low = max(high, budget + 1), min(low, budget - 1)
            answer = np.where(keys <= cells[cell], high, low)
            turn = narrow(turn, task, at, answer[None].astype(np.uint32))
            number += 1
            assert number <= 100
        most = max(most, number)
    assert bound(bits) // 2 < most <= bound(bits)


def _float_keys(x):
    bits = np.sort(x.astype(np.float32)).view(np.int32).astype(np.int64)
    return (np.where(bits < 0, -(2**31) - bits, bits) + 2**31).astype(np.uint32)


def test_scores_as_they_are_take_few_passes():
    rng, n = np.random.default_rng(0), 200_000
    normal = rng.normal(size=n)
    for scores in (
        normal,
        np.abs(normal),
        rng.random(n),
        np.where(rng.random(n) < 0.5, 0, np.abs(normal)),
        normal**2,
    ):
        keys = _float_keys(scores)
        shares = (0.01, 0.1, 0.3, 0.5, 0.9)
        assert max(passes(HOST, keys, int(n * d)) for d in shares) <= 10


def test_groups_are_searched_side_by_side():
    """Each leaf by itself: some closed from the start, and all as if alone."""
    rng = np.random.default_rng(1)
    leaves = [np.sort(rng.integers(0, 2**s, 100, np.uint64)) for s in (4, 16, 31, 32)]
    keys = np.array(leaves).astype(np.uint32)
    wanted = np.array([0, 30, 99, 100])
    task = _boundary.Task(counting.total(wanted), np.full(4, 100, np.uint32))
    first = _boundary.bracket(keys[:, 0], keys[:, -1], task.sizes, evenly=True)
    turn = _boundary.begin(first, task)
    assert turn.open.tolist() == [False, True, True, False]

    def count(pivots, is_open):
        rows = zip(keys, pivots, strict=True)
        return np.uint32([(row >= p[:, None]).sum(1) for row, p in rows])

    found = _boundary.boundary(turn, task, count, on_host=True)
    for row, low, last, k in zip(keys, found.low, found.last, wanted, strict=True):
        if k < 100:
            above = int((row > int(last)).sum())
            assert above == k or (low == last and above < k < (row >= int(low)).sum())
