"""Table and claims of the decoding study."""

from typing import Any

from experiments.harness.catalogue import Claim, Table
from experiments.harness.stats import rounded
from experiments.studies.attention._levels import PAPER, ROWS


def table(figures: dict[str, Any], batch_size: int) -> Table:
    """Returns the table with a row per model, text and technique."""
    rows = []
    for name, model in figures.items():
        for text, each in model["texts"].items():
            full = each["dense"]
            for technique, one in each.items():
                dense = technique == "dense"
                risen = 100 * (one["perplexity"] / full["perplexity"] - 1)
                cells = (
                    f"{name}, {text}" if dense else "",
                    technique,
                    f"{one['perplexity']:.3f}",
                    "" if dense else f"{risen:+.2f}",
                    f"{full['bytes'] / one['bytes']:.2f}x",
                    f"{full['bytes'] / 2 / one['bytes']:.2f}x",
                    f"{full['products'] / one['products']:.2f}x",
                    f"{one['refetched']:.1f}" if technique == ROWS[-1] else "",
                )
                rows.append(cells)
    return Table(COLUMNS, tuple(rows), caption(figures, batch_size))


COLUMNS = (
    "model, text",
    "cache",
    "perplexity",
    "rise (%)",
    "DRAM",
    "of 16 bits",
    "products",
    "rows refetched (%)",
)


def caption(figures: dict[str, Any], batch_size: int) -> str:
    """Returns the caption of the table."""
    chosen = "; ".join(
        f"{name} {_said(model['chosen'])}, {model['seconds']['dense']:.2f} and "
        f"{model['seconds']['tokens']:.2f} ms"
        for name, model in figures.items()
    )
    return (
        f"{batch_size} windows of each text, half of each decoded after half as its "
        "prompt; perplexity per token, of the GPT per byte. Nothing is trained with "
        "pruning. DRAM: keys and values read for a token, against float32. Chosen on "
        "other windows, with the milliseconds of processor time for a token of all "
        "windows, its share of the prompt included, dense and with the smaller cache: "
        f"{chosen}."
    )


def _said(way: dict[str, Any]) -> str:
    bits = way["bits"]
    shares = (("share", "the cache"), ("heads", "heads"), ("values", "values"))
    return (
        ", ".join(f"{100 * way[name]:.0f} % of {what}" for name, what in shares)
        + f", keys of {bits['msb']} + {bits['lsb']} bits, values of {bits['value']}"
    )


def worst_rise(figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the largest rise of perplexity with all techniques, in percent."""
    rises = [
        100 * (each[ROWS[-1]]["perplexity"] / each["dense"]["perplexity"] - 1)
        for model in figures.values()
        for each in model["texts"].values()
    ]
    return rounded(max(rises)), None


def least_saved(figures: dict[str, Any]) -> tuple[float, float | None]:
    """Measures the smallest traffic reduction with all techniques."""
    saved = [
        each["dense"]["bytes"] / each[ROWS[-1]]["bytes"]
        for model in figures.values()
        for each in model["texts"].values()
    ]
    return rounded(min(saved)), None


def claims(what: str) -> tuple[Claim, ...]:
    """Returns the claims for some models."""
    return (
        Claim(
            f"{what}, pruned cache with all of SpAtten's techniques: rise of "
            "perplexity on the worst text (%)",
            PAPER,
            ("<=", 5),
            worst_rise,
        ),
        Claim(
            f"{what}, the same: times less read, from float32, on the worst text",
            PAPER,
            (">=", 8),
            least_saved,
        ),
    )
