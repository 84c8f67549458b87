"""Unsigned 64-bit integers as two words of 32 bits, for JAX without 64-bit types."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.counting import Total

_WORD = 2**32 - 1
_PLACES = 47  # binary digits of a `Total`


class Words(NamedTuple):
    """An unsigned integer below 2^64, or an array of them.

    Attributes:
      high: uint32, the upper 32 bits.
      low: uint32, the lower 32 bits.
    """

    high: jax.Array
    low: jax.Array


def of_known(n: int) -> Words:
    """Converts a Python integer to `Words`.

    Args:
      n: integer in [0, 2^64).

    Returns:
      The same number.

    Example:
      >>> [int(word) for word in of_known(2**33 + 5)]
      [2, 5]
    """
    return Words(jnp.asarray(n >> 32, jnp.uint32), jnp.asarray(n & _WORD, jnp.uint32))


def of_total(n: Total) -> Words:
    """Converts a `Total` to `Words`.

    Args:
      n: a `Total`.

    Returns:
      The same number.

    Example:
      >>> from jprune._core import counting
      >>> [int(word) for word in of_total(counting.total(2**33 + 5))]
      [2, 5]
    """
    # `rough` is off by less than 2^30, so the quotient is off by less than 1/2.
    above = (n.rough - n.modular.astype(jnp.float32)) * np.float32(2.0**-32)
    return Words(jnp.maximum(jnp.round(above), 0).astype(jnp.uint32), n.modular)


def product(a: Words, x: jax.Array) -> Words:
    """Returns a * x.

    Args:
      a: integer below 2^40.
      x: uint32 array, below 2^24.

    Returns:
      The exact product.

    Example:
      >>> a = Words(jnp.uint32(1), jnp.uint32(7))  # 2^32 + 7
      >>> [int(word) for word in product(a, jnp.uint32(2**20))]
      [1048576, 7340032]
    """
    half = np.uint32(0xFFFF)
    a1, a0, x1, x0 = a.low >> 16, a.low & half, x >> 16, x & half
    # Sums of products of 16-bit halves, which stay below 2^32.
    middle = x0 * a1 + (x0 * a0 >> 16)
    carry = x1 * a0 + (middle & half)
    high = x1 * a1 + (middle >> 16) + (carry >> 16) + x * a.high
    return Words(high, x * a.low)


def shifted(a: Words, places: jax.Array) -> Words:
    """Returns floor(a / 2^places).

    Args:
      a: integer below 2^64.
      places: uint32 array, in [0, 63].

    Returns:
      The quotient.

    Example:
      >>> number = Words(jnp.uint32(6), jnp.uint32(0))  # 6 * 2^32
      >>> [int(word) for word in shifted(number, jnp.uint32(33))]
      [0, 3]
    """
    far, by = places >= 32, places & np.uint32(31)
    high, low = a.high >> by, a.low >> by
    # In two steps, because shifting a word by 32 places is undefined.
    low |= (a.high << 1) << (np.uint32(31) - by)
    return Words(jnp.where(far, jnp.zeros_like(high), high), jnp.where(far, high, low))


def rounded(a: Words, places: jax.Array) -> Total:
    """Returns a / 2^places, rounded to the nearest integer, halves to even.

    Args:
      a: integer below 2^64.
      places: uint32 array, in [1, 64].

    Returns:
      The rounded quotient, which has to be below 2^47.

    Example:
      >>> halves = jnp.array([1, 2, 3, 5], jnp.uint32)  # 1/2, 1, 3/2, 5/2
      >>> rounded(Words(halves * 0, halves), jnp.uint32(1)).modular.tolist()
      [0, 1, 2, 2]
    """
    one = np.uint32(1)
    doubled = shifted(a, places - one)
    whole = shifted(doubled, jnp.ones_like(places))
    none = jnp.zeros_like(a.high)
    lowest = Words(jnp.where(a.low == 0, a.high & -a.high, none), a.low & -a.low)
    left = shifted(lowest, places - one)
    lost = (left.high | left.low) == 0  # the lowest bit is shifted out
    up = doubled.low & (whole.low | lost.astype(jnp.uint32)) & one
    rough = whole.high.astype(jnp.float32) * np.float32(2.0**32)
    rough += whole.low.astype(jnp.float32) + up.astype(jnp.float32)
    return Total(whole.low + up, rough)


@functools.partial(jax.jit, static_argnames="unit")
def quotient(a: Words, unit: int) -> Total:
    """Returns floor(a / unit), by binary long division.

    Args:
      a: integer below 2^64.
      unit: positive integer, static.

    Returns:
      The quotient, clipped to 2^47 - 1.

    Example:
      >>> found = quotient(Words(jnp.uint32(2**20), jnp.uint32(9)), 3 * 2**40)
      >>> int(found.modular), float(found.rough)
      (1365, 1365.0)
    """
    places = [i for i in reversed(range(_PLACES)) if unit << i < 2**64]
    multiples = [unit << i for i in places]
    table = Words(
        jnp.asarray(np.array([m >> 32 for m in multiples], np.uint32)),
        jnp.asarray(np.array([m & _WORD for m in multiples], np.uint32)),
    )

    def subtract(rest: Words, multiple: Words) -> tuple[Words, Any]:
        borrow = rest.low < multiple.low
        fits = (rest.high > multiple.high) | ((rest.high == multiple.high) & ~borrow)
        less = Words(
            rest.high - multiple.high - borrow.astype(jnp.uint32),
            rest.low - multiple.low,
        )
        return jax.tree.map(lambda x, y: jnp.where(fits, x, y), less, rest), fits

    _, digits = lax.scan(subtract, a, table)
    powers = np.array([2**i for i in places], np.int64)
    modular = digits.astype(jnp.uint32) * (powers & _WORD).astype(np.uint32)
    rough = digits.astype(jnp.float32) * powers.astype(np.float32)
    return Total(jnp.sum(modular, dtype=jnp.uint32), jnp.sum(rough))
