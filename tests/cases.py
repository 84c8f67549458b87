"""Every recipe once, as the contract suite runs it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import jprune as jp


class Case(NamedTuple):
    """A recipe under test.

    Attributes:
      recipe: its name in `jprune.recipes`.
      make: from a sparsity, which may be traced, to the pruner.
      exact: whether the total count is n - round(n * sparsity); False where a
        minimum per leaf may keep more.
      sparsity: the one to check with; None if the recipe has no such argument.
    """

    recipe: str
    make: Callable[[Any], jp.Pruner]
    exact: bool = True
    sparsity: float | None = 0.9


CASES = [
    Case("magnitude", lambda s: jp.recipes.magnitude(s)),
    Case(
        "gradual_magnitude",
        # The contract's clock stands at 0: from the first step on at the target.
        lambda s: jp.recipes.gradual_magnitude(s, begin=0, steps=1, initial=s),
    ),
    Case(
        "global_magnitude",
        lambda s: jp.recipes.global_magnitude(s, min_fraction=0.001),
        exact=False,
    ),
    Case("random_erk", lambda s: jp.recipes.random_erk(s, jax.random.key(3))),
    Case("snip", lambda s: jp.recipes.snip(s)),
    Case("n_of_m", lambda s: jp.recipes.n_of_m(2, 4), sparsity=None),
]
