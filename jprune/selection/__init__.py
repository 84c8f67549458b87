"""Exact selection: masks that keep the best k of all scores.

Masks:

    top_k                  the k largest scores of the whole tree (the exact top-k)
    top_k_per_leaf         the k largest of each leaf, with a k for each
    top_k_with_floors      the k largest of the tree, with a minimum for each leaf
    top_within_budget      the highest scores per cost, within a budget
    count_top_k            how many entries of each leaf `top_k` keeps

Gates:

    soft_top_k             a differentiable relaxation of `top_k`, whose gates sum to k

For links of your own:

    kept_count             the k that a sparsity stands for (type `Count`)
    check_sparsity         raises unless a sparsity is in [0, 1]
    clip_sparsity          clips a traced sparsity, and reports what is outside
    check_no_nan           raises if a score is NaN

Scores are compared as order-preserving integers, and the threshold is found by
counting, not by sorting: exact for every dtype, for a traced k, under `jit` and `vmap`,
and on sharded leaves without gathering them. Ties go to the lower index. A NaN raises;
in a trace it raises under `checkify` only, and otherwise ranks above all numbers.

To read the code, start with `_top_k`. It gets the threshold of each leaf from
`_cutoffs`; `_boundary` finds thresholds by counting, which `_kernels` does; `_batching`
stacks leaves, and `_rows` cuts those of all shapes into the rows of one array.
"""

from jprune._core.deprecation import renamed as _renamed
from jprune.selection._kept_count import check_sparsity as check_sparsity
from jprune.selection._kept_count import clip_sparsity as clip_sparsity
from jprune.selection._kept_count import kept_count as kept_count
from jprune.selection._soft import soft_top_k as soft_top_k
from jprune.selection._top_k import Count as Count
from jprune.selection._top_k import check_no_nan as check_no_nan
from jprune.selection._top_k import count_top_k as count_top_k
from jprune.selection._top_k import top_k as top_k
from jprune.selection._top_k import top_k_per_leaf as top_k_per_leaf
from jprune.selection._top_k import top_k_with_floors as top_k_with_floors
from jprune.selection._top_k import top_within_budget as top_within_budget

__getattr__ = _renamed(__name__, {"known_kept_count": "jprune.selection.kept_count"})
