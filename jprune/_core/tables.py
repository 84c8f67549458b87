"""Tables for a terminal, which leave out a column rather than break a name."""

from collections.abc import Sequence
from typing import Any, NamedTuple

_LINE = 100  # characters of a line of text


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      title: text above it.
      cells: text of each row.
      footer: text below it.
      dispensable: left out where the terminal is too narrow for all; of several, the
        last one first.
      justify: "left" or "right".
    """

    title: str
    cells: Sequence[str]
    footer: str = ""
    dispensable: bool = False
    justify: Any = "right"


def print_table(
    columns: Sequence[Column], caption: str, what: str, *, title: str = ""
) -> None:
    """Prints columns side by side, at the width of the terminal.

    Cells break only in the first column, and only where nothing is left to leave out.
    Texts above and below are folded to 100 characters, or to the terminal.

    Args:
      columns: the columns, all with the same number of cells.
      caption: text below the table, which names the columns that were left out.
      what: name of the function that prints, for the error.
      title: text above the table; none if empty.

    Raises:
      ImportError: if rich is not installed.
    """
    try:
        from rich import box, console, measure, table, text
    except ImportError as error:
        raise ImportError(
            f"{what} needs rich: pip install 'jprune[report]'."
        ) from error

    def made(shown: Sequence[Column]) -> Any:
        out = table.Table(
            box=box.SIMPLE, show_footer=True, pad_edge=False, collapse_padding=True
        )
        for i, c in enumerate(shown):
            fold: Any = {"overflow": "fold"} if i == 0 else {"no_wrap": True}
            out.add_column(c.title, c.footer, justify=c.justify, **fold)
        out.show_footer = any(c.footer for c in shown)
        # As `Text`: a path may look like rich's markup.
        for cells in zip(*(c.cells for c in shown), strict=True):
            out.add_row(*map(text.Text, cells))
        return out

    screen = console.Console()
    endless = screen.options.update(max_width=10_000)
    shown, gone = list(columns), []
    while measure.Measurement.get(screen, endless, made(shown)).maximum > screen.width:
        spare = [c for c in shown if c.dispensable]
        if not spare:
            break
        shown.remove(spare[-1])
        gone.append(spare[-1].title)
    lines = min(_LINE, screen.width)
    if title:
        screen.print(text.Text(title, style="bold"), width=lines)
    screen.print(made(shown))
    note = f" Too narrow for: {', '.join(gone)}." if gone else ""
    screen.print(text.Text(caption + note, style="italic"), width=lines)
