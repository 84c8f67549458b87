"""Runs the notebooks and writes them, with their outputs, as pages of the gallery.

    python docs/_ext/gallery.py [--text] [NAME ...]

A run takes minutes, so pages and pictures in docs/gallery are committed. `--text` runs
nothing: it puts today's text around the outputs of the last run, and fails if the code
is another. Both write the index.

Pages have the printed text and the pictures of a run, without progress, HTML, warnings
and paths of the machine. Tags of cells: `remove-cell` leaves a cell out, and the first
picture of the cell with `thumbnail` is the one in the index.
"""

import base64
import io
import itertools
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image, ImageOps

ROOT = Path(__file__).parents[2]
COLAB, GALLERY = ROOT / "colab", ROOT / "docs" / "gallery"
ADDRESS = "https://colab.research.google.com/github/jprune/jprune/blob/main/colab"
COLUMNS = 108  # of rich's tables
MOST_LINES, MOST_COLUMNS = 60, 240  # of an output
MOST_BYTES = 150_000  # of a picture
THUMBNAIL = (480, 320)

_TERMINAL_CODE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*\x07|[@-Z\\-_])")
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\",:]+/)+")  # of an absolute path
_TEXT = "```{code-block} text\n:class: output\n\n"
_OUTPUT = rf"{re.escape(_TEXT)}.*?\n```|!\[[^\]\n]*\]\(\w+_\d+\.png\)"
_CODE = re.compile(
    rf"^(?P<fence>```+){{code-block}} python\n(?P<source>.*?)\n(?P=fence)\n"
    rf"(?P<outputs>(?:\n(?:{_OUTPUT})\n)*)",
    re.M | re.S,
)


def run(path: Path) -> tuple[Any, float]:
    """Returns an executed notebook, and the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = nbclient.NotebookClient(notebook, timeout=1_800, kernel_name="python3")
    begin = time.perf_counter()
    client.execute(
        env={**os.environ, "PYTHONPATH": found, "JUPYTER_COLUMNS": str(COLUMNS)}
    )
    return notebook, time.perf_counter() - begin


def run_note(seconds: float) -> str:
    """Returns a sentence about a run: its size, time, processor and JAX."""
    sizes = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("JPRUNE_NB_")]
    size = f"with `{' '.join(sorted(sizes))}`" if sizes else "at full size"
    minutes, rest = divmod(round(seconds), 60)
    duration = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    jax = metadata.version("jax")
    return f"Run {size} in {duration} on {processor()} with JAX {jax}."


def processor() -> str:
    """Returns the number of cores, and name and clock as far as the system tells."""
    path, names = Path("/proc/cpuinfo"), [platform.machine()]
    if path.exists():
        text = path.read_text("utf-8")
        found = re.findall(r"^model name\s*: (.+)$", text, re.M)
        names = [re.sub(r"\(\w+\)| @.*", "", name) for name in found[:1]] or names
        clock = re.findall(r"^cpu MHz\s*: ([\d.]+)$", text, re.M)
        names += [f"{float(mhz) / 1e3:.1f} GHz" for mhz in clock[:1]]
    return f"{os.cpu_count()} cores ({', '.join(names)})"


def shown(notebook: Any) -> list[Any]:
    """Returns the cells that a page has."""
    return [
        cell
        for cell in notebook.cells
        if cell.source and "remove-cell" not in cell.metadata.get("tags", ())
    ]


def title_of(notebook: Any) -> str:
    """Returns the heading of a notebook."""
    return re.search(r"^# (.+)$", notebook.cells[0].source, re.M)[1]


def outputs_of(notebook: Any, name: str) -> tuple[list[str], dict[str, bytes]]:
    """Returns the outputs of each code cell as Markdown, and pictures by file name."""
    texts, pictures, heading = [], {}, title_of(notebook)
    for cell in shown(notebook):
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ (.+)$", cell.source, re.M)][-1]
            continue
        parts = []
        for text, picture in _kept(cell.outputs):
            if text:
                parts.append(f"\n{_TEXT}{text}\n```\n")
                continue
            file = f"{name}_{len(pictures) + 1}.png"
            if len(picture) > MOST_BYTES:
                raise ValueError(
                    f"{file}, after '{heading}', has {len(picture):,} bytes of at most "
                    f"{MOST_BYTES:,}: draw it smaller."
                )
            pictures[file] = picture
            parts.append(f"\n![{heading}]({file})\n")
        texts.append("".join(parts))
    return texts, pictures


def _kept(outputs: Sequence[Any]) -> Iterator[tuple[str, bytes]]:
    """Yields texts and pictures in order; texts in a row are one."""
    found = [_result(o) for o in outputs if o.get("name") != "stderr"]
    for is_picture, some in itertools.groupby(found, key=lambda each: bool(each[1])):
        if is_picture:
            yield from some
        elif text := clean("".join(each[0] for each in some)):
            yield text, b""


def _result(output: Any) -> tuple[str, bytes]:
    """Returns the text of an output, which ends its line, or its picture."""
    if output.output_type == "stream":
        return output.text, b""
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}\n", b""
    if "image/png" in output.data:
        return "", base64.b64decode(output.data["image/png"])
    return output.data.get("text/plain", "").rstrip("\n") + "\n", b""


def clean(text: str) -> str:
    """Returns text as a terminal shows it in the end, without paths, cut if long."""
    text = _FOLDERS.sub("", _TERMINAL_CODE.sub("", text))
    lines = [
        line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")
    ]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    lines = [x if len(x) <= MOST_COLUMNS else x[:MOST_COLUMNS] + " ..." for x in lines]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"... {len(lines) - MOST_LINES} more lines"]
    return "\n".join(lines).replace("```", "'''")


def page(notebook: Any, name: str, outputs: Sequence[str], note: str) -> str:
    """Returns a page: the shown cells with the outputs of code, after a note."""
    cells = shown(notebook)
    _, title, rest = re.split(r"^# (.+)$", cells[0].source, maxsplit=1, flags=re.M)
    note = f"{note} [Open in Colab]({ADDRESS}/{name}.ipynb)."
    parts = [f"# {title}\n\n{note}\n\n{rest.strip()}\n"]  # without the badge
    remaining = iter(outputs)
    for cell in cells[1:]:
        if cell.cell_type == "markdown":
            parts.append(f"\n{cell.source}\n")
        else:
            # Not "```python": the tests run those, and these take minutes.
            fence = "````" if "```" in cell.source else "```"
            code = f"\n{fence}{{code-block}} python\n{cell.source}\n{fence}\n"
            parts.append(code + next(remaining))
    return "".join(parts)


def retold(notebook: Any, name: str, old: str) -> str:
    """Returns a page with today's text and the outputs of an older page.

    Raises ValueError if the code has changed, so that the outputs may be others.
    """
    blocks = list(_CODE.finditer(old))
    code = [cell.source for cell in shown(notebook) if cell.cell_type == "code"]
    if [block["source"] for block in blocks] != code:
        raise ValueError(
            f"The code of colab/{name}.ipynb is not that of the last run. Run it: "
            f"python docs/_ext/gallery.py {name}"
        )
    note = old.split("\n")[2].partition(" [Open in Colab]")[0]
    return page(notebook, name, [block["outputs"] for block in blocks], note)


def thumbnail(notebook: Any) -> bytes:
    """Returns the picture of the cell with that tag as a small PNG on white."""
    for cell in notebook.cells:
        if "thumbnail" in cell.metadata.get("tags", ()):
            first = next(picture for _, picture in _kept(cell.outputs) if picture)
            with Image.open(io.BytesIO(first)) as image:
                flat = Image.new("RGBA", image.size, "white")
                flat.alpha_composite(image.convert("RGBA"))
            small, file = ImageOps.pad(flat, THUMBNAIL, color="white"), io.BytesIO()
            small.convert("RGB").save(file, "PNG", optimize=True)
            return file.getvalue()
    raise ValueError(f"No cell of '{title_of(notebook)}' has the tag thumbnail.")


def index(colab: Path = COLAB) -> str:
    """Returns the page of all notebooks, with what colab/README.md says of each."""
    about = (colab / "README.md").read_text("utf-8")
    cards, names = [], sorted(path.stem for path in colab.glob("*.ipynb"))
    for name in names:
        title = title_of(nbformat.read(colab / f"{name}.ipynb", as_version=4))
        shows = re.search(rf"^\| `{name}` \| (.+) \|$", about, re.M)[1]
        cards.append(
            f"::::{{container}} card\n[![{title}]({name}.png)]({name}.md)\n\n"
            f"[{title}]({name}.md)\n\n{shows[0].upper()}{shows[1:]}. "
            f"[Open in Colab]({ADDRESS}/{name}.ipynb).\n::::\n"
        )
    return (
        "# Notebooks\n\nEach notebook runs on one CPU, GPU or TPU chip in minutes and "
        "does not replace the JAX of Colab. Its page shows the outputs of one run; the "
        "first line says where it ran, and how long.\n\n:::::{container} gallery\n"
        + "".join(cards)
        + ":::::\n\n```{toctree}\n:hidden:\n\n"
        + "\n".join(names)
        + "\n```\n"
    )


def write(name: str, colab: Path = COLAB, gallery: Path = GALLERY) -> None:
    """Runs a notebook and writes its page, its pictures and its thumbnail."""
    notebook, seconds = run(colab / f"{name}.ipynb")
    outputs, pictures = outputs_of(notebook, name)
    pictures |= {f"{name}.png": thumbnail(notebook)}
    text = page(notebook, name, outputs, run_note(seconds))
    for old in gallery.glob(f"{name}_*.png"):
        old.unlink()
    for file, content in pictures.items():
        (gallery / file).write_bytes(content)
    (gallery / f"{name}.md").write_text(text, "utf-8")


def rewrite(name: str, colab: Path = COLAB, gallery: Path = GALLERY) -> None:
    """Puts today's text into the page of a notebook, without running it."""
    path = gallery / f"{name}.md"
    notebook = nbformat.read(colab / f"{name}.ipynb", as_version=4)
    path.write_text(retold(notebook, name, path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    named = [each for each in sys.argv[1:] if each != "--text"]
    for each in named or sorted(path.stem for path in COLAB.glob("*.ipynb")):
        (rewrite if "--text" in sys.argv[1:] else write)(each)
    (GALLERY / "index.md").write_text(index(), "utf-8")
