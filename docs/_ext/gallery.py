"""Runs the notebooks and writes them, with their outputs, as pages of the gallery.

    python docs/_ext/gallery.py [NAME ...]

It takes some minutes for each notebook, so the pages in docs/gallery are committed.
Text and pictures of the outputs are kept; progress, HTML and warnings are not.
"""

import base64
import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
LONGEST = 60  # lines of an output


def run(path: Path) -> Any:
    """Returns an executed notebook."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1_800, resources={"metadata": {"path": str(ROOT)}}
    )
    return client.execute()


def page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Returns the Markdown of an executed notebook, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code" and not _hidden(cell.source):
            # Not "```python": the tests run those, and these take minutes.
            parts.append(f"```{{code-block}} python\n{cell.source}\n```")
            for text, picture in map(_shown, cell.outputs):
                if text:
                    parts.append(f"```text\n{text}\n```")
                if picture:
                    file = f"{name}_{len(pictures) + 1}.png"
                    pictures[file] = picture
                    parts.append(f"![]({file})")
    return "\n\n".join(parts) + "\n", pictures


def _hidden(source: str) -> bool:
    """Whether a cell only prepares Colab."""
    return "google.colab" in source


def _shown(output: Any) -> tuple[str, bytes]:
    if output.output_type == "stream":
        return (_short(output.text) if output.name == "stdout" else ""), b""
    data = output.get("data", {})
    if "image/png" in data:
        return "", base64.b64decode(data["image/png"])
    return _short(data.get("text/plain", "")), b""


def _short(text: str) -> str:
    """The text without terminal codes and overwritten lines, cut where it is long."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.rpartition("\r")[2].rstrip() for line in text.rstrip().split("\n")]
    if len(lines) > LONGEST:
        lines = [*lines[:LONGEST], f"... {len(lines) - LONGEST} more lines"]
    return "\n".join(lines)


def write(name: str) -> None:
    """Runs a notebook and writes its page and pictures."""
    text, pictures = page(run(ROOT / "colab" / f"{name}.ipynb"), name)
    GALLERY.mkdir(parents=True, exist_ok=True)
    for old in GALLERY.glob(f"{name}_*.png"):
        old.unlink()
    for file, content in pictures.items():
        (GALLERY / file).write_bytes(content)
    (GALLERY / f"{name}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(p.stem for p in (ROOT / "colab").glob("*.ipynb"))
    for each in names:
        write(each)
