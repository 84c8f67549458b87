"""What `explain` says, as plain data."""

from jprune import graph as jg


def reasons(graph, most=None):
    """The entries of `explain`: reason -> names, each in one line."""
    headline, *lines = jg.explain(graph, most).splitlines()
    assert "can shrink" in headline
    entries: list[list[str]] = []
    for line in lines:
        if not line.startswith(" "):
            entries.append([line, ""])
        elif line.startswith("    "):
            entries[-1][1] += " " * bool(entries[-1][1]) + line.strip()
        else:
            entries[-1][0] += line[1:]
    found = dict(entries)
    assert len(found) == len(entries)
    return found
