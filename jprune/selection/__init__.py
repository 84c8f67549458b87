"""Exact selection: keep the best k of all scores.

    top_k                  of all leaves together; ties go to the lower index
    top_k_per_leaf         k of each leaf
    top_k_with_floors      of all leaves, with a minimum for each
    top_within_budget      the best scores whose costs fit a budget
    soft_top_k             a differentiable relaxation, whose gates sum to k
    kept_count             how many entries a sparsity keeps

Scores are compared as order-preserving integers, and the threshold is found by
counting, not by sorting: exact for every dtype, for a traced k, under `jit` and
`vmap`, and on sharded leaves without gathering them. A NaN raises.

Read `_top_k` first. It asks `_cutoffs` for the threshold of each leaf; `_boundary`
finds thresholds by counting, and `_batching` stacks leaves of equal shape.
"""

from jprune._core.deprecation import renamed
from jprune.selection._kept_count import check_sparsity as check_sparsity
from jprune.selection._kept_count import kept_count as kept_count
from jprune.selection._soft import soft_top_k as soft_top_k
from jprune.selection._top_k import Count as Count
from jprune.selection._top_k import check_no_nan as check_no_nan
from jprune.selection._top_k import count_top_k as count_top_k
from jprune.selection._top_k import top_k as top_k
from jprune.selection._top_k import top_k_per_leaf as top_k_per_leaf
from jprune.selection._top_k import top_k_with_floors as top_k_with_floors
from jprune.selection._top_k import top_within_budget as top_within_budget

__getattr__ = renamed(__name__, {"known_kept_count": "jprune.selection.kept_count"})
