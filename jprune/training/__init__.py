"""Pruning inside a training loop, and in rounds of training.

    sparsify               joins a pruner to any Optax optimizer
    masks_of               the current masks, from the optimizer state
    refresh                recomputes the masks from outside the training step
    rewind                 returns weights and optimizer to an early step
    lottery_ticket         trains, prunes and rewinds, in rounds

Measures of stability, between two networks:

    l2_distance            distance of the weights
    angle                  angle between the weights
    interpolation_barrier  rise of the loss on the line between them

States:

    SparsifyState, RewindState     inside an optimizer's state
    TicketState, TicketInfo        state and diagnostics of the rounds

Read `_sparsify` first: where a mask is False the update is -w, so that the weight is
exactly zero after the step despite momentum and weight decay.
"""

from jprune.training._lottery import TicketInfo as TicketInfo
from jprune.training._lottery import TicketState as TicketState
from jprune.training._lottery import lottery_ticket as lottery_ticket
from jprune.training._rewind import RewindState as RewindState
from jprune.training._rewind import rewind as rewind
from jprune.training._sparsify import SparsifyState as SparsifyState
from jprune.training._sparsify import masks_of as masks_of
from jprune.training._sparsify import refresh as refresh
from jprune.training._sparsify import sparsify as sparsify
from jprune.training._stability import angle as angle
from jprune.training._stability import interpolation_barrier as interpolation_barrier
from jprune.training._stability import l2_distance as l2_distance
