"""Design-space exploration of accelerators: evaluate many designs, or descend from one.

    evaluate    costs of many designs, vmapped in chunks
    descend     improves one design by gradients of the smooth cost, under limits

A design is any pytree of arrays; `build`, a function of one design, returns its
workload and machine, so machines and pruning schedules can be searched together.
`jprune.search` makes designs (`grid`, `random_designs`) and finds their Pareto front
(`pareto`); `jprune.hardware.evolve` breeds them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import search as designs
from jprune._core import base
from jprune._core.deprecation import renamed
from jprune.hardware._accelerator import Accelerator
from jprune.hardware._cost import Cost, cost
from jprune.hardware._workload import Workload

__getattr__ = renamed(
    __name__,
    {
        "check_bounds": "jprune.search.check_bounds",
        "grid": "jprune.search.grid",
        "pareto": "jprune.search.pareto",
        "random_designs": "jprune.search.random_designs",
    },
)

Build = Callable[[Any], tuple[Workload, Accelerator]]
"""`design -> (workload, machine)`, of one design."""


def evaluate(designs: Any, build: Build, *, chunk: int = 4096) -> Cost:
    """Returns the hard costs of many designs, vmapped in chunks.

    Args:
      designs: a pytree with a leading axis.
      build: `design -> (workload, machine)`, of one design.
      chunk: static, designs computed at once, so that they stay in the processor's
        cache.

    Returns:
      A `Cost` with that leading axis.

    Raises:
      PruningError: if `build` does not return a workload and an accelerator, in this
        order.

    Example:
      >>> from jprune import search
      >>> from jprune.hardware import machines, networks
      >>> net = networks.gpt2_small()
      >>> def build(design):
      ...     return net, machines.spatten()._replace(**design)
      >>> found = evaluate(search.grid({"dram_bandwidth": [64, 128, 256]}), build)
      >>> bool(found.seconds[0] > found.seconds[2])
      True
    """

    def one(design: Any) -> Cost:
        return cost(*build(design))

    return jax.jit(lambda d: lax.map(one, d, batch_size=chunk))(designs)


class Descent(NamedTuple):
    """The result of a search by gradients.

    Attributes:
      design: the best design on the path that met the limits, unrounded.
      value: its objective; infinite if none met the limits.
      path: `(steps,)`, the objective times its penalties, at each step.
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
    """Improves a design by Adam on the logarithms of its numbers.

        log objective + 10 sum max(0, log(spent / allowed))

    is minimized on the smooth cost, between the bounds. Jits, and vmaps over starts:
    many starts at once are a global search. Round the result and evaluate its hard
    cost.

    Args:
      start: name -> number, positive.
      build: `design -> (workload, machine)`; tiles and sizes may be fractional.
      objective: `Cost -> scalar`, positive: such as `lambda c: c.energy * c.seconds`.
      bounds: name -> smallest and largest value, positive.
      limits: `Cost -> array`, the share of each limit that the design spends, at most
        1: such as `lambda c: jnp.array([c.area / 20])` for 20 mm^2; None for no limits.
      steps: static, number of Adam steps; the learning rate decays from 0.1 to 0 along
        a cosine.
      temperature: temperature of the smooth cost.

    Returns:
      A `Descent`.

    Raises:
      PruningError: if a bound is not positive or bounds are out of order, or the names
        of the start and of the bounds differ.

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
    designs.check_bounds(bounds)
    if set(start) != set(bounds):
        raise base.PruningError(
            f"Bounds are for {sorted(bounds)}, but the design has {sorted(start)}."
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
