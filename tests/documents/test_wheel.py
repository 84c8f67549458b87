"""The wheel: its metadata, what is in it, and that it works in a fresh directory."""

import email
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import jprune

ROOT = Path(__file__).parents[2]

# After the examples of the page: where jprune came from, and what they made.
EPILOGUE = """
import json, pathlib
home = pathlib.Path(jp.__file__).parents[1]
zeros = sum(int((pruned[name]["kernel"] == 0).sum()) for name in ("hidden", "out"))
print(json.dumps([str(home), jp.__version__, zeros]))
"""


def run(*command, cwd, **environment):
    """Output of a command; only those variables are new in its environment."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of a wheel of this tree, built without a network."""
    pytest.importorskip("pip", reason="needs pip, which builds the wheel")
    pytest.importorskip("flit_core", reason="needs flit-core, of the extra `test`")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run("-m", "pip", "wheel", ".", *options, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    """The wheel's METADATA, as a message; its body is the description."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def run_against_wheel(wheel, tmp_path_factory):
    """`code -> output` of code in a fresh directory, where jprune is the wheel's."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--no-compile", "--target", target]
    run("-m", "pip", "install", *options, wheel, cwd=target.parent)

    def run_code(code):
        fresh = tmp_path_factory.mktemp("cwd")
        # PYTHONPATH comes before an editable install of this tree. As in the other
        # tests, it takes longer to optimize programs than to run them as they are.
        fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "1"}
        return run("-c", code, cwd=fresh, PYTHONPATH=str(target), **fast)

    run_code.target = target
    return run_code


def relative_targets(markdown):
    """Images and links of a description that PyPI cannot resolve."""
    found = []
    for token in MarkdownIt("commonmark").parse(markdown):
        for part in [token, *(token.children or ())]:
            found += [
                part.attrs[name] for name in ("src", "href") if name in part.attrs
            ]
            if part.type in ("html_block", "html_inline"):
                found += re.findall(r"""\b(?:src|href)=["']([^"']*)""", part.content)
    return [target for target in found if not re.match(r"https?:|mailto:|#", target)]


def test_the_version_is_that_of_the_package(wheel, metadata):
    assert metadata["Name"] == "jprune"
    assert metadata["Version"] == jprune.__version__
    assert wheel.name == f"jprune-{jprune.__version__}-py3-none-any.whl"


def test_the_metadata_leads_to_the_project(metadata):
    urls = dict(value.split(", ") for value in metadata.get_all("Project-URL"))
    assert set(urls) == {
        *("Homepage", "Documentation", "Repository", "Issues", "Changelog")
    }
    assert all(url.startswith("https://") for url in urls.values())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert metadata.get_payload(decode=True).decode().startswith("# jprune\n")


def test_extras_require_what_they_are_for(metadata):
    extras = {name: set() for name in metadata.get_all("Provides-Extra")}
    core = set()
    for requirement in metadata.get_all("Requires-Dist"):
        name = re.match(r"[\w-]+", requirement)[0]
        extra = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        (extras[extra[1]] if extra else core).add(name)
    assert core == {"jax", "optax", "numpy", "chex"}
    assert extras["checkpoint"] == {"orbax-checkpoint"}
    assert extras["export"] == {"flatbuffers", "safetensors"}
    assert extras["plot"] == {"matplotlib"}
    assert extras["report"] == {"rich"}
    assert extras["search"] == {"pymoo"}


def test_the_wheel_has_all_modules_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jprune").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"jprune/__init__.py", "jprune/py.typed"} <= sources
    info = {name for name in files if name.split("/")[0].endswith(".dist-info")}
    assert files - info == sources


def test_getting_started_runs_against_the_wheel(run_against_wheel):
    page = (ROOT / "docs" / "getting_started.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) >= 6
    home, version, zeros = json.loads(
        run_against_wheel("\n".join([*blocks, EPILOGUE])).splitlines()[-1]
    )
    assert home == str(run_against_wheel.target)
    assert version == jprune.__version__
    assert zeros == 144  # 75 % of 4 x 32 + 32 x 2 weights


def test_relative_targets_are_found():
    markdown = (
        "![a](docs/a.png) [b](CHANGELOG.md) [c](https://x.org) [d](#part)\n\n"
        "`[e](code)` <img src='e.png'> ![f](https://x.org/f.png)\n\n"
        '```\n[g](code)\n```\n\n<a href="g.html">g</a>\n'
    )
    assert relative_targets(markdown) == [
        "docs/a.png",
        "CHANGELOG.md",
        "e.png",
        "g.html",
    ]


def test_the_description_has_no_relative_targets(metadata):
    assert relative_targets(metadata.get_payload(decode=True).decode()) == []
