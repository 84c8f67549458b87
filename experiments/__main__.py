"""The command line: `python -m experiments --help`."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments import ExperimentError
from experiments.benchmarks import BENCHMARKS
from experiments.harness.catalogue import RESULTS_DIR, Entry, Options
from experiments.studies import STUDIES

DESCRIPTION = """Studies and benchmarks of jprune: the evidence for its claims.

`list` shows all of them; each has its own command. A run writes its figures to
jprune-results/NAME.json in the working directory. The results that the documentation
quotes are in experiments/results, and `tables` makes its tables from these."""

ROOT = Path(__file__).parents[1]


def study_command(entry: Entry) -> Callable[..., None]:
    """Returns the command that runs one study."""

    def command(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
        run_entry(entry, options)

    command.__doc__ = entry.title if entry.title.endswith("?") else f"{entry.title}."
    return command


def bench(
    name: Annotated[str, tyro.conf.Positional],
    options: Annotated[Options, tyro.conf.arg(name="")],
) -> None:
    """Run a benchmark.

    Args:
      name: name of the benchmark, as shown by `list`.
      options: settings to override.
    """
    for entry in BENCHMARKS:
        if entry.name == name:
            return run_entry(entry, options)
    known = ", ".join(entry.name for entry in BENCHMARKS)
    raise ExperimentError(f"unknown benchmark {name!r}; known: {known}")


def run_entry(entry: Entry, options: Options) -> None:
    """Runs a study or benchmark; $JPRUNE_DATA_DIR is the default data directory."""
    from experiments.harness import runner

    data_dir = options.data_dir
    if data_dir is None and os.environ.get("JPRUNE_DATA_DIR"):
        data_dir = Path(os.environ["JPRUNE_DATA_DIR"])
    runner.run(entry, options, data_dir)


def list_entries(results_dir: Path = RESULTS_DIR) -> None:
    """List the studies and benchmarks with the outcome of their last run.

    Args:
      results_dir: directory of the results; default: those that the documentation
        quotes.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from experiments.harness import results

    command = Column("command", no_wrap=True)
    table = Table(command, "what", "claims that hold", "last run")
    for prefix, entries in (("", STUDIES), ("bench ", BENCHMARKS)):
        for entry in entries:
            path = results_dir / f"{entry.name}.json"
            held, date = "", "never"
            if path.exists():
                record = results.read(path)
                holds = [claim["holds"] for claim in record["claims"]]
                held, date = f"{sum(holds)} of {len(holds)}", record["date"][:10]
            table.add_row(prefix + entry.name, entry.title, held, date)
    Console().print(table)


def tables(
    pages: tuple[Path, ...] = (), results_dir: Path = RESULTS_DIR, check: bool = False
) -> None:
    """Regenerate the documentation's tables from the results and docstrings.

    Args:
      pages: files with the marks `<!-- table:NAME -->` ... `<!-- /table -->`;
        default: README.md and the pages in docs/.
      results_dir: directory of the results; default: those that the documentation
        quotes.
      check: change nothing, and exit with 1 if a table is out of date.
    """
    module = importlib.import_module("experiments.tables")
    stale = {}
    for page in pages or module.pages(ROOT):
        found = module.update(page, results_dir, check=check)
        if found:
            stale[page] = ", ".join(found)
    for page, names in stale.items():
        print(f"{page}: {'out of date:' if check else 'updated'} {names}")
    if stale and check:
        sys.exit(f"out of date: {'; '.join(stale.values())}")
    if not stale:
        print("up to date")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line; errors that the user can fix exit with code 2."""
    commands = {
        "list": list_entries,
        **{entry.name: study_command(entry) for entry in STUDIES},
        "bench": bench,
        "tables": tables,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m experiments",
            description=DESCRIPTION,
            args=args,
        )
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
