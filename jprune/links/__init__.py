"""Links: the parts of a pruner, which `optax.chain` composes.

    score_by_*  ->  (normalize_by_* | pool_over_*)*  ->  keep_*

    >>> import jprune as jp, optax
    >>> pruner = optax.chain(jp.score_by_magnitude(), jp.keep_n_of_m(2, 4))

Scores, from params and gradients; one for each weight, higher = keep:

    score_by_magnitude     |w|
    score_by_gradient      |g|, for the gradient g
    score_by_taylor        |w g|, first-order change of the loss (SNIP)
    score_by_movement      -sum over steps of w g
    score_by_random        uniform random numbers, drawn once

Scores to be summed over the weights of a group (`jprune.graph.group_scores`):

    score_by_weight        w^p
    score_by_gate          w g
    score_by_fisher        w^2 E[g^2]

Between scores and masks:

    pool_over_axes         one score per channel (filters, input channels)
    pool_over_blocks       one score per block
    normalize_by_lamp      LAMP: scores that compare between leaves
    normalize_by_leaf_norm     scores over the norm of their leaf
    l2_norm                the Euclidean norm, for pooling (reductions: type `Reduce`)

Masks, from scores:

    keep_top               the highest scores of each leaf, or of all leaves
    keep_n_of_m            the N:M pattern, such as 2:4 (`jprune.formats` packs it)
    keep_within_budget     the highest scores per cost, for a budget of bytes or FLOPs
    bytes_of               bytes per weight, the default cost
    keep_above             scores above a threshold

Sparsities, for `keep_top`:

    cubic, geometric       schedules: training step -> sparsity (type `Ramp`)
    uniform, erdos_renyi, erdos_renyi_kernel, rescaled_global
                           allocations: how many entries each leaf keeps (types
                           `Allocation`, `Pins`)

Use of a pruner:

    select                 restricts a pruner to some leaves
    prune                  prunes params once

For links of your own: `stateless` makes a link from a function, `require` and
`floating` check its arguments, `as_pruner` checks a link, and `spread` broadcasts masks
of channels or blocks. The
states of the links here are `KeepState`, `MovementState`, `FisherState`, `RandomState`.

To read the code, follow a chain: `_scores`, `_pooling`, `_keep`.
"""

from jprune.links._allocate import Allocation as Allocation
from jprune.links._allocate import Pins as Pins
from jprune.links._allocate import erdos_renyi as erdos_renyi
from jprune.links._allocate import erdos_renyi_kernel as erdos_renyi_kernel
from jprune.links._allocate import rescaled_global as rescaled_global
from jprune.links._allocate import uniform as uniform
from jprune.links._common import as_pruner as as_pruner
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
from jprune.links._schedules import Ramp as Ramp
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
