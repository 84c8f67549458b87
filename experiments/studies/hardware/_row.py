"""A figure of an accelerator beside what the model says.

A row is evidence unless it is marked: "fitted" where a parameter of the machine was set
from it. Tags of sources: [V] read in a stored document, [D] derived from such, [M]
measured, [R] recalled from the paper and not read again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jprune import hardware as hw

COST = jax.jit(hw.cost)


class Row(NamedTuple):
    """A figure.

    Attributes:
      machine: What it is of.
      quantity: What it is, with its unit.
      predicted: What the model says.
      reference: What the source says.
      source: Title, year and tag.
      mark: Empty, `exact` for definitions and closed forms, `fitted` or `assumed`.
    """

    machine: str
    quantity: str
    predicted: float
    reference: float
    source: str
    mark: str = ""

    @property
    def error(self) -> float:
        """Returns the relative error, signed."""
        return self.predicted / self.reference - 1


def seconds(net: hw.Workload, machine: hw.Accelerator) -> float:
    """Returns the seconds of a workload."""
    return float(COST(net, machine).seconds)


def median_error(found: Sequence[Row], marks: Sequence[str]) -> float:
    """Returns the median of the errors' sizes, in percent, of rows with such marks."""
    return 100 * float(np.median([abs(r.error) for r in found if r.mark in marks]))
