"""One rule per primitive: how the dims of operands and results are related.

A rule takes an equation, merges or freezes dims, and returns an `Outcome`: the dims of
the results, and what changes when the equation runs at smaller sizes. A primitive
without a rule freezes all axes of its operands.
"""

from jprune.graph._engine.rules import (
    boundaries,
    collectives,
    contractions,
    control,
    derivatives,
    elementwise,
    indexing,
    reductions,
    shapes,
    sharding,
)

RULES = {
    **elementwise.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **contractions.RULES,
    **indexing.RULES,
    **control.RULES,
    **derivatives.RULES,
    **collectives.RULES,
    **sharding.RULES,
    **boundaries.RULES,
}
"""Primitive name -> rule."""

__all__ = ["RULES"]
