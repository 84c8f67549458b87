"""Gates: differentiable masks in [0, 1] that multiply weights.

    straight_through      a hard mask with the derivative of a soft one
    threshold_gate        [s > threshold], with the derivative of a sigmoid
    sigmoid_gate          sigma(s / T)
    gumbel_gate           a sample of sigma((s + noise) / T)
    hard_concrete         a sample that is exactly 0 or 1 with positive probability
    hard_concrete_mean, hard_concrete_nonzero     without noise; probability of > 0
    HardConcrete          constants of this distribution
    expected_sparsity     the fraction of weights that gates remove in expectation
    polarization          how far gates are from 0 and 1
    weighted, is_gate     the gates of each leaf, with the number of weights per gate
    reverse_gradient      negates a derivative, for min-max problems

Gates act on arrays; map them over trees with `jax.tree.map`. To bring the expected
sparsity to a target see `jprune.learned.controllers`. Gates with a given sum over a
whole tree are `jprune.selection.soft_top_k`; to train gates, see
`jprune.learned.gated`.

To read the code, start with `_deterministic.straight_through`.
"""

from jprune.gates._counted import expected_sparsity as expected_sparsity
from jprune.gates._counted import is_gate as is_gate
from jprune.gates._counted import polarization as polarization
from jprune.gates._counted import weighted as weighted
from jprune.gates._deterministic import reverse_gradient as reverse_gradient
from jprune.gates._deterministic import sigmoid_gate as sigmoid_gate
from jprune.gates._deterministic import straight_through as straight_through
from jprune.gates._deterministic import threshold_gate as threshold_gate
from jprune.gates._sampled import HardConcrete as HardConcrete
from jprune.gates._sampled import gumbel_gate as gumbel_gate
from jprune.gates._sampled import hard_concrete as hard_concrete
from jprune.gates._sampled import hard_concrete_mean as hard_concrete_mean
from jprune.gates._sampled import hard_concrete_nonzero as hard_concrete_nonzero
