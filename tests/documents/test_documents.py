"""The documents tell the truth: examples run, names exist, layers hold."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess

import pytest
from support.docstrings import examples

import jprune as jp

pytestmark = pytest.mark.others_code
ROOT = pathlib.Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(jp.__path__, "jprune.")]


@pytest.mark.parametrize("name", ["jprune", *MODULES])
def test_docstring_examples(name):
    runner = doctest.DocTestRunner()
    for test in examples(importlib.import_module(name)):
        runner.run(test)
    assert runner.failures == 0


def renames():
    """Old and new names of the library, from the calls of `renamed`."""
    for path in (ROOT / "jprune").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                "renamed"
            ):
                for old, new in ast.literal_eval(node.args[1]).items():
                    yield f"{module.removesuffix('.__init__')}.{old}", new


def test_the_changelog_lists_all_renames():
    text = (ROOT / "CHANGELOG.md").read_text()
    found = list(renames())
    assert len(found) >= 14
    missing = [pair for pair in found if "| `{}` | `{}` |".format(*pair) not in text]
    assert not missing


def _public():
    modules = [importlib.import_module(name) for name in MODULES]
    for module in [jp, *modules]:
        for name, value in vars(module).items():
            home = getattr(value, "__module__", "")
            if name.startswith("_") or not str(home).startswith("jprune"):
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{home}.{name}", value


def test_public_names_are_documented():
    """Functions with arguments say what they take and give, and errors if any."""
    missing = []
    for name, value in _public():
        text = inspect.getdoc(value) or ""
        if not re.match(r".+?[.:]", text):
            missing.append(f"{name}: no first line")
        if inspect.isfunction(value) and name.split(".")[1] != "testing":
            if inspect.signature(value).parameters and "Args:" not in text:
                short = len(text.splitlines()) == 1  # `is_float`, `full`
                if not short:
                    missing.append(f"{name}: no Args")
            raises = "raise " in inspect.getsource(value)
            if raises and "Raises:" not in text:
                missing.append(f"{name}: raises, and does not say what")
    assert not missing, "\n".join(sorted(set(missing)))


def test_recipes_cite_their_source():
    for name in jp.recipes.__all__:
        text = inspect.getdoc(getattr(jp.recipes, name)) or ""
        references = text.partition("References:")[2]
        assert re.search(r"\b(19|20)\d\d\b", references), name
        assert re.search(r"arXiv:\d{4}\.\d{4,5}", references), name
        arguments = inspect.signature(getattr(jp.recipes, name)).parameters
        assert len(arguments) <= 7, name


def test_no_framework_is_imported_in_the_core():
    """`jprune/` knows pytrees only; adapters are named for what they adapt."""
    frameworks = r"^\s*(import|from) +(flax|equinox|haiku|torch|keras)"
    found = subprocess.run(
        ["grep", "-rnE", frameworks, "--include=*.py", str(ROOT / "jprune")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
    assert found.returncode == 1  # grep's word for: no line matched
