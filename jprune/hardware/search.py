"""Design-space exploration: all designs at once, or down the gradient of one.

    grid, random_designs       many machines, or workloads, as one pytree
    evaluate                   their costs, vmapped, in chunks that fit the cache
    pareto                     which of them nothing else beats
    descend                    a design by gradients of the smooth cost, under limits

A design is any pytree of arrays; a function makes of it a workload and a machine, so
machines and pruning schedules are searched together.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import base
from jprune.hardware.accelerators import Accelerator
from jprune.hardware.cost import Cost, cost
from jprune.hardware.workload import Workload

Build = Callable[[Any], tuple[Workload, Accelerator]]
"""What a design means: `design -> (workload, machine)`."""


def grid(axes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns all combinations of values, along one leading axis.

    Args:
      axes: name -> the values that it takes, one or more.

    Returns:
      Name -> `(combinations,)` in float32; the last name changes fastest.

    Raises:
      PruningError: if a name has no value.

    Example:
      >>> grid({"rows": [8, 16], "sram": [32, 64, 128]})["rows"].tolist()
      [8.0, 8.0, 8.0, 16.0, 16.0, 16.0]
    """
    empty = [name for name, values in axes.items() if not len(values)]
    if empty or not axes:
        raise base.PruningError(f"A grid has values for each name; {empty} have none.")
    found = np.meshgrid(*axes.values(), indexing="ij")
    each = zip(axes, found, strict=True)
    return {name: values.reshape(-1).astype(np.float32) for name, values in each}


def random_designs(
    key: jax.Array, count: int, bounds: Mapping[str, tuple[float, float]]
) -> dict[str, jax.Array]:
    """Draws designs, each number log-uniform between its bounds.

    Args:
      key: a `jax.random.key`.
      count: how many designs.
      bounds: name -> the least and the largest value, positive.

    Returns:
      Name -> `(count,)` in float32.

    Raises:
      PruningError: if a bound is not positive, or the least is the larger.

    Example:
      >>> drawn = random_designs(jax.random.key(0), 4, {"sram": (16, 256)})
      >>> bool(drawn["sram"].min() >= 16), bool(drawn["sram"].max() <= 256)
      (True, True)
    """
    check_bounds(bounds)
    keys = jax.random.split(key, len(bounds))
    found = {}
    for each, (name, (low, high)) in zip(keys, bounds.items(), strict=True):
        drawn = jax.random.uniform(each, (count,), jnp.float32)
        log = np.log(low) + drawn * np.float32(np.log(high / low))
        found[name] = jnp.clip(jnp.exp(log), low, high)
    return found


def check_bounds(bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raises if bounds cannot be meant.

    Args:
      bounds: name -> the least and the largest value.

    Raises:
      PruningError: names the bound that is not positive, or empty.
    """
    for name, (low, high) in bounds.items():
        if not 0 < low <= high:
            raise base.PruningError(
                f"The bounds of {name} are positive and in order; got {low}, {high}."
            )


def evaluate(designs: Any, build: Build, *, chunk: int = 4096) -> Cost:
    """Returns the hard costs of many designs, vmapped in chunks.

    Args:
      designs: a pytree with a leading axis.
      build: `design -> (workload, machine)`, of one design.
      chunk: static; how many are computed at once, so that they stay in the cache.

    Returns:
      A `Cost` with the leading axis.

    Example:
      >>> from jprune.hardware import machines, networks
      >>> net = networks.gpt2_small()
      >>> def build(design):
      ...     return net, machines.spatten()._replace(**design)
      >>> found = evaluate(grid({"dram_bandwidth": [64, 128, 256]}), build)
      >>> bool(found.seconds[0] > found.seconds[2])
      True
    """

    def one(design: Any) -> Cost:
        return cost(*build(design))

    return jax.jit(lambda d: lax.map(one, d, batch_size=chunk))(designs)


def pareto(costs: Any) -> jax.Array:
    """Returns which points no other point beats: less in one cost, more in none.

    Of equal points all stay. Memory and time grow with the square of the number.

    Args:
      costs: `(points, costs)`, less is better; NaN or infinite points never stay.

    Returns:
      Bools, `(points,)`.

    Example:
      >>> pareto(jnp.array([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0], [3.0, 1.0]])).tolist()
      [True, True, False, True]
    """
    costs = jnp.asarray(costs)
    usable = jnp.all(jnp.isfinite(costs), axis=1)
    costs = jnp.where(usable[:, None], costs, jnp.inf)

    def beaten(point: jax.Array) -> jax.Array:
        no_worse = jnp.all(costs <= point[None], axis=1)
        better = jnp.any(costs < point[None], axis=1)
        return jnp.any(no_worse & better)

    return usable & ~lax.map(beaten, costs, batch_size=256)


class Descent(NamedTuple):
    """Where a search by gradients ended.

    Attributes:
      design: the best that met the limits on the way, unrounded.
      value: its objective, infinite if none met them.
      path: `(steps,)`, the objective with penalties.
    """

    design: Any
    value: jax.Array
    path: jax.Array


def descend(
    start: Mapping[str, Any],
    build: Build,
    objective: Callable[[Cost], Any],
    bounds: Mapping[str, tuple[float, float]],
    *,
    limits: Callable[[Cost], Any] | None = None,
    steps: int = 200,
    temperature: float = 0.05,
) -> Descent:
    """Returns a better design, by Adam on the logarithms of its numbers.

        log objective + 10 sum max(0, log(spent / allowed))

    is minimised on the smooth cost, between the bounds. Jits and vmaps over starts:
    many at once are a global search. Round the result and look at its hard cost.

    Args:
      start: name -> number, positive.
      build: `design -> (workload, machine)`; tiles and sizes may be fractions.
      objective: `Cost -> scalar`, positive: such as `lambda c: c.energy * c.seconds`.
      bounds: name -> the least and the largest value.
      limits: `Cost -> array` of shares spent, each allowed up to 1: such as
        `lambda c: jnp.array([c.area / 20])`; None for no limits.
      steps: static; of Adam, whose rate of 0.1 falls to 0 along a cosine.
      temperature: of the smooth cost.

    Returns:
      A `Descent`.

    Raises:
      PruningError: if bounds cannot be meant, or a number has none.

    Example:
      >>> from jprune.hardware import machines, networks
      >>> net = networks.gpt2_small()
      >>> def build(design):
      ...     return net, machines.spatten()._replace(**design)
      >>> start = {"sram": 64.0, "dram_bandwidth": 16.0}
      >>> found = descend(start, build, lambda c: c.seconds,
      ...     {"sram": (16, 512), "dram_bandwidth": (8, 256)}, steps=20)
      >>> bool(found.design["dram_bandwidth"] > 16)
      True
    """
    check_bounds(bounds)
    if set(start) != set(bounds):
        raise base.PruningError(
            f"Bounds are for {sorted(bounds)}, the design has {sorted(start)}."
        )
    low = {k: jnp.float32(np.log(bounds[k][0])) for k in start}
    high = {k: jnp.float32(np.log(bounds[k][1])) for k in start}
    tx = optax.adam(optax.schedules.cosine_decay_schedule(0.1, steps))

    def loss(logs: dict[str, Any]) -> tuple[Any, Any]:
        found = cost(*build(jax.tree.map(jnp.exp, logs)), temperature=temperature)
        spent = jnp.zeros((1,)) if limits is None else limits(found)
        over = jnp.maximum(0.0, jnp.log(spent + 1e-30))
        return jnp.log(objective(found)) + 10 * jnp.sum(over), jnp.all(spent <= 1)

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        logs, state, best, least = carry
        (value, fits), slopes = jax.value_and_grad(loss, has_aux=True)(logs)
        better = fits & (value < least)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), logs, best)
        least = jnp.where(better, value, least)
        updates, state = tx.update(slopes, state, logs)
        moved = jax.tree.map(jnp.add, logs, updates)
        return (jax.tree.map(jnp.clip, moved, low, high), state, best, least), value

    logs = {k: jnp.log(jnp.asarray(v, jnp.float32)) for k, v in start.items()}
    logs = jax.tree.map(jnp.clip, logs, low, high)
    begin = (logs, tx.init(logs), logs, jnp.float32(jnp.inf))
    (_, _, best, least), path = lax.scan(step, begin, None, length=steps)
    return Descent(jax.tree.map(jnp.exp, best), jnp.exp(least), path)
