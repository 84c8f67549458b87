"""Searches over designs, whatever a design means.

    grid                   all combinations of values
    random_designs         log-uniform draws between bounds
    pareto                 which points no other point beats

A design is a dict of numbers, many along the leading axis. `jprune.hardware.search`
costs designs of accelerators.
"""

from jprune.search._designs import check_bounds as check_bounds
from jprune.search._designs import grid as grid
from jprune.search._designs import pareto as pareto
from jprune.search._designs import random_designs as random_designs
