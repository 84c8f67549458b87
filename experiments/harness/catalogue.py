"""The words that studies and benchmarks share; imports nothing heavy."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS_DIR = Path(__file__).parents[1] / "results"

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Options(NamedTuple):
    """What the command line can change of a study.

    Attributes:
      data_dir: Directory of the data sets other than digits; default
        $JPRUNE_DATA_DIR.
      results_dir: Where the JSON and the plot go. Use another one for small runs:
        the default holds the figures that the README quotes.
      seeds: Seeds, one network each; default the study's own.
      steps: Training steps of each network; default the study's own.
      tasks: Of a study with several tasks, those to run; default all.
      plot: Draw the plot.
    """

    data_dir: Path | None = None
    results_dir: Path = RESULTS_DIR
    seeds: tuple[int, ...] | None = None
    steps: int | None = None
    tasks: tuple[str, ...] | None = None
    plot: bool = True


class Entry(NamedTuple):
    """A line of the catalogue; the module is imported when it runs.

    Attributes:
      name: What the command line calls it, and the name of its JSON.
      title: One line for people.
      module: Dotted module that holds it.
      attribute: The name of the `Study` in that module.
    """

    name: str
    title: str
    module: str
    attribute: str = "STUDY"


class Claim(NamedTuple):
    """A statement that a study puts to the test.

    Attributes:
      claim: The statement, with its unit.
      source: Who says so: title, year, arXiv number, or `jprune`.
      target: A comparison and a bound, such as `("<=", 1.0)`.
      measure: `figures -> (ours, spread)`; the spread is None for one seed.
      published: The source's own figure, or None.
    """

    claim: str
    source: str
    target: tuple[str, float]
    measure: Callable[[dict[str, Any]], tuple[float, float | None]]
    published: float | None = None

    def check(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Returns the claim with our figure and whether it holds, as plain data."""
        ours, spread = self.measure(figures)
        sign, bound = self.target
        return {
            "claim": self.claim,
            "source": self.source,
            "published": self.published,
            "target": f"{sign} {bound:g}",
            "ours": ours,
            "spread": spread,
            "holds": bool(_COMPARISONS[sign](ours, bound)),
        }


class Table(NamedTuple):
    """Cells for the terminal and the README."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


class Outcome(NamedTuple):
    """What a study found.

    Attributes:
      figures: Plain numbers, lists and dicts, for the JSON.
      tables: By name; the one with the study's name is printed.
      draw: `path -> None` writes a PNG; or None.
    """

    figures: dict[str, Any]
    tables: dict[str, Table]
    draw: Callable[[Path], None] | None = None


class Study(NamedTuple):
    """An experiment as data.

    Attributes:
      settings: A NamedTuple with every hyper-parameter, among them `seeds` and
        `steps`.
      claims: What it puts to the test.
      run: `(settings, data_dir, progress) -> Outcome`, where `progress` is a
        `rich.progress.Progress`.
    """

    settings: Any
    claims: tuple[Claim, ...]
    run: Callable[..., Outcome]
