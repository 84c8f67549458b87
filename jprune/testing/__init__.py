"""Checks that every pruner and every algorithm has to pass; run them on your own.

check_pruner           a pruner: masks, dtypes, sparsity, jit, vmap, sharding, training
check_algorithm        an `Algorithm`: init, step, finish, jit, meshes, checkpoints
example_params         small params of many kinds of leaves
"""

from jprune.testing._algorithms import check_algorithm as check_algorithm
from jprune.testing._pruners import check_pruner as check_pruner
from jprune.testing._pruners import example_params as example_params
