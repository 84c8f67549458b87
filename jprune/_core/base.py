"""Types and errors that every module shares.

A *pruner* is an ordinary Optax transform: its links turn gradients into scores
and scores into masks,

    score_by_*  ->  (normalize_by_* | pool_over_*)*  ->  keep_*

so `optax.chain`, `optax.partition` and `optax.inject_hyperparams` compose
pruners as they compose optimizers. A method with a training loop of its own is
an `Algorithm`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax

Params = Any  # any pytree of arrays
Masks = Any  # the params' tree; boolean leaves that broadcast to theirs; True = keep
Scores = Any  # the params' tree; real leaves; higher = keep
Counts = Any  # the scores' tree; integers, or int32 scalars
Pruner = optax.GradientTransformationExtraArgs
Scalar = jax.typing.ArrayLike  # a number, an array of no axes, or a tracer of one
Sparsity = Scalar | Callable[[Any], Scalar]
"""A fraction removed, in [0, 1], or a schedule of it: step -> fraction."""


class Predicate(Protocol):
    """Selects leaves by their `/`-joined paths: `(path, leaf) -> bool`."""

    def __call__(self, path: str, leaf: Any, /) -> bool:
        """Returns True if the leaf is selected."""
        ...


class Algorithm(NamedTuple):
    """A pruning method with a training loop of its own.

    Attributes:
      init: `(params, ...) -> state`.
      step: `(state, *batches) -> (state, info)`, both pytrees. `state` holds all
        that the next step needs, and is what to checkpoint; `info` holds
        diagnostics.
      finish: `state -> (params, masks)`: the sparse network at this point, with
        zeros where the masks are False.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Any]]
    finish: Callable[..., tuple[Params, Masks]]


class PruningError(ValueError):
    """An invalid pruner, mask or rule; the message names the leaf and the values."""


class NonFiniteScoreError(PruningError):
    """A NaN among the scores, which then have no ranking; names the leaves."""
