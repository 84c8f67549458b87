"""Timing of decoding with a KV cache, shared by the benchmarks of attention."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.attention import _decode as decoding
from experiments.harness import timing
from experiments.harness.catalogue import Table
from experiments.harness.stats import plus_minus, rounded


def note(found: dict[str, list[float]], times: Mapping[str, float]) -> None:
    """Appends the seconds of a seed to the lists of milliseconds."""
    for name, seconds in times.items():
        note_ratio(found, f"ms, {name}", 1e3 * seconds)


def note_ratio(found: dict[str, list[float]], name: str, value: float) -> None:
    """Appends the figure of a seed to its list."""
    found.setdefault(name, []).append(rounded(value))


def decoder(
    settings: Any, batch: int, length: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Times decoding with dense, masked and evicting caches.

    Args:
      settings: settings of a benchmark, with `seeds`, `steps` and `tokens`.
      batch: number of sequences.
      length: tokens that a dense cache holds.
      advance: called after each seed.

    Returns:
      For each seed the milliseconds per token of each form, the ratios between forms
      and the bandwidths.
    """
    context = decoding.Context(batch, length, settings.tokens)
    gigabytes = decoding.dense_bytes(context) / 1e9
    fewer = decoding.ideal(context)
    compiled: dict[str, Any] = {}
    found: dict[str, list[float]] = {}
    for seed in settings.seeds:
        forms = decoding.forms(context, seed, compiled)
        times = timing.in_turns(forms, settings.steps)
        times = {
            name: seconds / (1 if name == "streaming" else settings.tokens)
            for name, seconds in times.items()
        }
        note(found, times)
        note_ratio(found, "of the ideal", times["dense"] / times["evicting"] / fewer)
        fastest = min(times[name] for name in decoding.DENSE)
        ratio = fastest / times["evicting"] / fewer
        note_ratio(found, "of the ideal over the fastest", ratio)
        note_ratio(found, "masked, times faster", times["dense"] / times["masked"])
        shares = dict.fromkeys(("streaming", *decoding.DENSE), 1.0)
        for name, share in (shares | {"evicting": 1 / fewer}).items():
            note_ratio(found, f"GB/s, {name}", share * gigabytes / times[name])
        advance()
    return {
        "slots": list(decoding.budgets(context)),
        "megabytes": rounded(1e3 * gigabytes),
        "times_fewer": rounded(fewer),
        **found,
    }


def decoding_table(figures: dict[str, Any], settings: Any) -> Table:
    """Returns the table of decoding: times, ratios and bandwidths."""
    rows = []
    for context, one in figures["decoding"].items():
        faster = np.divide(one["ms, dense"], one["ms, evicting"])
        rows.append(
            (
                context,
                plus_minus(one["ms, dense"]),
                plus_minus(one["ms, evicting"]),
                plus_minus(list(faster)),
                f"{one['times_fewer']:.2f}",
                plus_minus(one["of the ideal"]),
                plus_minus(one["GB/s, dense"]),
                plus_minus(one["GB/s, evicting"]),
                plus_minus(one["GB/s, streaming"]),
                plus_minus(one["GB/s, rows"]),
                plus_minus(one["GB/s, columns"]),
                plus_minus(one["of the ideal over the fastest"]),
                plus_minus(one["masked, times faster"]),
            )
        )
    return Table(
        columns=(
            *("batch x context", "dense cache (ms)", "evicting (ms)", "times faster"),
            *("times fewer bytes", "of the ideal", "dense (GB/s)", "evicting (GB/s)"),
            *("streaming product (GB/s)", "dense, all rows (GB/s)"),
            *("dense, all columns (GB/s)", "of the ideal over the fastest"),
            "masked instead, times faster",
        ),
        rows=tuple(rows),
        caption=(
            "The attention of 12 layers of GPT-2 small for a token, float32, "
            "caches donated. Budgets are the authors' "
            "(0.9, 0.7, 4 x 0.2 and 6 x 0.1 of the context). The streaming product "
            "is a vector times a matrix of as many bytes as the dense cache. Keys "
            "are (dim, slots) and values (slots, dim), but where a dense cache is all "
            "rows, (slots, dim), or all columns. Medians "
            f"of {settings.steps} turns of {settings.tokens} tokens, mean ± std over "
            f"{len(settings.seeds)} seeds."
        ),
    )
