"""Published pruning methods, each a short composition of links.

    magnitude, gradual_magnitude, global_magnitude, n_of_m      prune small weights
    snip, random_erk                                            prune before training
    movement, soft_movement, soft_threshold, l0, consensus      learn masks and weights
    hydra, edge_popup, sign_supermask, lottery_jackpots         learn masks only
    bip                                                         bi-level pruning
    lottery_ticket                                              rounds with rewinding
    group_magnitude, group_taylor, group_fisher, fpgm,
        network_slimming, beta_rank                             prune whole channels
    mask_sparsity                                               regularizes scales
    precrop                                                     sets initial widths
    layer_lottery                                               chooses branches

Most recipes return a pruner: pass it to `jprune.sparsify` to prune during training, or
to `jprune.prune` to prune once. A recipe that takes a loss or a training function owns
its loop and returns a `jprune.Algorithm`. Recipes for structure take the graph of
`jprune.graph.trace`; of those, `mask_sparsity` returns a link for training, `precrop`
widths and `layer_lottery` the branches to remove.

Each docstring cites the paper and says where the recipe deviates from it. Read
`_magnitude` first; copy the recipe that is closest to your method.
"""

from jprune.recipes._at_initialization import random_erk as random_erk
from jprune.recipes._at_initialization import snip as snip
from jprune.recipes._bilevel import bip as bip
from jprune.recipes._learned_gates import consensus as consensus
from jprune.recipes._learned_gates import l0 as l0
from jprune.recipes._learned_gates import movement as movement
from jprune.recipes._learned_gates import soft_movement as soft_movement
from jprune.recipes._learned_gates import soft_threshold as soft_threshold
from jprune.recipes._magnitude import global_magnitude as global_magnitude
from jprune.recipes._magnitude import gradual_magnitude as gradual_magnitude
from jprune.recipes._magnitude import magnitude as magnitude
from jprune.recipes._patterns import n_of_m as n_of_m
from jprune.recipes._score_search import edge_popup as edge_popup
from jprune.recipes._score_search import hydra as hydra
from jprune.recipes._score_search import lottery_jackpots as lottery_jackpots
from jprune.recipes._score_search import sign_supermask as sign_supermask
from jprune.recipes._structural import beta_rank as beta_rank
from jprune.recipes._structural import fpgm as fpgm
from jprune.recipes._structural import group_fisher as group_fisher
from jprune.recipes._structural import group_magnitude as group_magnitude
from jprune.recipes._structural import group_taylor as group_taylor
from jprune.recipes._structural import network_slimming as network_slimming
from jprune.recipes._structural_depth import layer_lottery as layer_lottery
from jprune.recipes._structural_depth import mask_sparsity as mask_sparsity
from jprune.recipes._structural_depth import precrop as precrop
from jprune.recipes._tickets import lottery_ticket as lottery_ticket

__all__ = [
    "beta_rank",
    "bip",
    "consensus",
    "edge_popup",
    "fpgm",
    "global_magnitude",
    "gradual_magnitude",
    "group_fisher",
    "group_magnitude",
    "group_taylor",
    "hydra",
    "l0",
    "layer_lottery",
    "lottery_jackpots",
    "lottery_ticket",
    "magnitude",
    "mask_sparsity",
    "movement",
    "n_of_m",
    "network_slimming",
    "precrop",
    "random_erk",
    "sign_supermask",
    "snip",
    "soft_movement",
    "soft_threshold",
]
