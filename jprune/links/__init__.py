"""Links: the parts that pruners are chained from with `optax.chain`.

    score_by_*  ->  (normalize_by_* | pool_over_*)*  ->  keep_*

    score_by_magnitude, score_by_taylor, ...       params and gradients -> scores
    pool_over_axes, pool_over_blocks               one score for each channel or block
    normalize_by_lamp, normalize_by_leaf_norm      scores comparable between leaves
    keep_top                                       scores -> masks at a sparsity
    keep_n_of_m                                    the N:M pattern, such as 2:4
    keep_within_budget, keep_above                 under a budget; above a threshold
    uniform, erdos_renyi_kernel, rescaled_global   allocation: a sparsity for each leaf
    cubic, geometric                               sparsity schedules
    select, prune                                  choose leaves; prune once

Write a criterion of your own with `stateless`. Read `_scores`, `_pooling` and
`_keep`, in the order of a chain.
"""

from jprune.links._allocate import Allocation as Allocation
from jprune.links._allocate import Pins as Pins
from jprune.links._allocate import erdos_renyi as erdos_renyi
from jprune.links._allocate import erdos_renyi_kernel as erdos_renyi_kernel
from jprune.links._allocate import rescaled_global as rescaled_global
from jprune.links._allocate import uniform as uniform
from jprune.links._common import floating as floating
from jprune.links._common import require as require
from jprune.links._common import stateless as stateless
from jprune.links._keep import KeepState as KeepState
from jprune.links._keep import bytes_of as bytes_of
from jprune.links._keep import keep_above as keep_above
from jprune.links._keep import keep_n_of_m as keep_n_of_m
from jprune.links._keep import keep_top as keep_top
from jprune.links._keep import keep_within_budget as keep_within_budget
from jprune.links._pooling import Reduce as Reduce
from jprune.links._pooling import l2_norm as l2_norm
from jprune.links._pooling import normalize_by_lamp as normalize_by_lamp
from jprune.links._pooling import normalize_by_leaf_norm as normalize_by_leaf_norm
from jprune.links._pooling import pool_over_axes as pool_over_axes
from jprune.links._pooling import pool_over_blocks as pool_over_blocks
from jprune.links._pooling import spread as spread
from jprune.links._schedules import cubic as cubic
from jprune.links._schedules import geometric as geometric
from jprune.links._scores import FisherState as FisherState
from jprune.links._scores import MovementState as MovementState
from jprune.links._scores import RandomState as RandomState
from jprune.links._scores import score_by_fisher as score_by_fisher
from jprune.links._scores import score_by_gate as score_by_gate
from jprune.links._scores import score_by_gradient as score_by_gradient
from jprune.links._scores import score_by_magnitude as score_by_magnitude
from jprune.links._scores import score_by_movement as score_by_movement
from jprune.links._scores import score_by_random as score_by_random
from jprune.links._scores import score_by_taylor as score_by_taylor
from jprune.links._scores import score_by_weight as score_by_weight
from jprune.links._select import prune as prune
from jprune.links._select import select as select
