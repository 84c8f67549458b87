"""Orbax checkpoints of params, masks and optimizer states, verified by checksums.

    save(directory, step, state)     saves a step through Orbax, whole or not at all
    restore(directory, like)         restores it, with the types and shardings of `like`
    all_steps, latest_step           the steps in a directory
    CheckpointError                  raised for damaged or foreign files, and for
                                     trees that do not match

    >>> import tempfile
    >>> import jax.numpy as jnp, optax, jprune as jp
    >>> tx = jp.sparsify(optax.adam(1e-3), jp.recipes.magnitude(0.9))
    >>> params = {"kernel": jnp.ones((4, 8))}
    >>> state = (params, tx.init(params))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jp.checkpoint.save(directory, 100, state)
    ...     params, opt_state = jp.checkpoint.restore(directory, like=state)

Masks are stored as bits. A process that dies while it saves leaves the earlier steps as
they were, and a directory has one writer at a time. For one packed file without Orbax,
see `jprune.formats.save_packed`.

To read the code, start with `_checkpoint`; `_steps` names, locks and removes steps, and
`_orbax` writes and reads the arrays.
"""

from jprune._core.files import CheckpointError as CheckpointError
from jprune.checkpoint._checkpoint import restore as restore
from jprune.checkpoint._checkpoint import save as save
from jprune.checkpoint._steps import all_steps as all_steps
from jprune.checkpoint._steps import latest_step as latest_step
