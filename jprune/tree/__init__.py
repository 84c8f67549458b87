"""Paths of leaves, rules and predicates on paths, and the roles of kernel axes.

    leaf_paths, leaf_path                  paths, such as "dense/kernel"
    by_path, map_with_path                 leaves by their paths
    label, match_rules                     values for leaves, by rules on paths
    is_kernel, is_float                    predicates: which leaves are pruned
    matching, excluding, Matching          predicates from regular expressions
    check_pattern                          raises unless a pattern is one
    flags, only, merged                    mark leaves, hide the others, fill them in
    Where, check_where                     what `where=` takes: predicates, patterns,
                                           or a tree of bools
    in_tree_of                             raises unless two trees have the same paths
    kernel_axes, KernelAxes                input and output axes of a kernel
    KernelLayout                           the type of `kernel_axes`
    layout_from_names                      the same roles, from logical axis names

A path joins the keys that lead to a leaf with `/`. It is the same for Flax Linen, Flax
NNX, Equinox and plain dicts: boxes that hold one array under `.value` (an NNX Variable,
a Linen partitioned parameter) are left out.

To read the code, start with `_paths.leaf_path`.
"""

from jprune.tree._axes import KernelAxes as KernelAxes
from jprune.tree._axes import KernelLayout as KernelLayout
from jprune.tree._axes import kernel_axes as kernel_axes
from jprune.tree._axes import layout_from_names as layout_from_names
from jprune.tree._compare import in_tree_of as in_tree_of
from jprune.tree._paths import by_path as by_path
from jprune.tree._paths import check_pattern as check_pattern
from jprune.tree._paths import label as label
from jprune.tree._paths import leaf_path as leaf_path
from jprune.tree._paths import leaf_paths as leaf_paths
from jprune.tree._paths import map_with_path as map_with_path
from jprune.tree._paths import match_rules as match_rules
from jprune.tree._predicates import Matching as Matching
from jprune.tree._predicates import excluding as excluding
from jprune.tree._predicates import is_float as is_float
from jprune.tree._predicates import is_kernel as is_kernel
from jprune.tree._predicates import matching as matching
from jprune.tree._predicates import merged as merged
from jprune.tree._predicates import only as only
from jprune.tree._where import Where as Where
from jprune.tree._where import check_where as check_where
from jprune.tree._where import flags as flags
