"""Checkpoints through Orbax: masks as bits, and every file checksummed.

    save(directory, step, state)         if the process dies, the last good step stays
    restore(directory, like, step=None)  in the types, shapes and shardings of `like`
    all_steps, latest_step               what is there

A damaged, truncated or foreign checkpoint raises `CheckpointError` by name. Packed
files without Orbax are `jprune.formats.save_packed`. Read `_checkpoint`, then `_orbax`.
"""

from jprune.checkpoint._checkpoint import CheckpointError as CheckpointError
from jprune.checkpoint._checkpoint import all_steps as all_steps
from jprune.checkpoint._checkpoint import latest_step as latest_step
from jprune.checkpoint._checkpoint import restore as restore
from jprune.checkpoint._checkpoint import save as save
