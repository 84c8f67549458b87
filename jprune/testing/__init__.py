"""Checks of the contracts that every pruner and every algorithm has to satisfy.

    check_pruner(pruner)             a pruner of your own: masks, jit, abstract init,
                                     exact zeros in training, shardings
    check_algorithm(algorithm, ...)  an `Algorithm`: its state, donation, checkpoints,
                                     `scan`, `vmap`, meshes
    example_params()                 small params with leaves of many kinds

    >>> import jprune as jp
    >>> jp.testing.check_pruner(jp.recipes.magnitude(0.5))

A check raises AssertionError where the contract is broken, with its name: "The pruner
fails the check 'jit': ...". Errors of the pruner itself pass, with a note that names
the check. To read the code, see
`_pruners` and `_algorithms`: each check is a function there.
"""

from jprune.testing._algorithms import check_algorithm as check_algorithm
from jprune.testing._pruners import check_pruner as check_pruner
from jprune.testing._pruners import example_params as example_params
