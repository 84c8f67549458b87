"""Masks that are learned by gradient descent.

    learn_masks            the loop: trains weights and scores, gates or thresholds;
                           `LearnedState`, `LearnedInfo`: its state and diagnostics
    Reparameterization     what a method plugs into the loop: z = R(w, aux), and masks

Functions that return a `Reparameterization`; the published methods in `jprune.recipes`
choose one, a schedule and optimizers:

    score_ranked           m keeps the best scores s; z = m w; the gradient of s is w g
    gated                  z = w c with a random gate c, whose logit is trained
    thresholded            z = sign(w) relu(|w| - sigmoid(s)), s for each leaf
    constrained            adds a Lagrangian that brings the sparsity to a target
    swapped                lets the masks change by a few swaps a step

And what they are made of:

    effective              effective weights z = R(w, ...) and the gradient at them
    controllers            projections and penalties that hold a sparsity at its target
    bilevel                BiP (`bilevel.bip`) and its hypergradient
                           (`bilevel.implicit_gradient`)
    implicit               the hypergradient with the Hessian, to compare with BiP's
                           (`implicit.implicit_gradient_with`)

Read `effective` first, then `score_ranked`, `learn_masks` and `bilevel`. A new method
is one of these functions with other arguments, or a `Reparameterization` of your own:

    climb = jp.cubic(0.9, begin=0, steps=10_000)
    method = jp.learned.learn_masks(
        loss,
        jp.learned.score_ranked(jp.keep_top(climb), final=jp.keep_top(0.9)),
        weights=optax.adamw(3e-5),
        scores=optax.sgd(1e-2),
    )
"""

from jprune.learned import _renamed
from jprune.learned import bilevel as bilevel
from jprune.learned import controllers as controllers
from jprune.learned import effective as effective
from jprune.learned import implicit as implicit
from jprune.learned._gated import constrained as constrained
from jprune.learned._gated import gated as gated
from jprune.learned._learn_masks import LearnedInfo as LearnedInfo
from jprune.learned._learn_masks import LearnedState as LearnedState
from jprune.learned._learn_masks import learn_masks as learn_masks
from jprune.learned._reparameterization import Reparameterization as Reparameterization
from jprune.learned._score_ranked import score_ranked as score_ranked
from jprune.learned._score_ranked import swapped as swapped
from jprune.learned._thresholded import thresholded as thresholded

__getattr__ = _renamed.find
