"""Docstrings with Google's sections, as Markdown for MyST.

    markdown(text, names)      the whole docstring
    in_order(text)             the names of its maps, which is the order to read them

Indented paragraphs are formulas, code or maps of names; `>>>` begins an example; names
in backticks that are in `names` become links.
"""

import ast
import re
from textwrap import dedent

_SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Examples?|References):\n", re.M
)
_ROW = re.compile(r"^ {4}(\S.*?\S?) {2,}(\S.*)$")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def markdown(text: str, names: dict[str, str]) -> str:
    """Returns a docstring as Markdown.

    Args:
      text: the docstring, without indentation.
      names: names that become links -> full names.
    """
    head, *rest = _SECTION.split(text)
    parts = [prose(head, names)]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        parts.append(_section(title, dedent(body).strip("\n"), names))
    return "\n\n".join(part for part in parts if part)


def in_order(text: str) -> list[str]:
    """Returns the names that a docstring maps, in order, and then those it marks."""
    rows = [_ROW.match(line) or [line, line] for line in text.split("\n")]
    mapped = " ".join(row[1] for row in rows if row[0].startswith("    "))
    marked = " ".join(re.findall(r"`[^`\n]+`", text))
    return re.findall(r"\w+", f"{mapped} {marked}")


def _section(title: str, body: str, names: dict[str, str]) -> str:
    if title in ("Example", "Examples"):
        return f"**Example**\n\n```pycon\n{body}\n```"
    if title == "References":
        cited = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", body)
        return f"**References**\n\n{cited}"
    if title in ("Returns", "Yields"):
        return f":returns: {_field(prose(body, names))}"
    role = {"Args": "param", "Attributes": "var", "Raises": "raises"}[title]
    found = []
    for item in re.split(r"\n(?=\S)", body):
        name, _, said = item.partition(":")
        label = name.replace("*", "\\*")
        said = prose(_flush(said), names)
        found.append(f":{role} {label}: {_field(said)}")
    return "\n".join(found)


def _flush(text: str) -> str:
    first, _, rest = text.strip().partition("\n")
    return f"{first}\n{dedent(rest)}"


def _field(text: str) -> str:
    """Indents all lines but the first, as a field's body has to be."""
    return text.strip().replace("\n", "\n  ")


def prose(text: str, names: dict[str, str]) -> str:
    """Returns paragraphs as Markdown: text, maps of names, formulas and examples."""
    found = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines):
            found.append(_map(lines, names) or _code(lines))
        elif lines[0].lstrip().startswith(">>>"):
            found.append("```pycon\n" + dedent(block) + "\n```")
        else:
            found.append(_linked(block, names))
    # An indented example of several paragraphs is one.
    return re.sub(r"\n```\n\n```python\n", "\n\n", "\n\n".join(found))


def _code(lines: list[str]) -> str:
    body = dedent("\n".join(lines))
    if ">>>" in body:
        return f"```pycon\n{body}\n```"
    calls = re.search(r"\w\(|^\s*(?:import|from|def|class) ", body, re.M)
    try:
        ast.parse(body)
    except SyntaxError:
        calls = None
    return f"```{'python' if calls else 'text'}\n{body}\n```"


def _map(lines: list[str], names: dict[str, str]) -> str:
    """Returns a table if the lines map names to descriptions, else nothing."""
    rows: list[list[str]] = []
    for line in lines:
        match = _ROW.match(line)
        indented = line.startswith("     ")
        if match and not indented:
            rows.append([match[1], match[2]])
        elif match and rows and (not rows[-1][1] or rows[-1][0].endswith(",")):
            # A list of names that took two lines, and its description.
            rows[-1] = [f"{rows[-1][0]} {match[1]}", match[2]]
        elif rows and indented:
            rows[-1][1] = f"{rows[-1][1]} {line.strip()}".strip()
        elif re.fullmatch(r" {4}[\w.]+(?:\(.*\))?(?:, [\w.]+)*,?", line):
            rows.append([line.strip(), ""])
        else:
            return ""
    # A formula or a chain of links is no map, though it may have wide spaces.
    if not rows or any(re.search(r"[*=](?![^(]*\))|->", row[0]) for row in rows):
        return ""
    body = [
        f"| {_cell(_names(left, names))} | {_cell(_linked(right, names))} |"
        for left, right in rows
    ]
    return "\n".join(["| | |", "|---|---|", *body])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _names(text: str, names: dict[str, str]) -> str:
    """Links the names of a row's first column."""

    def link(match: re.Match[str]) -> str:
        full = names.get(match[0])
        return f"{{py:obj}}`{match[0]} <{full}>`" if full else match[0]

    linked = re.sub(r"[A-Za-z_][\w.]*", link, text)
    return linked if linked != text else f"`{text}`"


def _linked(text: str, names: dict[str, str]) -> str:
    """Links the names in backticks."""

    def link(match: re.Match[str]) -> str:
        full = names.get(match[1])
        return f"{{py:obj}}`{match[1]} <{full}>`" if full else match[0]

    return re.sub(r"(?<!`)`([^`\n]+)`(?!`)", link, text)
