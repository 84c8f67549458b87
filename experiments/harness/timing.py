"""Interleaved timing of several functions, so that load affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_LEAST_SECONDS = 0.2  # shorter measurements are not accurate


def clock() -> float:
    """Returns CPU time on CPUs, where other processes run too, else wall-clock time."""
    cpu = jax.default_backend() == "cpu"
    return time.process_time() if cpu else time.perf_counter()


def seconds(f: Callable[[], Any], repeat: bool = True) -> float:
    """Returns the seconds of one call.

    Args:
      f: function without arguments, already compiled; the time includes waiting for
        the arrays of its result.
      repeat: whether to call it often enough for an accurate figure.
    """
    calls, begin = 0, clock()
    while True:
        jax.block_until_ready(f())
        calls += 1
        taken = clock() - begin
        if not repeat or taken >= _LEAST_SECONDS:
            return taken / calls


def in_turns(forms: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Returns the median seconds of each function, timed in turns.

    Args:
      forms: functions without arguments by name; each is called once before.
      turns: number of measurements per function.

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
