"""The gallery: how a page is made of a notebook, and that no page is out of date."""

import base64
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat.v4 as nb
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "docs" / "_ext"
GALLERY = ROOT / "docs" / "gallery"
NAMES = sorted(path.stem for path in (ROOT / "colab").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/jprune/jprune/blob/main/colab"
PRINTED = "```{code-block} text\n:class: output\n\n"
LINK = f"[Open in Colab]({COLAB}"


@pytest.fixture(scope="module")
def gallery():
    sys.path.insert(0, str(EXTENSIONS))
    try:
        yield importlib.import_module("gallery")
    finally:
        sys.path.remove(str(EXTENSIONS))


def png(width=40, height=30, color=(255, 0, 0, 128)):
    file = io.BytesIO()
    Image.new("RGBA", (width, height), color).save(file, "PNG")
    return file.getvalue()


def picture(content):
    data = {"image/png": base64.b64encode(content).decode(), "text/plain": "<Figure>"}
    return nb.new_output("display_data", data)


def stream(text, name="stdout"):
    return nb.new_output("stream", name=name, text=text)


def code(source, *outputs, tags=()):
    metadata = {"tags": list(tags)} if tags else {}
    return nb.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def notebook(*cells):
    badge = nb.new_markdown_cell("[![Open][b]][c]\n\n[b]: x\n[c]: y\n\n# Tiny\n\nText.")
    return nb.new_notebook(cells=[badge, *cells])


def page_of(gallery, *cells):
    made = notebook(*cells)
    outputs, pictures = gallery.outputs_of(made, "tiny")
    return gallery.page(made, "tiny", outputs, "Run at full size in 3 s."), pictures


def test_a_page_has_text_code_and_outputs_in_order(gallery):
    text, pictures = page_of(
        gallery,
        code("1 + 1", nb.new_output("execute_result", {"text/plain": "2"})),
        nb.new_markdown_cell("## Part\n\nMore."),
        code("draw()", picture(png()), stream("done\n"), tags=["thumbnail"]),
        code("silent = 1"),
    )
    code_block = "```{code-block} python\n"
    assert text == (
        f"# Tiny\n\nRun at full size in 3 s. {LINK}/tiny.ipynb).\n\nText.\n\n"
        f"{code_block}1 + 1\n```\n\n{PRINTED}2\n```\n\n## Part\n\nMore.\n\n"
        f"{code_block}draw()\n```\n\n![Part](tiny_1.png)\n\n{PRINTED}done\n```\n\n"
        f"{code_block}silent = 1\n```\n"
    )
    assert pictures == {"tiny_1.png": png()}


def test_texts_in_a_row_are_one_without_warnings(gallery):
    last = nb.new_output("execute_result", {"text/plain": "2"})
    warning = stream("Warning: x", "stderr")
    cell = code("f()", stream("a, "), warning, stream("b\n"), last, picture(png()))
    text, _ = page_of(gallery, cell)
    assert text.count(PRINTED) == 1
    assert f"{PRINTED}a, b\n2\n```\n\n![" in text
    assert "Warning" not in text


def test_html_and_widgets_leave_their_text_alone(gallery):
    data = {"text/html": "<table>", "text/plain": "\x1b[1mtable\x1b[0m"}
    text, _ = page_of(gallery, code("t", nb.new_output("display_data", data)))
    assert f"{PRINTED}table\n```" in text
    assert "<table>" not in text


def test_an_expected_error_is_one_line(gallery):
    trace = ["\x1b[31mValueError\x1b[0m", "File /home/me/x.py:3"]
    error = nb.new_output("error", ename="ValueError", evalue="no", traceback=trace)
    text, _ = page_of(gallery, code("fail()", error))
    assert f"{PRINTED}ValueError: no\n```" in text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07\n", "red link"),
        (" 10%|#   |\r 50%|##  |\r100%|####|\ndone\n", "100%|####|\ndone"),
        ("windows\r\nlines\r\n", "windows\nlines"),
        ("\n\n  indented  \n\n", "  indented"),
        ("saved /tmp/ab/cd.png, File '/usr/lib/x.py'", "saved cd.png, File 'x.py'"),
        ("blocks/0/up https://a.b/c 1 / 2 /x", "blocks/0/up https://a.b/c 1 / 2 /x"),
        ("```", "'''"),
        ("x" * 300, "x" * 240 + " ..."),
        ("x\n" * 63, "x\n" * 60 + "... 3 more lines"),
    ],
)
def test_texts_are_as_a_terminal_shows_them_in_the_end(gallery, raw, clean):
    assert gallery.clean(raw) == clean


def test_cells_for_colab_alone_are_left_out(gallery):
    install = nb.new_markdown_cell("## Install", metadata={"tags": ["remove-cell"]})
    text, _ = page_of(
        gallery, install, code("pip()", stream("x"), tags=["remove-cell"]), code("y")
    )
    assert "Install" not in text
    assert "pip" not in text
    assert PRINTED not in text


def test_code_with_a_fence_of_its_own_stays_one_block(gallery):
    cell = code('"""\n```\n"""', stream("x"))
    text, _ = page_of(gallery, cell)
    block = '````{code-block} python\n"""\n```\n"""\n````\n'
    assert f"{block}\n{PRINTED}x\n```\n" in text
    assert gallery.retold(notebook(cell), "tiny", text) == text


def test_a_picture_that_is_too_large_is_an_error(gallery):
    noise = io.BytesIO()
    Image.effect_noise((600, 600), 99).save(noise, "PNG")
    with pytest.raises(ValueError, match=r"tiny_1\.png, after 'Tiny', has .* draw it"):
        page_of(gallery, code("draw()", picture(noise.getvalue())))


def test_the_thumbnail_is_the_tagged_picture_on_white(gallery):
    cells = code("a", picture(png(color="blue"))), code("b", picture(png()))
    with pytest.raises(ValueError, match="No cell of 'Tiny' has the tag thumbnail"):
        gallery.thumbnail(notebook(*cells))
    cells[1].metadata.tags = ["thumbnail"]
    small = Image.open(io.BytesIO(gallery.thumbnail(notebook(*cells))))
    assert small.size == (480, 320)
    assert small.getpixel((0, 0)) == (255, 255, 255)  # 40 x 30 becomes 427 x 320
    assert small.getpixel((240, 160)) == (255, 127, 127)  # half of red over white


def test_new_text_keeps_outputs_and_new_code_does_not(gallery):
    cells = code("1", stream("one")), nb.new_markdown_cell("```text\nmine\n```")
    cells += (code("2", picture(png()), stream("two")), code("3"))
    old, _ = page_of(gallery, *cells)
    cells[1].source = "New words."
    new = gallery.retold(notebook(*cells), "tiny", old)
    assert new == old.replace("```text\nmine\n```", "New words.")
    cells[3].source = "4"
    with pytest.raises(ValueError, match=r"python docs/_ext/gallery\.py tiny"):
        gallery.retold(notebook(*cells), "tiny", new)


def test_a_run_writes_page_pictures_and_note(gallery, tmp_path, monkeypatch):
    """A kernel, in a process of its own: its warnings stay out of this one."""
    draw = "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    made = notebook(
        code("import jprune, sys\nprint(jprune.__file__)\nprint(1, file=sys.stderr)"),
        code(draw, tags=["thumbnail"]),
        code("1 / 0", tags=["raises-exception"]),
    )
    (tmp_path / "tiny.ipynb").write_text(nb.writes(made))
    (tmp_path / "tiny_9.png").write_bytes(b"of an earlier run")
    command = f"""
import sys, pathlib; sys.path.insert(0, {str(EXTENSIONS)!r})
import gallery; here = pathlib.Path({str(tmp_path)!r})
gallery.write("tiny", here, here)
"""
    monkeypatch.setenv("JPRUNE_NB_STEPS", "7")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "tiny.md").read_text()
    note = (
        r"\nRun with `JPRUNE_NB_STEPS=7` in \d+ s on \d+ cores \(.+\) with JAX \S+\. "
    )
    assert re.search(note, text), text
    assert f"{PRINTED}__init__.py\n```" in text
    assert f"{PRINTED}ZeroDivisionError: division by zero\n```" in text
    found = {path.name for path in tmp_path.glob("*.png")}
    assert found == {"tiny.png", "tiny_1.png"}
    assert gallery.retold(made, "tiny", text) == text


# The pages of today's notebooks.


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_that_of_the_notebook(gallery, name):
    """If the text alone is another: `python docs/_ext/gallery.py --text NAME`."""
    text = (GALLERY / f"{name}.md").read_text("utf-8")
    notebook = gallery.nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    again = f"python docs/_ext/gallery.py --text {name}"
    assert gallery.retold(notebook, name, text) == text, again
    assert re.search(
        r"\nRun (with|at) .* in .*\d s on \d+ cores \(.* with JAX \d", text
    )
    assert "google.colab" not in text
    machine = r"(?<![\w.:/])/(home|root|tmp|usr|work|opt|var|Users|content)/"
    assert not re.search(machine, text)
    assert not re.search(r"\x1b|\r|Warning: ", text)


def test_pictures_and_references_agree():
    pages = {path.stem: path.read_text("utf-8") for path in GALLERY.glob("*.md")}
    assert set(pages) == {"index", *NAMES}
    referenced = [
        file
        for text in pages.values()
        for file in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    ]
    sizes = {path.name: path.stat().st_size for path in GALLERY.glob("*.png")}
    assert sorted(referenced) == sorted(sizes)
    assert max(sizes.values()) <= 150_000
    assert sum(path.stat().st_size for path in GALLERY.iterdir()) <= 2_000_000


def test_the_index_has_all_pages(gallery):
    text = (GALLERY / "index.md").read_text("utf-8")
    assert text == gallery.index(), "python docs/_ext/gallery.py --text"
    listed = text.partition("{toctree}")[2].split()
    assert listed[1:-1] == NAMES
    for name in NAMES:
        assert f"]({name}.png)]({name}.md)" in text
        assert f"{LINK}/{name}.ipynb)" in text
