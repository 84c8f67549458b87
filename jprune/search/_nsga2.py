"""Pareto fronts by NSGA-II, for more designs than a grid can hold.

pymoo breeds the designs; each generation is judged by one jitted call.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import base
from jprune.search._designs import check_bounds, pareto

Bounds = Mapping[str, tuple[float, float]]

Judge = Callable[[dict[str, jax.Array]], tuple[jax.Array, Any]]
"""`design -> (objectives, spent)`, of one design; it is vmapped."""

_CHUNK = 4096  # designs judged at once, so that they stay in the processor's cache

_FLOAT32 = np.finfo(np.float32)


class Front(NamedTuple):
    """A Pareto front: designs that no other design beats.

    Designs with equal objectives do not beat each other, and are all there.

    Attributes:
      designs: name -> `(points,)`, in ascending order of the first objective.
      objectives: `(points, objectives)`, less is better.
    """

    designs: dict[str, np.ndarray]
    objectives: np.ndarray


def nsga2(
    judge: Judge,
    bounds: Bounds,
    *,
    population: int = 128,
    generations: int = 64,
    seed: int = 0,
) -> Front:
    """Finds a Pareto front by NSGA-II on the logarithms of the designs' numbers.

    Needs pymoo: `pip install "jprune[search]"`.

    Args:
      judge: `design -> (objectives, spent)` of one design, a dict of scalars; traced
        and vmapped, so it may round but not branch on numbers. Objectives are
        `(objectives,)`, not negative, less is better; they are compared on a
        logarithmic scale, and a design with NaN ranks last. `spent`, a scalar or
        `(limits,)`, is the share of each limit that the design spends, at most 1 for a
        design on the front; 0 where nothing is limited.
      bounds: name -> smallest and largest value, positive; equal ones fix a number.
      population: designs of a generation, at least 4.
      generations: number of generations, at least 1.
      seed: of pymoo's random numbers; with equal arguments the front depends on it
        alone.

    Returns:
      A `Front`, without points if no design of the last generation meets the limits.

    Raises:
      PruningError: if a bound is not positive, bounds are out of order or all fixed,
        the population or the number of generations is too small, or an objective is
        negative.
      ImportError: without pymoo.

    Example:
      >>> def judge(design):  # smaller is better, but a * b has to reach 1
      ...     a, b = design["a"], design["b"]
      ...     return jnp.stack([a, b]), jnp.stack([1 / (a * b)])
      >>> front = nsga2(judge, {"a": (0.1, 10), "b": (0.1, 10)}, population=32)
      >>> product = front.designs["a"] * front.designs["b"]
      >>> bool(product.min() >= 1), bool(product.mean() < 1.1)
      (True, True)

    References:
      Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, IEEE
      Transactions on Evolutionary Computation 6(2), 2002.
    """
    free = _free(bounds, population, generations)
    design_of = _decoder(bounds, free)

    def one(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
        objectives, spent = judge(design_of(logs))
        return objectives, jnp.ravel(jnp.asarray(spent, jnp.float32))

    batch = min(population, _CHUNK)
    judge_all = jax.jit(lambda logs: lax.map(one, logs, batch_size=batch))
    shapes = jax.eval_shape(one, jax.ShapeDtypeStruct((len(free),), jnp.float32))
    log_bounds = np.log([bounds[name] for name in free]).reshape(-1, 2).T
    algorithm = _setup(log_bounds, shapes, population, generations, seed)
    logs = _last_generation(algorithm, judge_all, population)
    values, spent = judge_all(logs)
    kept = np.asarray(pareto(values) & jnp.all(spent <= 1, axis=1))
    values = np.asarray(values)[kept]
    order = np.argsort(values[:, 0], kind="stable")
    designs = jax.device_get(jax.vmap(design_of)(logs))
    return Front({k: x[kept][order] for k, x in designs.items()}, values[order])


def _free(bounds: Bounds, population: int, generations: int) -> list[str]:
    """Returns the names of the numbers to search; raises for bad arguments."""
    check_bounds(bounds)
    if population < 4 or generations < 1:
        raise base.PruningError(
            "NSGA-II needs a population of at least 4 designs and at least 1 "
            f"generation; got {population} and {generations}."
        )
    free = [name for name, (low, high) in bounds.items() if low < high]
    if not free:
        raise base.PruningError(
            f"Nothing to search: the bounds {dict(bounds)} fix every number."
        )
    return free


def _decoder(
    bounds: Bounds, free: list[str]
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns a function from the logarithms of the free numbers to a design."""
    fixed = {name: low for name, (low, high) in bounds.items() if low == high}

    def design_of(logs: jax.Array) -> dict[str, jax.Array]:
        found = {name: jnp.float32(x) for name, x in fixed.items()}
        for x, name in zip(logs, free, strict=True):
            # The exponential of a logarithm may lie beyond a bound by rounding.
            found[name] = jnp.clip(jnp.exp(x), *bounds[name])
        return {name: found[name] for name in bounds}

    return design_of


def _setup(
    log_bounds: np.ndarray, shapes: Any, population: int, generations: int, seed: int
) -> Any:
    """Returns pymoo's algorithm, ready to be asked for the first generation.

    Args:
      log_bounds: `(2, numbers)`, smallest and largest logarithms.
      shapes: of a design's objectives and of its shares spent.
      population: designs of a generation.
      generations: number of generations.
      seed: of pymoo's random numbers.
    """
    # Imported here, as pymoo is an optional extra.
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem

    (low, high), (values, spent) = log_bounds, shapes
    problem = Problem(
        n_var=len(low),
        n_obj=values.shape[0],
        n_ieq_constr=spent.shape[0],
        xl=low,
        xu=high,
    )
    algorithm = NSGA2(pop_size=population)
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed)
    return algorithm


def _last_generation(
    algorithm: Any, judge_all: Callable[..., Any], population: int
) -> jax.Array:
    """Returns the last generation, `(population, numbers)`."""
    from pymoo.core.evaluator import Evaluator
    from pymoo.problems.static import StaticProblem

    while algorithm.has_next():
        children = algorithm.ask()
        if children is None:  # all children are duplicates: nothing is left to breed
            break
        x = np.asarray(children.get("X"), np.float32)
        # pymoo drops duplicates: repeat the first design, so that shapes stay equal.
        full = np.concatenate([x, np.repeat(x[:1], population - len(x), axis=0)])
        values, spent = jax.device_get(judge_all(jnp.asarray(full)))
        found = StaticProblem(
            algorithm.problem,
            F=_logs(values[: len(x)]),
            G=_finite(spent[: len(x)]) - 1,
        )
        Evaluator().eval(found, children)
        algorithm.tell(infills=children)
    return jnp.asarray(np.asarray(algorithm.pop.get("X"), np.float32))


def _logs(objectives: np.ndarray) -> np.ndarray:
    """The finite logarithms of objectives; raises for negative ones."""
    if (objectives < 0).any():
        raise base.PruningError(
            "NSGA-II compares the logarithms of objectives, which must not be "
            f"negative; got {objectives[objectives < 0][0]}."
        )
    return np.log(np.maximum(_finite(objectives), _FLOAT32.smallest_subnormal))


def _finite(x: np.ndarray) -> np.ndarray:
    """In float64, with the largest float32 for NaN and what exceeds it.

    pymoo's crowding distances are differences: infinite numbers would make them NaN.
    """
    most = float(_FLOAT32.max)
    return np.minimum(np.nan_to_num(np.asarray(x, np.float64), nan=most), most)
