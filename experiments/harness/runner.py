"""Runs a study: validates the options, runs it, then writes its files."""

import importlib
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as RichTable

from experiments import ExperimentError
from experiments.harness import results
from experiments.harness.catalogue import Entry, Options, Outcome, Study, Table


def run(entry: Entry, options: Options, data_dir: Path | None) -> dict[str, Any]:
    """Runs a study, writes its JSON and plot, and prints its table and claims.

    Args:
      entry: entry of the catalogue.
      options: options of the command line.
      data_dir: directory of the data sets, from the option or the environment.

    Returns:
      The record that was written.

    Raises:
      ExperimentError: an option is invalid, or data is missing or broken. Nothing
        has been written in that case.
    """
    begin = time.perf_counter()
    check(options)
    results.prepare(options.results_dir)
    console = Console()
    console.print(f"[bold]{entry.name}[/bold]: {entry.title}")
    study: Study = getattr(importlib.import_module(entry.module), entry.attribute)
    settings = with_options(study.settings, options)
    with progress_bar() as progress:
        outcome = study.run(settings, data_dir, progress)
    record = {
        "name": entry.name,
        "title": entry.title,
        "date": results.now(),
        "seconds": round(time.perf_counter() - begin, 1),
        "seeds": list(settings.seeds),
        "settings": settings._asdict(),
        "options": [] if options.tasks is None else ["--tasks", *options.tasks],
        "versions": results.versions(),
        "device": results.device(),
        "figures": outcome.figures,
        "tables": {name: table._asdict() for name, table in outcome.tables.items()},
        "claims": [claim.check(outcome.figures) for claim in study.claims],
    }
    files = write(record, outcome, options)
    console.print(rich_table(outcome.tables["main"]))
    print_claims(console, record["claims"])
    console.print(f"{record['seconds']:.0f} s; wrote {' and '.join(map(str, files))}")
    return record


def check(options: Options) -> None:
    """Raises an ExperimentError for options that are invalid for every study."""
    seeds = options.seeds
    if seeds is not None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ExperimentError(f"--seeds must be distinct numbers, got {seeds}")
        if not all(0 <= seed < 2**31 for seed in seeds):
            raise ExperimentError(f"--seeds must be in [0, 2**31), got {seeds}")
    if options.steps is not None and options.steps < 1:
        raise ExperimentError(f"--steps must be positive, got {options.steps}")
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise ExperimentError(f"--data-dir {options.data_dir} is not a directory")


def with_options(settings: Any, options: Options) -> Any:
    """Returns the settings with the seeds, steps and tasks of the command line.

    Raises:
      ExperimentError: the study has no such setting, or no such task.
    """
    names = ("seeds", "steps", "tasks")
    chosen = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    if not isinstance(getattr(settings, "steps", 0), int) and "steps" in chosen:
        raise ExperimentError(
            f"--steps cannot replace the several steps {settings.steps} of this study"
        )
    if "tasks" in chosen:
        known = getattr(settings, "tasks", ())
        unknown = [task for task in chosen["tasks"] if task not in known]
        if unknown or not chosen["tasks"]:
            raise ExperimentError(
                f"--tasks: no task {unknown} in this study, only {list(known)}"
            )
    return settings._replace(**chosen)


def progress_bar() -> Progress:
    """Returns a progress bar on stderr, so that stdout only has the table."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def write(record: dict[str, Any], outcome: Outcome, options: Options) -> list[Path]:
    """Writes the plot and the JSON, each atomically, and returns their paths."""
    target = options.results_dir / f"{record['name']}.json"
    files = [target]
    if options.plot and outcome.draw is not None:
        plot = target.with_suffix(".png")
        with results.replacing(plot) as temporary:
            outcome.draw(temporary)
        files.append(plot)
    results.write(target, record)
    return files


def rich_table(table: Table) -> RichTable:
    """Returns a table for the terminal, with the figures aligned to the right."""
    out = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=table.caption,
        caption_justify="left",
    )
    for i, column in enumerate(table.columns):
        out.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        out.add_row(*row)
    return out


def print_claims(console: Console, claims: list[dict[str, Any]]) -> None:
    """Prints each claim with our figure and whether the claim holds."""
    for claim in claims:
        verdict = "[green]holds[/green]" if claim["holds"] else "[red]fails[/red]"
        spread = "" if claim["spread"] is None else f" ± {claim['spread']:.2f}"
        console.print(
            f"{verdict}  {claim['claim']}: {claim['ours']:.2f}{spread}, "
            f"target {claim['target']}",
            highlight=False,
        )
