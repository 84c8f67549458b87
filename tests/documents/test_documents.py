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

import jprune as jp
from experiments import tables
from experiments.harness.catalogue import RESULTS_DIR

pytestmark = pytest.mark.others_code
ROOT = pathlib.Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(jp.__path__, "jprune.")]


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions, too."""

    def _from_module(self, module, object):  # noqa: A002 - doctest's name
        return super()._from_module(module, inspect.unwrap(object))


@pytest.mark.parametrize("name", ["jprune", *MODULES])
def test_docstring_examples(name):
    runner = doctest.DocTestRunner()
    for test in Finder().find(importlib.import_module(name)):
        runner.run(test)
    assert runner.failures == 0


def test_readme_examples_run(tmp_path):
    """All Python blocks of the README, in order, in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 10
    names: dict = {}
    for block in blocks:
        block = block.replace("/tmp/jprune-readme", str(tmp_path))
        exec(compile(block, "README.md", "exec"), names)
    # The loops did what the text says.
    for opt_state in (names["train_state"].opt_state, names["eqx_state"]):
        masks = jp.masks_of(opt_state)
        assert any(m.ndim for m in _leaves(masks))
    assert abs(float((names["model"].hidden.kernel[...] == 0).mean()) - 0.9) < 0.01
    assert names["report"]["sparsity"] == pytest.approx(0.95, abs=0.01)
    assert names["curve"].shape == (4,)


def test_readme_tables_are_those_of_the_recipes_and_results():
    """And the methods are those of `tests/cases.py`, by test_contracts."""
    text = (ROOT / "README.md").read_text()
    for name in jp.recipes.__all__:
        assert f"jp.recipes.{name}(" in text.partition("## Methods")[2], name
    assert tables.update(ROOT / "README.md", RESULTS_DIR, check=True) == []


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


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


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
