"""Generates the documentation's tables from the results and the recipes' docstrings.

A table is delimited by two marks, and only the text between them is replaced:

    <!-- table:NAME -->  ...  <!-- /table -->

NAME is `methods`, `claims`, the name of a study (its main table), `STUDY-KEY` for
another table of a study, such as `quickstart-curve`, or `claims-STUDY`.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import ExperimentError
from experiments.harness import results

_MARK = re.compile(r"^<!-- (?:table:(?P<name>\S+)|(?P<end>/table)) -->$", re.MULTILINE)
_PAPER = re.compile(
    r"(?:^|(?<=\. ))[A-Z][\w' -]*?(?: et al\.)?, (?P<title>.+?), (?P<year>\d{4}), "
    r"arXiv:(?P<number>\d{4}\.\d{4,5})"
)


def pages(root: Path) -> list[Path]:
    """Returns the pages below a directory that have tables, in order."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [p for p in found if p.exists() and _MARK.search(p.read_text("utf-8"))]


def update(page: Path, results_dir: Path, *, check: bool = False) -> list[str]:
    """Replaces the tables of a page that are out of date.

    Args:
      page: path of the page, a Markdown file.
      results_dir: directory of the records.
      check: whether to leave the file unchanged.

    Returns:
      The names of the tables that were out of date.

    Raises:
      ExperimentError: the page or a record is missing or broken, or there is no
        table of that name. The page is unchanged in that case.
    """
    try:
        old = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"cannot read {page}: {error}") from error
    stale = []

    def replacement(name: str, content: str) -> str:
        new = table_named(name, results_dir)
        if new != content:
            stale.append(name)
        return new

    new = replaced(old, replacement, page)
    if stale and not check:
        with results.replacing(page) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return stale


def replaced(text: str, table: Callable[[str, str], str], path: Path) -> str:
    """Replaces the text between each pair of marks by `table(name, old)`."""
    pieces, name, start = [], None, 0
    for mark in _MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        if (name is None) == (mark["end"] is not None):
            state = "no table is open" if name is None else f"{name!r} is still open"
            raise ExperimentError(f"{path}, line {line}: {mark[0]}, but {state}")
        if name is None:
            pieces.append(text[start : mark.end()])
            name, start = mark["name"], mark.end()
        else:
            old = text[start : mark.start()].strip("\n")
            pieces.append(f"\n\n{table(name, old)}\n\n")
            name, start = None, mark.start()
    if name is not None:
        raise ExperimentError(f"{path}: table {name!r} is never closed")
    if not pieces:
        raise ExperimentError(f"{path} has no <!-- table:NAME --> mark")
    return "".join([*pieces, text[start:]])


def table_named(name: str, results_dir: Path) -> str:
    """Returns a table as Markdown."""
    if name == "methods":
        return methods_table()
    records = results.read_all(results_dir)
    if name == "claims":
        return claims_table(records)
    for record in records:
        if name == f"claims-{record['name']}":
            return claims_table([record])
    known = {
        record["name"] if key == "main" else f"{record['name']}-{key}": (record, table)
        for record in records
        for key, table in record["tables"].items()
    }
    if name not in known:
        raise ExperimentError(
            f"no table {name!r} in {results_dir}; known: methods, claims, "
            f"{', '.join(known) or '(no study has been run)'}"
        )
    record, table = known[name]
    text = markdown(table["columns"], table["rows"])
    return f"{text}\n\n{table['caption']} {origin(record)}"


def origin(record: dict[str, Any]) -> str:
    """Returns the command, versions, device and date of a record, in one line."""
    versions, device = record["versions"], record["device"]
    said = " ".join([command(record["name"]), *record.get("options", [])])
    return (
        f"`{said}`, jax {versions['jax']}, "
        f"{device['count']} {device['kind']} device{'s' * (device['count'] != 1)}, "
        f"{record['seconds']:.0f} s, {record['date'][:10]}."
    )


def command(name: str) -> str:
    """Returns the command that produces a record."""
    from experiments.benchmarks import BENCHMARKS

    bench = "bench " if name in {entry.name for entry in BENCHMARKS} else ""
    return f"python -m experiments {bench}{name}"


def claims_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns all claims with our figures."""
    rows = [
        (
            claim["claim"],
            claim["source"],
            "" if claim["published"] is None else f"{claim['published']:g}",
            claim["target"],
            f"{claim['ours']:.2f}"
            + ("" if claim["spread"] is None else f" ± {claim['spread']:.2f}"),
            "yes" if claim["holds"] else "**no**",
            f"`{command(record['name'])}`",
        )
        for record in records
        for claim in record["claims"]
    ]
    columns = ("claim", "source", "published", "target", "ours", "holds", "command")
    return markdown(columns, rows)


def methods_table() -> str:
    """Returns one line per recipe, from its signature and docstring."""
    from jprune import recipes

    rows = [method_row(name, getattr(recipes, name)) for name in recipes.__all__]
    return markdown(("method", "call", "paper", "what it does"), rows)


def method_row(name: str, recipe: Callable[..., Any]) -> tuple[str, str, str, str]:
    """Returns name, call, papers and summary of a recipe."""
    required = [
        f"{p.name}=..." if p.kind is p.KEYWORD_ONLY else p.name
        for p in inspect.signature(recipe).parameters.values()
        if p.default is p.empty
    ]
    call = f"`jp.recipes.{name}({', '.join(required)})`"
    first = inspect.cleandoc(recipe.__doc__ or "").partition("\n")[0]
    return name.replace("_", " "), call, papers(name, recipe), first


def papers(name: str, recipe: Callable[..., Any]) -> str:
    """Returns the papers of the `References:` section, each with a link.

    Raises:
      ExperimentError: no paper is cited as `Authors, Title, year, arXiv:number`.
    """
    doc = inspect.cleandoc(recipe.__doc__ or "")
    section = re.search(r"^References:\n((?:[ ]+.*\n?|\n)*)", doc, re.MULTILINE)
    text = " ".join(section[1].split()) if section else ""
    found = [
        f"{paper['title']}, {paper['year']}, "
        f"[arXiv:{paper['number']}](https://arxiv.org/abs/{paper['number']})"
        for paper in _PAPER.finditer(text)
    ]
    if not found:
        raise ExperimentError(
            f"jprune.recipes.{name}: the References section of its docstring has no "
            "entry `Authors, Title, year, arXiv:number`"
        )
    return "; ".join(found)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
