"""Fronts by NSGA-II: designs that nothing beats, where there are too many for a grid.

pymoo breeds them; all of a generation are costed at once, by one jitted call.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base
from jprune.hardware._cost import Cost, cost
from jprune.hardware.search import Build
from jprune.search import check_bounds, pareto

Judge = Callable[[Cost, Any], Any]
"""What counts of a design: `(cost, design) -> array`."""

_CHUNK = 4096  # designs that are computed at once, so that they stay in the cache


class Front(NamedTuple):
    """Designs of which none beats another.

    Attributes:
      designs: name -> `(points,)`, in the order of the first objective.
      objectives: `(points, objectives)`, less is better.
    """

    designs: dict[str, np.ndarray]
    objectives: np.ndarray


def nsga2(
    build: Build,
    objectives: Judge,
    bounds: Mapping[str, tuple[float, float]],
    *,
    limits: Judge | None = None,
    population: int = 128,
    generations: int = 64,
    seed: int = 0,
) -> Front:
    """Returns a Pareto front of designs, by NSGA-II on the logarithms of their numbers.

    The hard cost counts, so designs may be rounded by `build`. Needs pymoo:
    `pip install "jprune[search]"`.

    Args:
      build: `design -> (workload, machine)`, of one design; it is vmapped.
      objectives: `(Cost, design) -> (objectives,)`, positive, less is better: such as
        `lambda c, design: jnp.stack([c.seconds, c.energy, c.area])`. The design is
        there for what its cost does not tell, as a proxy of accuracy.
      bounds: name -> the least and the largest value, positive; equal ones fix it.
      limits: `(Cost, design) -> array` of shares spent, each allowed up to 1; None
        for no limits. Designs beyond them are not in the front.
      population: designs of a generation.
      generations: how often they are bred.
      seed: of pymoo's random numbers; the front depends on nothing else.

    Returns:
      A `Front`; of no points if no design met the limits.

    Raises:
      PruningError: if bounds cannot be meant or all are single numbers, or there are
        fewer than 4 designs or 1 generation.
      ImportError: without pymoo.

    Example:
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
    check_bounds(bounds)
    if population < 4 or generations < 1:
        raise base.PruningError(
            "NSGA-II breeds at least 4 designs for at least 1 generation; got "
            f"{population}, {generations}."
        )
    free = [name for name, (low, high) in bounds.items() if low < high]
    if not free:
        raise base.PruningError(f"All bounds are single numbers: {dict(bounds)}.")
    fixed = {name: low for name, (low, high) in bounds.items() if low == high}

    def design_of(logs: jax.Array) -> dict[str, jax.Array]:
        found = {name: jnp.float32(x) for name, x in fixed.items()}
        for x, name in zip(logs, free, strict=True):
            # The exponential of a logarithm may lie beyond a bound by rounding.
            found[name] = jnp.clip(jnp.exp(x), *bounds[name])
        return {name: found[name] for name in bounds}

    def one(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
        design = design_of(logs)
        found = cost(*build(design))
        spent = jnp.zeros(1) if limits is None else jnp.ravel(limits(found, design))
        return objectives(found, design), spent

    shape = jax.ShapeDtypeStruct((len(free),), jnp.float32)
    values, spent = jax.eval_shape(one, shape)
    batch = min(population, _CHUNK)
    costs = jax.jit(lambda logs: lax.map(one, logs, batch_size=batch))
    logs = _bred(
        costs,
        np.log([bounds[name] for name in free]).reshape(-1, 2).T,
        (values.shape[0], spent.shape[0]),
        (population, generations, seed),
    )
    values, spent = costs(logs)
    kept = np.asarray(pareto(values) & jnp.all(spent <= 1, axis=1))
    values = np.asarray(values)[kept]
    order = np.argsort(values[:, 0], kind="stable")
    designs = jax.device_get(jax.vmap(design_of)(logs))
    return Front({k: x[kept][order] for k, x in designs.items()}, values[order])


def _bred(
    costs: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    between: np.ndarray,
    counts: tuple[int, int],
    size: tuple[int, int, int],
) -> jax.Array:
    """The last generation, `(population, numbers)`.

    Args:
      costs: `(population, numbers)` -> objectives and shares spent of each.
      between: the least and the largest of each number.
      counts: objectives, and limits.
      size: population, generations and seed.
    """
    # pymoo is an extra: jprune's core does without it.
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.problem import Problem
    from pymoo.problems.static import StaticProblem

    population, generations, seed = size
    (objectives, limits), (low, high) = counts, between
    problem = Problem(
        n_var=len(low), n_obj=objectives, n_ieq_constr=limits, xl=low, xu=high
    )
    algorithm = NSGA2(pop_size=population)
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed)
    while algorithm.has_next():
        born: Any = algorithm.ask()
        x = np.asarray(born.get("X"), np.float32)
        # Twins are not born twice: the rest of the batch repeats the first.
        full = np.concatenate([x, np.repeat(x[:1], population - len(x), axis=0)])
        values, spent = jax.device_get(costs(jnp.asarray(full)))
        with np.errstate(divide="ignore"):  # what costs nothing is simply the best
            logs = np.log(np.asarray(values, np.float64)[: len(x)])
        found = StaticProblem(problem, F=logs, G=spent[: len(x)] - 1.0)
        Evaluator().eval(found, born)
        algorithm.tell(infills=born)
    last: Any = algorithm.pop
    return jnp.asarray(np.asarray(last.get("X"), np.float32))
