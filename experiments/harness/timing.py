"""Times as ratios: forms are timed in turns, so that load hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_LEAST_SECONDS = 0.2  # a look at the clock less often than that is not exact


def clock() -> float:
    """Returns seconds: of CPU time on a CPU, where other processes run too."""
    cpu = jax.default_backend() == "cpu"
    return time.process_time() if cpu else time.perf_counter()


def seconds(f: Callable[[], Any], repeat: bool = True) -> float:
    """Returns the seconds of one call.

    Args:
      f: a function without arguments, warmed up; arrays in its result are waited
        for.
      repeat: Call it often enough for an exact figure.
    """
    calls, begin = 0, clock()
    while True:
        jax.block_until_ready(f())
        calls += 1
        taken = clock() - begin
        if not repeat or taken >= _LEAST_SECONDS:
            return taken / calls


def in_turns(forms: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Returns each form's median seconds.

    Args:
      forms: functions without arguments; each is called once before.
      turns: how often each is timed.

    Returns:
      Seconds by name.
    """
    for f in forms.values():
        jax.block_until_ready(f())
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(turns):
        for name, f in forms.items():
            taken[name].append(seconds(f))
    return {name: statistics.median(times) for name, times in taken.items()}
