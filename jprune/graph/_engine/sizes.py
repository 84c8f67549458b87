"""Questions about the sizes of axes, which are integers or symbolic dimensions.

A symbolic dimension of `jax.export`, such as b or 4 * t + 1, is a number that is not
known while the function is recorded. Equality, sums and products of such numbers are
decided as those of polynomials. Their order often is not, and raises.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax import export

from jprune._core import base
from jprune._core.compat import InconclusiveDimensionOperation

_NUMBERS = (int, np.integer)


def is_symbolic(n: Any) -> bool:
    """Returns whether a size is a symbolic dimension rather than a number."""
    return not isinstance(n, _NUMBERS)


def count_of(axes: Sequence[Any]) -> int:
    """Returns the number of elements of an array with these dims."""
    return math.prod([d.size for d in axes])


def known(n: Any) -> Any:
    """Returns a size or a cost that has to be a number.

    Args:
      n: the size or cost.

    Raises:
      PruningError: if it is symbolic.
    """
    if export.is_symbolic_dim(n):
        raise base.PruningError(
            f"The cost depends on the symbolic size {n}, so it is no number. Trace the "
            "function for inputs of known shapes: a plan that is made there fits all."
        )
    return n


def multiplied(sizes: Sequence[Any]) -> Any:
    """Returns a product of sizes.

    Args:
      sizes: integers and symbolic dimensions; or numbers, perhaps fractional or traced.

    Raises:
      PruningError: if some are symbolic and others are neither integers nor symbolic.
    """
    return math.prod(_compatible(sizes))


def added(sizes: Iterable[Any]) -> Any:
    """Returns a sum of sizes, under the conditions of `multiplied`."""
    return sum(_compatible(list(sizes)))


def _compatible(sizes: Sequence[Any]) -> Sequence[Any]:
    symbols = [n for n in sizes if export.is_symbolic_dim(n)]
    if symbols and len(symbols) < sum(map(is_symbolic, sizes)):
        known(symbols[0])
    return sizes


def divides(part: Any, whole: Any) -> bool:
    """Returns whether a size is known to be a multiple of another, which is not 0."""
    try:
        return whole % part == 0
    except InconclusiveDimensionOperation:
        return False


def exceeds(a: Any, b: Any) -> bool | None:
    """Returns whether a size is greater than another; None if that is not known."""
    try:
        return a > b
    except InconclusiveDimensionOperation:
        return None


def key_of(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Returns a key of a shape; equal names of two scopes have different keys."""
    return tuple([(n.scope, str(n)) if is_symbolic(n) else n for n in shape])
