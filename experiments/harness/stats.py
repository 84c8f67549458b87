"""Means and standard deviations over seeds, and their formatting."""

from collections.abc import Sequence

import numpy as np


def mean_and_spread(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (None for a single value)."""
    array = np.asarray(values, np.float64)
    spread = rounded(array.std(ddof=1)) if array.size > 1 else None
    return rounded(array.mean()), spread


def plus_minus(values: Sequence[float]) -> str:
    """Returns `mean ± standard deviation` to two digits."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def rounded(value: float) -> float:
    """Returns a Python float, rounded to four digits for the JSON."""
    return round(float(value), 4)
