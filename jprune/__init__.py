"""Pruning for JAX: sparsity as pure functions over parameter and mask pytrees.

    import jprune as jp

    pruner = jp.recipes.gradual_magnitude(0.9, begin=1_000, steps=20_000)
    tx = jp.sparsify(optax.adamw(1e-3), pruner, every=100)

What is inside, in the order to read it:

    recipes        published methods, each a composition of the parts below
    links          the parts of a pruner: scores, pooling, masks (top-k, N:M, budgets)
    training       `sparsify` for any Optax optimizer; rewinding and lottery tickets
    learned        masks learned by gradient descent; bi-level pruning (BiP)
    graph          which axes shrink together, and the same function on smaller arrays
    attention      token and head pruning, quantized attention, KV caches
    hardware       what a workload costs on an accelerator; presets and searches

    selection      the exact top-k over a tree, which every sparsity and budget uses
    search         grids, random draws, Pareto fronts, genetic search, for any design
    checkpoint     save and restore through Orbax
    formats        packed and sparse formats, in memory and in files
    testing        checks for pruners of your own
    tree           paths of leaves, predicates and rules
    masks          masks: apply, combine, measure
    gates          differentiable masks
    report         summaries of masks and params, metrics for loggers, pictures
    distill        distillation losses

What most programs need is here as `jp.*`: links, `sparsify`, `prune`, `apply`,
`matching`, `summary`. Each of these names is defined in one of the packages above. Only
the following are shared by all:

    Pruner         what links and most recipes return: an Optax transformation
    Algorithm      a method with a training loop of its own
    Predicate      `(path, leaf) -> bool`, which leaves are pruned
    PruningError, NonFiniteScoreError
                   what is raised, with the leaf and its values
"""

from jprune import attention as attention
from jprune import checkpoint as checkpoint
from jprune import distill as distill
from jprune import formats as formats
from jprune import gates as gates
from jprune import graph as graph
from jprune import hardware as hardware
from jprune import learned as learned
from jprune import links as links
from jprune import masks as masks
from jprune import recipes as recipes
from jprune import report as report
from jprune import search as search
from jprune import selection as selection
from jprune import testing as testing
from jprune import training as training
from jprune import tree as tree
from jprune._core.base import Algorithm as Algorithm
from jprune._core.base import NonFiniteScoreError as NonFiniteScoreError
from jprune._core.base import Predicate as Predicate
from jprune._core.base import Pruner as Pruner
from jprune._core.base import PruningError as PruningError
from jprune._core.deprecation import renamed as _renamed
from jprune.gates import straight_through as straight_through
from jprune.learned import bilevel as bilevel
from jprune.learned import controllers as controllers
from jprune.learned import effective as effective
from jprune.learned import implicit as implicit
from jprune.links import FisherState as FisherState
from jprune.links import KeepState as KeepState
from jprune.links import MovementState as MovementState
from jprune.links import RandomState as RandomState
from jprune.links import cubic as cubic
from jprune.links import geometric as geometric
from jprune.links import keep_above as keep_above
from jprune.links import keep_n_of_m as keep_n_of_m
from jprune.links import keep_top as keep_top
from jprune.links import keep_within_budget as keep_within_budget
from jprune.links import l2_norm as l2_norm
from jprune.links import normalize_by_lamp as normalize_by_lamp
from jprune.links import normalize_by_leaf_norm as normalize_by_leaf_norm
from jprune.links import pool_over_axes as pool_over_axes
from jprune.links import pool_over_blocks as pool_over_blocks
from jprune.links import prune as prune
from jprune.links import score_by_fisher as score_by_fisher
from jprune.links import score_by_gate as score_by_gate
from jprune.links import score_by_gradient as score_by_gradient
from jprune.links import score_by_magnitude as score_by_magnitude
from jprune.links import score_by_movement as score_by_movement
from jprune.links import score_by_random as score_by_random
from jprune.links import score_by_taylor as score_by_taylor
from jprune.links import score_by_weight as score_by_weight
from jprune.links import select as select
from jprune.masks import apply as apply
from jprune.masks import sparsity as sparsity
from jprune.report import metrics as metrics
from jprune.report import print_summary as print_summary
from jprune.report import summary as summary
from jprune.training import RewindState as RewindState
from jprune.training import SparsifyState as SparsifyState
from jprune.training import masks_of as masks_of
from jprune.training import refresh as refresh
from jprune.training import rewind as rewind
from jprune.training import sparsify as sparsify
from jprune.tree import KernelAxes as KernelAxes
from jprune.tree import excluding as excluding
from jprune.tree import is_float as is_float
from jprune.tree import is_kernel as is_kernel
from jprune.tree import kernel_axes as kernel_axes
from jprune.tree import label as label
from jprune.tree import leaf_paths as leaf_paths
from jprune.tree import matching as matching

__version__ = "0.1.0"

__getattr__ = _renamed(
    __name__,
    {
        "allocate": "jprune.links",
        "budgets": "jprune.selection",
        "export": "jprune.formats",
        "fisher": "jprune.links",
        "formats_coordinates": "jprune.formats",
        "formats_tree": "jprune.formats",
        "keep": "jprune.links",
        "lottery": "jprune.training",
        "pooling": "jprune.links",
        "rewinding": "jprune.training",
        "schedules": "jprune.links",
        "scores": "jprune.links",
        "soft_selection": "jprune.selection",
        "sparse_products": "jprune.formats",
        "stability": "jprune.training",
    },
)
