"""Search over designs of any kind: grids, random draws, evolution.

A design is a dict of numbers, name -> array with one entry per design.

    grid                   all combinations of given values
    random_designs         log-uniform draws between bounds
    pareto                 the designs that no other design beats
    draw_pareto            a picture of them; needs matplotlib (`jprune[plot]`)
    nsga2, Front           a Pareto front by NSGA-II, where a grid would be too large
    genetic, Found         the minimum of a loss over vectors, by a genetic search
    project_to_mean        nearest vector between bounds with a given mean
    check_bounds           raises for bounds that are not positive or out of order

Read `grid` and `pareto` first, then `nsga2`. For accelerators,
`jprune.hardware.evolve.nsga2` finds a Pareto front, and `jprune.hardware.search`
evaluates designs or descends by gradients. `jprune.attention.allot` searches the
sparsity of each block.
"""

from jprune.search._designs import check_bounds as check_bounds
from jprune.search._designs import grid as grid
from jprune.search._designs import pareto as pareto
from jprune.search._designs import random_designs as random_designs
from jprune.search._draw import draw_pareto as draw_pareto
from jprune.search._genetic import Found as Found
from jprune.search._genetic import genetic as genetic
from jprune.search._genetic import project_to_mean as project_to_mean
from jprune.search._nsga2 import Front as Front
from jprune.search._nsga2 import nsga2 as nsga2
