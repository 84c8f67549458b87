"""Types that studies and benchmarks share; imports nothing heavy."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# The results that the documentation quotes; git tracks them.
RESULTS_DIR = Path(__file__).parents[1] / "results"
# Where a run writes, in the working directory: git ignores it.
OUTPUT_DIR = Path("jprune-results")

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Options(NamedTuple):
    """Settings of a study that the command line can override.

    Attributes:
      data_dir: directory of the data sets other than digits; default:
        $JPRUNE_DATA_DIR.
      results_dir: directory for the JSON and the plot. The results that the
        documentation quotes are in experiments/results, which is only written to if
        it is named here.
      seeds: random seeds, one network each; default: those of the study.
      steps: training steps of each network; default: those of the study.
      tasks: tasks to run, for a study with several; default: all.
      plot: draw the plot.
    """

    data_dir: Path | None = None
    results_dir: Path = OUTPUT_DIR
    seeds: tuple[int, ...] | None = None
    steps: int | None = None
    tasks: tuple[str, ...] | None = None
    plot: bool = True


class Entry(NamedTuple):
    """An entry of the catalogue; its module is imported when it runs.

    Attributes:
      name: name on the command line, and of the JSON.
      title: one-line description.
      module: dotted name of the module.
      attribute: name of the `Study` in that module.
    """

    name: str
    title: str
    module: str
    attribute: str = "STUDY"


class Claim(NamedTuple):
    """A statement that a study tests.

    Attributes:
      claim: the statement, with its unit.
      source: who makes the claim: title, year and arXiv number, or `jprune`.
      target: comparison and bound, such as `("<=", 1.0)`.
      measure: `figures -> (ours, spread)`; the spread is None for one seed.
      published: the figure of the source, or None.
    """

    claim: str
    source: str
    target: tuple[str, float]
    measure: Callable[[dict[str, Any]], tuple[float, float | None]]
    published: float | None = None

    def check(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Returns the claim, our figure and whether the claim holds, as plain data."""
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
    """A table for the terminal and the documentation."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


class Outcome(NamedTuple):
    """Results of a study.

    Attributes:
      figures: plain numbers, lists and dicts, for the JSON.
      tables: tables by name; `main` is printed.
      draw: `path -> None`, which writes a PNG; or None.
    """

    figures: dict[str, Any]
    tables: dict[str, Table]
    draw: Callable[[Path], None] | None = None


class Study(NamedTuple):
    """An experiment as data.

    Attributes:
      settings: NamedTuple with every hyper-parameter, including `seeds` and `steps`.
      claims: statements that the study tests.
      run: `(settings, data_dir, progress) -> Outcome`, where `progress` is a
        `rich.progress.Progress`.
    """

    settings: Any
    claims: tuple[Claim, ...]
    run: Callable[..., Outcome]
