"""Sparsity schedules that Optax lacks.

A schedule is `step -> sparsity`, so every Optax schedule is one already. Those here
also tell `sparsify` when they begin and end.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jprune import selection
from jprune._core import base


# No tuple, because `jax.jit` and others keep weak references to what they call.
@dataclasses.dataclass(frozen=True)
class Ramp:
    """A schedule that knows the steps in which it changes.

    Attributes:
      begin: first step at which it may leave its initial value.
      end: first step with its final value.
      at: the schedule, `step -> value`.

    Example:
      `sparsify` refreshes masks from `begin` to `end`, unless told otherwise:

      >>> import optax
      >>> warmup = Ramp(100, 400, optax.linear_schedule(0.0, 0.9, 300, 100))
      >>> float(warmup(250)), warmup.end
      (0.44999998807907104, 400)
    """

    begin: int
    end: int
    at: optax.Schedule

    def __call__(self, step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        """Returns the value at a step."""
        return self.at(step)


def cubic(
    sparsity: jax.typing.ArrayLike, *, begin: int, steps: int, initial: float = 0.0
) -> Ramp:
    """Zhu and Gupta's cubic schedule, which prunes fast at first and slowly at the end.

    s(t) = s_f + (s_i - s_f) (1 - (t - begin) / steps)^3 from `begin` to
    `begin + steps`; s_i before, s_f after. Optax's polynomial schedule of power 3, with
    checked arguments (Optax accepts an empty range, and stays at s_i).

    Args:
      sparsity: final sparsity s_f, in [0, 1]; may be traced.
      begin: first step of the rise, >= 0.
      steps: length of the rise in steps, positive.
      initial: sparsity s_i before the rise, in [0, 1].

    Returns:
      A schedule from an integer step to a sparsity, which ends at `begin + steps`.

    Raises:
      PruningError: if an argument is out of its range.

    Example:
      >>> schedule = cubic(0.8, begin=10, steps=100)
      >>> [round(float(schedule(t)), 3) for t in (0, 10, 60, 110, 200)]
      [0.0, 0.0, 0.7, 0.8, 0.8]

    References:
      Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning
      for model compression, 2017, arXiv:1710.01878, equation 1.
    """
    selection.check_sparsity(sparsity)
    selection.check_sparsity(initial)
    if begin < 0 or steps < 1:
        raise base.PruningError(
            f"A schedule needs begin >= 0 and steps >= 1; got {begin} and {steps}."
        )
    rise = optax.polynomial_schedule(
        initial, sparsity, power=3, transition_steps=steps, transition_begin=begin
    )
    return Ramp(begin, begin + steps, rise)


def geometric(
    sparsity: float, *, begin: int = 0, steps: int, rounds: int | None = None
) -> Ramp:
    """Geometric schedule, which removes the same fraction of the rest in every round.

    s(t) = 1 - (1 - sparsity)^p with p = clip((t - begin) / steps, 0, 1). With rounds, p
    rises in that many equal stairs, the first at `begin`, and each `steps / rounds`
    after the one before, rounded up to whole steps. This is the schedule of iterative
    magnitude pruning, which for example removes 20 % of the remaining weights per
    round.

    Args:
      sparsity: final sparsity, in [0, 1).
      begin: first step at which weights are pruned, >= 0.
      steps: length of the rise in steps, positive.
      rounds: number of stairs, in [1, steps]; None for a smooth curve.

    Returns:
      A schedule from an integer step to a float32 sparsity; exactly `sparsity` from
      step `begin + steps` on (with rounds, from the last stair on), where it ends.

    Raises:
      PruningError: if an argument is out of its range.

    Example:
      >>> schedule = geometric(0.75, steps=20, rounds=2)
      >>> [round(float(schedule(t)), 3) for t in (0, 9, 10, 20)]
      [0.5, 0.5, 0.75, 0.75]

    References:
      Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, arXiv:1803.03635
      (rounds). Tanaka et al., Pruning neural networks without any data by
      iteratively conserving synaptic flow, 2020, arXiv:2006.05467 (smooth).
    """
    selection.check_sparsity(sparsity)
    if sparsity >= 1:
        raise base.PruningError(
            "A geometric schedule never reaches sparsity 1; sparsity is in [0, 1)."
        )
    stairs = 1 if rounds is None else rounds
    if steps < 1 or begin < 0 or not 1 <= stairs <= steps:
        raise base.PruningError(
            "A schedule needs begin >= 0, steps >= 1 and 1 <= rounds <= steps; got "
            f"{begin}, {steps}, {rounds}."
        )
    if steps * stairs >= 2**31:
        raise base.PruningError(
            f"steps * rounds has to be below 2^31; got {steps} * {rounds}."
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        elapsed = jnp.clip(jnp.asarray(step, jnp.int32) - begin, -1, steps)
        share = jnp.maximum(elapsed, 0).astype(jnp.float32) / steps
        if rounds is not None:
            # In integers, so that stairs begin at exactly their steps.
            stair = jnp.minimum(elapsed * rounds // steps + 1, rounds)
            share = jnp.where(elapsed < 0, 0, stair).astype(jnp.float32) / rounds
        left = jnp.power(jnp.float32(1 - sparsity), share)
        return jnp.where(share >= 1, jnp.float32(sparsity), 1 - left)

    # The last stair begins (rounds - 1) / rounds of the steps after the first.
    end = begin + (steps if rounds is None else -(-(rounds - 1) * steps // rounds))
    return Ramp(begin, end, schedule)
