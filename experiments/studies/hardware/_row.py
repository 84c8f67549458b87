"""A published figure of an accelerator and the prediction of the model.

A row is evidence unless it is marked, such as "fitted" if a parameter of the machine
was set from it. Tags of sources: [V] read in a stored document, [D] derived from one,
[M] measured, [R] recalled from the paper and not read again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jprune import hardware as hw

COST = jax.jit(hw.cost)


class Row(NamedTuple):
    """A published figure and its prediction.

    Attributes:
      machine: name of the machine.
      quantity: name of the quantity, with its unit.
      predicted: prediction of the model.
      reference: figure of the source.
      source: title, year and tag of the source.
      mark: empty; `exact` for definitions and closed forms; `fitted` or `assumed`.
    """

    machine: str
    quantity: str
    predicted: float
    reference: float
    source: str
    mark: str = ""

    @property
    def error(self) -> float:
        """Returns the signed relative error."""
        return self.predicted / self.reference - 1


def seconds(net: hw.Workload, machine: hw.Accelerator) -> float:
    """Returns the predicted seconds of a workload."""
    return float(COST(net, machine).seconds)


def median_error(found: Sequence[Row], marks: Sequence[str]) -> float:
    """Returns the median absolute error, in percent, of the rows with these marks."""
    return 100 * float(np.median([abs(r.error) for r in found if r.mark in marks]))
