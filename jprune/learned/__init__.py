"""Masks that are learned by gradient descent.

    learn_masks            the loop: weights and scores, gates or thresholds, together
    Reparameterization     what a method plugs into the loop
    effective              effective weights z = R(w, ...) and the gradient at them
    controllers            what keeps a learned sparsity at its target
    bilevel                BiP: `bilevel.bip` and its hypergradients
    implicit               hypergradients that use the Hessian, for comparison

Read `effective` first, then `learn_masks`, then `bilevel`. The published methods are
in `jprune.recipes`.
"""

from jprune.learned import bilevel as bilevel
from jprune.learned import controllers as controllers
from jprune.learned import effective as effective
from jprune.learned import implicit as implicit
from jprune.learned._learn_masks import LearnedInfo as LearnedInfo
from jprune.learned._learn_masks import LearnedState as LearnedState
from jprune.learned._learn_masks import Reparameterization as Reparameterization
from jprune.learned._learn_masks import learn_masks as learn_masks
from jprune.learned._learn_masks import score_masked as score_masked
