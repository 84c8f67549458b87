"""One rule for each primitive: how dims of operands and results belong together.

A rule takes an equation and returns an `Outcome`: the dims of the results, and what
changes when the equation is run on fewer entries. A primitive without a rule freezes
all axes that meet it.
"""

from jprune.graph._engine.rules import (
    contractions,
    control,
    derivatives,
    elementwise,
    indexing,
    reductions,
    shapes,
)

RULES = {
    **elementwise.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **contractions.RULES,
    **indexing.RULES,
    **control.RULES,
    **derivatives.RULES,
}
"""Primitive name -> rule."""

__all__ = ["RULES"]
