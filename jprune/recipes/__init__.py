"""Published methods, each a pruner composed of links.

A recipe is a function that returns a pruner: give it to `jprune.sparsify` to
prune during training, or to `jprune.prune` to prune once. Its docstring cites
the paper and says where it deviates.
"""

from jprune.recipes.at_initialization import random_erk as random_erk
from jprune.recipes.at_initialization import snip as snip
from jprune.recipes.magnitude import global_magnitude as global_magnitude
from jprune.recipes.magnitude import gradual_magnitude as gradual_magnitude
from jprune.recipes.magnitude import magnitude as magnitude
from jprune.recipes.patterns import n_of_m as n_of_m

__all__ = [
    "global_magnitude",
    "gradual_magnitude",
    "magnitude",
    "n_of_m",
    "random_erk",
    "snip",
]
