"""Arrays of a recorded program, and what is known of them.

A `Value` is hashed and compared by identity, so values are used as dictionary keys.
"""

from typing import Any, NamedTuple

from jprune.graph._engine.dims import Dim

Axes = tuple[Dim, ...]


class Scalar(NamedTuple):
    """The expression that a constant was computed by, so that sizes in it can change.

    Attributes:
      value: a number, if `primitive` is None.
      primitive: the primitive that was applied to the operands.
      params: parameters of the primitive.
      operands: scalars that it was applied to.
    """

    value: Any
    primitive: Any = None
    params: Any = None
    operands: tuple["Scalar", ...] = ()


class Sum(NamedTuple):
    """Marks a value as a multiple of a sum over some axes, or of a power of one.

    Attributes:
      over: the dims that were summed over; () if the value is no sum.
      power: exponent of the sum.
      of_products: whether the sum is a contraction rather than a plain sum.
      attends: whether both operands of the contraction depend on the inputs.
      mean: whether the sum was divided by the number of its entries.
      direct: whether the value is nothing but a multiple of that power.
      logarithm: whether the value is the logarithm of the sum, plus other terms.
      factor: constant that all elements were multiplied by, last of all.
      divisors: constants that all elements were divided by, in that order. Those that
        count the dims of a later sum make it a mean.
      within: constants that factors of the value were divided by, before they were
        multiplied. Those that count the dims of a later sum are noted.
    """

    over: Axes
    power: float = 1.0
    of_products: bool = False
    attends: bool = False
    mean: bool = False
    direct: bool = True
    logarithm: bool = False
    factor: float = 1.0
    divisors: tuple[Scalar, ...] = ()
    within: tuple[Scalar, ...] = ()


class Value:
    """An array of the program.

    Attributes:
      axes: one dim for each axis.
      dtype: data type.
      constant: the array itself, if it is a constant of the program.
      scalar: expression of the constant that all elements equal, or None.
      sum: what the value is a sum over, or None.
      active: whether it depends on the function's inputs, not on params alone.
      counted: whether it was computed from positions along axes, and constants.
    """

    __slots__ = ("active", "axes", "constant", "counted", "dtype", "scalar", "sum")

    def __init__(self, axes: Axes, dtype: Any, constant: Any = None):
        self.axes = axes
        self.dtype = dtype
        self.constant = constant
        self.scalar: Scalar | None = None
        self.sum: Sum | None = None
        self.active = False
        self.counted = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Recorded shape."""
        return tuple(d.size for d in self.axes)
