"""Pareto fronts of accelerators and pruning schedules, by NSGA-II.

`jprune.search.nsga2` with `jprune.hardware.cost` as its judge.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jprune import search
from jprune._core.deprecation import renamed
from jprune.hardware._cost import Cost, cost
from jprune.hardware.search import Build

__getattr__ = renamed(__name__, {"Front": "jprune.search.Front"})

Judge = Callable[[Cost, Any], Any]
"""`(cost, design) -> array` of one design: objectives, or shares of limits spent."""


def nsga2(
    build: Build,
    objectives: Judge,
    bounds: Mapping[str, tuple[float, float]],
    *,
    limits: Judge | None = None,
    population: int = 128,
    generations: int = 64,
    seed: int = 0,
) -> search.Front:
    """Finds a Pareto front of designs by NSGA-II, judged by their hard costs.

    Designs are searched on the logarithms of their numbers. As the hard cost needs no
    gradient, `build` may round them. Needs pymoo: `pip install "jprune[search]"`.

    Args:
      build: `design -> (workload, machine)`, of one design; it is vmapped.
      objectives: `(Cost, design) -> (objectives,)`, not negative, less is better: such
        as `lambda c, design: jnp.stack([c.seconds, c.energy, c.area])`. The design is
        passed for what its cost does not tell, such as a proxy of accuracy.
      bounds: name -> smallest and largest value, positive; equal ones fix a number.
      limits: `(Cost, design) -> array`, the share of each limit that a design spends,
        at most 1 for designs on the front; None for no limits.
      population: designs of a generation, at least 4.
      generations: number of generations, at least 1.
      seed: of pymoo's random numbers; with equal arguments the front depends on it
        alone.

    Returns:
      A `jprune.search.Front`, without points if no design meets the limits.

    Raises:
      PruningError: if a bound is not positive, bounds are out of order or all fixed, or
        the population or the number of generations is too small.
      ImportError: without pymoo.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune.hardware import machines, networks
      >>> net = networks.gpt2_small()
      >>> def build(design):
      ...     return net, machines.spatten()._replace(**design)
      >>> front = nsga2(build, lambda c, design: jnp.stack([c.seconds, c.area]),
      ...     {"sram": (16, 512), "dram_bandwidth": (8, 256)},
      ...     population=16, generations=4)
      >>> bool((front.objectives[:, 0] >= front.objectives[0, 0]).all())
      True

    References:
      Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, IEEE
      Transactions on Evolutionary Computation 6(2), 2002.
    """

    def judge(design: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        found = cost(*build(design))
        spent = 0.0 if limits is None else limits(found, design)
        return objectives(found, design), spent

    size = {"population": population, "generations": generations, "seed": seed}
    return search.nsga2(judge, bounds, **size)
