"""64-bit integers in two words, against Python's integers and fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune._core import counting, words
from jprune._core.words import Words

WORD = 2**32 - 1


def _words(numbers):
    high = np.array([n >> 32 for n in numbers], np.uint32)
    return Words(jnp.asarray(high), jnp.uint32([n & WORD for n in numbers]))


def _integers(found):
    pairs = zip(np.ravel(found.high), np.ravel(found.low), strict=True)
    return [int(high) * 2**32 + int(low) for high, low in pairs]


def _agrees(total, exact):
    assert np.ravel(total.modular).tolist() == [n % 2**32 for n in exact]
    for rough, n in zip(np.ravel(total.rough), exact, strict=True):
        assert abs(float(rough) - n) <= n * 2.0**-23


def _numbers(rng, count):
    """Of all lengths, with long runs of ones and of zeros."""
    bits = rng.integers(0, 64, count)
    some = [int(rng.integers(0, 2**63)) >> int(b) for b in bits]
    ones = [(1 << int(b)) - 1 for b in bits]
    return [*some, *ones, *(1 << int(b) for b in bits), 0, 1, WORD, 2**32, 2**64 - 1]


@pytest.mark.parametrize("a", [0, 1, 2**16, WORD, 2**32, 2**39 + 12_345, 2**40 - 1])
def test_products(a):
    x = np.random.default_rng(a).integers(0, 2**24, 100).tolist()
    x += [0, 1, 2**16 - 1, 2**16, 2**24 - 1]
    found = jax.jit(words.product)(words.of_known(a), jnp.uint32(x))
    assert _integers(found) == [a * n for n in x]


def test_shifts_round_down_or_to_the_nearest_even():
    rng = np.random.default_rng(0)
    numbers = _numbers(rng, 1_000)
    places = rng.integers(0, 64, len(numbers))
    found = jax.jit(words.shifted)(_words(numbers), jnp.asarray(places, jnp.uint32))
    assert _integers(found) == [
        n >> int(p) for n, p in zip(numbers, places, strict=True)
    ]
    exact = [
        round(Fraction(n, 2 ** (int(p) + 1)))
        for n, p in zip(numbers, places, strict=True)
    ]
    small = [i for i, n in enumerate(exact) if n < 2**47]
    found = jax.jit(words.rounded)(_words(numbers), jnp.asarray(places + 1, jnp.uint32))
    _agrees(
        jax.tree.map(lambda x: x[np.array(small)], found), [exact[i] for i in small]
    )


@pytest.mark.parametrize("unit", [1, 7, 65_537, 2**33 + 1, 3 * 2**40, 2**63, 2**70])
def test_quotients(unit):
    numbers = _numbers(np.random.default_rng(0), 50)
    found = jax.vmap(lambda a: words.quotient(a, unit))(_words(numbers))
    _agrees(found, [min(n // unit, 2**47 - 1) for n in numbers])


def test_totals_and_floats_as_words():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**47, 1_000)
    found = words.of_total(counting.total(numbers))
    assert _integers(found) == numbers.tolist()
    floats = 10.0 ** rng.uniform(-3, 18, 1_000)
    edges = [0, 0.5, 1.5, 2.5, 2**32, 2.0**32 - 256, 5e9, 2.0**63]
    floats = np.float32([*floats, *edges])
    found = words.of_total(jax.jit(counting.nearest)(floats))
    assert _integers(found) == [round(float(x)) for x in floats]
    odd = jnp.array([-1.0, -jnp.inf, jnp.nan, jnp.inf])
    assert _integers(words.of_total(counting.nearest(odd))) == [0, 0, 0, 2**63]
    half = counting.nearest(jnp.bfloat16(1024))
    assert int(half.modular) == 1024
