"""The pages: a docstring of a package names all that is inside, and nothing else."""

import ast
import importlib
import pathlib
import pkgutil
import re
import warnings

import pytest
from support.exports import exports

import jprune

ROOT = pathlib.Path(jprune.__file__).parent
PROJECT = ROOT.parent
PAGES = [p.name for p in pkgutil.iter_modules([str(ROOT)]) if p.name[0] != "_"]
SHORT = {"jp": "jprune", "jg": "jprune.graph", "ja": "jprune.attention"}
SHORT |= {"hw": "jprune.hardware", "jprune": "jprune"}


def in_maps(text):
    """Names that begin a line of a map: `    trace, Graph      records a function`."""
    one = r"(\w+)(?:\([\w ,.]*\))?,?  "  # `check_pruner(pruner)   a pruner of your own`
    more = r"(\w+(?:, \w+)+\b)(?! =)"  # `a, b = f(c)` is an example
    lists = re.findall(rf"^ {{4,}}(?:{one}|{more})", text, re.M)
    return {name for each in lists for name in "".join(each).split(", ")}


def named(text):
    """Names in maps and in marked text: not `take` because a sentence takes."""
    marked = re.findall(r"`[^`]+`|-> \w+", text)
    return in_maps(text) | set(re.findall(r"\w+", " ".join(marked)))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_all_that_it_offers(page):
    module = importlib.import_module(f"jprune.{page}")
    missing = set(exports(module)) - named(module.__doc__)
    assert not missing, f"add to the docstring of {module.__file__}: {sorted(missing)}"


def test_the_first_page_names_every_page_and_what_has_no_other():
    """A shortcut such as `jprune.keep_top` is on the page of its package."""
    on_page = named(jprune.__doc__)
    assert set(PAGES) <= on_page
    found = exports(jprune)
    shared = {n for n, home in found.items() if home.startswith("jprune._core")}
    assert shared
    assert shared <= on_page
    for name in set(found) - shared - set(PAGES):
        package = importlib.import_module(found[name])
        assert name in named(package.__doc__), f"jprune.{name}"


@pytest.mark.parametrize("page", ["", *PAGES])
def test_names_in_maps_exist(page):
    module = importlib.import_module(f"jprune.{page}".removesuffix("."))
    found = in_maps(module.__doc__)
    missing = {n for n in found if not hasattr(module, n)}
    assert found
    assert not missing


def prose():
    """Where a reader meets dotted names: docstrings, pages, notebooks."""
    for folder in ("jprune", "experiments"):
        for path in (PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    yield path, str(node.value.value)
    pages = (p for p in (PROJECT / "docs").rglob("*.md") if "api" not in p.parts)
    for path in [PROJECT / "README.md", *pages, *(PROJECT / "colab").glob("*.py")]:
        yield path, path.read_text()


def test_dotted_names_exist_and_lead_to_their_home():
    """None is an old name, nor leads to a module by a shortcut as `jp.bilevel`."""
    pattern = re.compile(rf"(?<![\w./])({'|'.join(SHORT)})((?:\.[A-Za-z_]\w*)+)")
    count = 0
    for path, text in prose():
        for first, rest in pattern.findall(text):
            here = f"{path}: {first}{rest}"
            value = importlib.import_module(SHORT[first])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for name in rest[1:].split("."):
                    home = getattr(value, "__name__", "")
                    value = getattr(value, name, None)
                    assert value is not None, f"{here} does not exist"
                    if type(value) is type(jprune):
                        assert value.__name__ == f"{home}.{name}", f"{here} is a detour"
            count += 1
    assert count > 500
