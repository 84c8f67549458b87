"""More than 2^31 scores, of which it is known how often each value occurs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import selection
from jprune._core import counting

VALUES = 7  # the column modulo this is the score


def _leaf(shape, dtype):
    """Each row holds 0, 1, ..., 6, 0, 1, ... ."""

    @jax.jit
    def make():
        return (jax.lax.broadcasted_iota(jnp.int32, shape, 1) % VALUES).astype(dtype)

    return make()


def _in_a_row(columns, value):
    return len(range(value, columns, VALUES))


def _expected(shapes, k):
    """Per leaf how many are kept, the value at the cut, and how many have it and stay.

    In Python's integers: all above the value, then the ties leaf by leaf.
    """
    rest = k
    for value in reversed(range(VALUES)):
        ties = [rows * _in_a_row(columns, value) for rows, columns in shapes]
        if rest < sum(ties):
            break
        rest -= sum(ties)
    else:
        return [rows * columns for rows, columns in shapes], -1, [0] * len(shapes)
    taken = []
    for n in ties:
        taken.append(min(rest, n))
        rest -= taken[-1]
    above = [
        rows * sum(_in_a_row(columns, v) for v in range(value + 1, VALUES))
        for rows, columns in shapes
    ]
    return [a + t for a, t in zip(above, taken, strict=True)], value, taken


@functools.partial(jax.jit, static_argnames=("value", "take"))
def _wrong(x, mask, value, take):
    """In how many rows the mask is not what a cut at a value and a tie makes it."""
    each = _in_a_row(x.shape[1], value) if value >= 0 else 1
    rows, rest = divmod(take, each)
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) // VALUES
    first = (row < rows) | ((row == rows) & (place < rest))
    right = mask == ((x > value) | ((x == value) & first))
    return jnp.sum(~jnp.all(right, axis=1), dtype=jnp.int32)


def _check(scores, k, masks):
    shapes = [x.shape for x in scores]
    counts, value, taken = _expected(shapes, k)
    assert sum(counts) == k
    found = selection.count_top_k(scores, k)
    assert [int(n) for n in found] == counts
    for x, mask, take in zip(scores, masks, taken, strict=True):
        assert int(_wrong(x, mask, value, take)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bfloat16])
def test_a_tree_of_more_than_2_31_scores(dtype):
    shapes = [(20_000, 22_000)] * 4 + [(20_001, 22_001)]
    scores = [_leaf(shape, dtype) for shape in shapes]
    n = sum(math.prod(shape) for shape in shapes)
    assert n > 2**31 + 2**23
    for k in (2**31 + 12_345, n - 1):
        _check(scores, k, selection.top_k(scores, k))
    sparsity = 0.01
    k = selection.kept_count(n, sparsity)
    assert k > 2**31
    _check(scores, k, jax.jit(lambda scores: selection.top_k(scores, k))(scores))
    masks, traced = jax.jit(
        lambda scores, s: (
            selection.top_k(scores, selection.kept_count(n, s)),
            selection.kept_count(n, s),
        )
    )(scores, np.float32(sparsity))
    # The number that the sparsity of 32 bits stands for.
    k = round(n - n * float(np.float32(sparsity)))
    assert int(counting.gap(traced, counting.total(k))) == 0
    _check(scores, k, masks)


@pytest.mark.slow
def test_a_leaf_of_more_than_2_31_scores():
    scores = [_leaf((2**16, 2**15 + 5), jnp.int8), _leaf((100, 101), jnp.int8)]
    n = sum(x.size for x in scores)
    assert n > 2**31
    for k in (n // 3, 2**31 + 1, n - 10_000, n):
        _check(scores, k, selection.top_k(scores, k))
