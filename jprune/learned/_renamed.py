"""The old name of a function that is now part of a `Reparameterization`."""

import warnings
from typing import Any

from jprune import links
from jprune.learned._score_ranked import score_ranked


def find(name: str) -> Any:
    """Returns the old `score_masked` of whole trees, with a DeprecationWarning.

    Args:
      name: name of the attribute.

    Returns:
      The function.

    Raises:
      AttributeError: for every other name.
    """
    if name != "score_masked":
        raise AttributeError(f"module 'jprune.learned' has no attribute {name!r}")
    warnings.warn(
        "jprune.learned.score_masked is now jprune.learned.score_ranked(pruner)"
        ".effective; the old name goes with the next release. For single leaves, use "
        "jprune.learned.effective.score_masked.",
        DeprecationWarning,
        stacklevel=2,
    )
    return score_ranked(links.keep_top(0.0)).effective
