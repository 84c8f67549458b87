"""The layout: layers, public modules, homes and sizes, read from the syntax trees."""

import ast
import importlib
import pathlib
import statistics
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.exports import exports, public_modules

import jprune
from jprune import attention as ja
from jprune import hardware as hw
from jprune import recipes

ROOT = pathlib.Path(jprune.__file__).parent
PROJECT = ROOT.parent

# Imports run one way: a package uses those of earlier rows, and itself.
LAYERS = [
    {"_core"},
    {"tree"},
    {"masks", "gates", "selection", "search"},
    {"links", "checkpoint", "distill"},
    {"training", "learned", "graph", "attention", "formats"},
    {"hardware", "report"},
    {"recipes", "testing"},
]
# Modules that are public by their path: names there are read with the module's name.
NAMESPACES = {
    "attention": "adapters allot buckets cache cascade decode fused merge routers soft",
    "hardware": "accelerators evolve machines networks search spatten systolic topk"
    " workload",
    "learned": "bilevel controllers effective implicit",
}


def files():
    return sorted(ROOT.rglob("*.py"))


def imports(path):
    """Full names of what a file of jprune imports of jprune."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "jprune")
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            if node.module and node.module.split(".")[0] == "jprune":
                yield from (f"{node.module}.{a.name}" for a in node.names)


def test_imports_run_one_way():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    rooms = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert set(level) == rooms - {"__init__", "__pycache__"}
    for path in files():
        if path == ROOT / "__init__.py":
            continue
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(path):
            room = name.split(".")[1]
            assert room in level, f"{path} imports {name}, of jprune's own page"
            other = room != own
            assert level[room] < level[own] or not other, f"{path} imports {name}"


def test_private_modules_are_imported_at_home_only():
    for path in files():
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(path):
            room, *inner = name.split(".")[1:]
            if own == "__init__" or room == "_core" or room == own:
                continue
            private = [part for part in inner if part.startswith("_")]
            assert not private, f"{path} imports {name}, which is private to {room}"


def test_no_circle_of_imports():
    graph = {}
    for path in files():
        parts = ("jprune", *path.relative_to(ROOT).with_suffix("").parts)
        graph[".".join(parts).removesuffix(".__init__")] = set(imports(path))
    modules = set(graph)

    def module_of(name):  # what a file imports is a module, or a name in one
        return name if name in modules else name.rpartition(".")[0]

    # A package's page imports its files; its files import each other, not the page.
    edges = {m: {module_of(n) for n in names} - {m} for m, names in graph.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, f"circle: {[*path, module]}"
        if module not in done:
            path.append(module)
            for other in sorted(edges.get(module, ())):
                if not module.startswith(other + "."):  # its own page
                    visit(other)
            path.pop()
            done.add(module)

    for module in sorted(modules):
        visit(module)


def test_an_import_loads_nothing_beside_the_core_dependencies():
    """SciPy alone takes as long as jprune; extras need not be installed at all."""
    code = (
        "import sys, jax, optax, numpy, chex\n"
        "before = {m.split('.')[0] for m in sys.modules} | sys.stdlib_module_names\n"
        "import jprune\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["jprune"]


def test_public_modules_are_pages_or_namespaces():
    top = {f"jprune.{n}" for n in ("masks", "distill")}
    named = {f"jprune.{p}.{n}" for p, ns in NAMESPACES.items() for n in ns.split()}
    plain = {name for name, is_package in public_modules() if not is_package}
    assert plain == top | named
    for name in plain:
        home, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(home), last).__name__ == name
    assert all(importlib.import_module(name).__doc__ for name, _ in public_modules())


def test_every_public_name_has_one_home():
    homes = {}
    for name, _ in public_modules():
        module = importlib.import_module(name)
        for each in exports(module):
            value = getattr(module, each)
            if callable(value):
                homes.setdefault(id(value), []).append(f"{name}.{each}")
    twice = {tuple(paths) for paths in homes.values() if len(paths) > 1}
    assert not twice
    # jprune's own page has shortcuts only: to homes, or to what every file shares.
    for each in exports(jprune):
        value = getattr(jprune, each)
        if callable(value):
            shared = not value.__module__.startswith(
                "jprune."
            ) or value.__module__.startswith("jprune._core")
            assert id(value) in homes or shared, f"jprune.{each} has no home"


def test_the_top_has_room():
    rooms = [p for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()]
    public = {p.stem for p in rooms if not p.name.startswith("_")}
    assert len(public) <= 22
    assert len(LAYERS) <= 8


@pytest.mark.parametrize("folder", ["jprune", "experiments", "tests"])
def test_files_and_functions_are_short(folder):
    for path in (PROJECT / folder).rglob("*.py"):
        text = path.read_text()
        lines = len(text.splitlines())
        assert lines <= 400, f"{path}: {lines} lines; is it one idea?"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = body_lines(node)
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_recipes_are_compositions():
    """What a recipe takes more lines for is a link that is missing."""
    lines = {}
    for path in (ROOT / "recipes").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                lines[node.name] = body_lines(node)
    public = {name: lines[name] for name in jprune.recipes.__all__}
    assert max(public.values()) <= 20, public
    assert statistics.median(public.values()) <= 10, public
    private = {name: n for name, n in lines.items() if name not in public}
    assert max(private.values()) <= 20, private


def body_lines(function):
    """Lines of a function's body, docstrings of inner functions included."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


MOVED = {
    "jprune": "allocate budgets export fisher formats_coordinates formats_tree keep"
    " lottery pooling rewinding schedules scores soft_selection sparse_products"
    " stability",
    "jprune.attention": "keep_top",
    "jprune.attention.allot": "project",
    "jprune.graph": "Scope first masks places removed select spread without written",
    "jprune.hardware": "constraints on",
    "jprune.hardware.accelerators": "accelerator",
    "jprune.hardware.evolve": "Front",
    "jprune.hardware.search": "check_bounds grid pareto random_designs",
    "jprune.selection": "known_kept_count",
}


@pytest.mark.parametrize("module", MOVED)
def test_old_names_work_and_say_what_they_are_now(module):
    page = importlib.import_module(module)
    for name in MOVED[module].split():
        said = rf"{module}\.{name} is now jprune"
        with pytest.warns(DeprecationWarning, match=said) as caught:
            found = getattr(page, name)
        new = str(caught[0].message).split(" is now ")[1].split(";")[0]
        home, _, last = new.rpartition(".")
        assert found is getattr(importlib.import_module(home), last)
    with pytest.raises(AttributeError, match="no attribute 'never_was'"):
        page.never_was  # noqa: B018


def old_arguments():
    """Calls with an argument's old name, and the same with the new one."""
    x = jnp.ones((3, 4))
    schedule = ja.dense(2, 8, 4)
    yield lambda **k: ja.cascade.start(x, **k).heads, "groups", "kv_heads", 2
    yield partial(ja.multiply_adds, schedule, 8, 16), "kv_groups", "heads_per_kv", 2
    yield (
        lambda **k: hw.networks.convolution(8, 4, 8, **k).k,
        *("groups", "feature_group_count", 2),
    )
    loss = lambda params, batch: jnp.zeros(())  # noqa: E731

    def masks(**k):
        return recipes.bip(loss, 0.5, steps=1, **k).init({"kernel": x}).masks["kernel"]

    yield masks, "groups", "units", "output"

    def gates(recipe, **k):
        method = recipe(loss, 0.5, optax.sgd(0.1), **k)
        return jax.tree.leaves(method.init({"kernel": x}, jax.random.key(0)).aux)[0]

    yield partial(gates, recipes.consensus), "keep_axes", "units", "input"
    yield partial(gates, partial(recipes.l0, steps=2)), "keep_axes", "units", "input"


def test_old_arguments_work_and_say_what_they_are_now():
    for call, old, new, value in old_arguments():
        with pytest.warns(DeprecationWarning, match=rf"\({old}=\) is now .*\({new}=\)"):
            found = call(**{old: value})
        np.testing.assert_array_equal(found, call(**{new: value}))
        with pytest.raises(TypeError, match=f"both {old}="):
            call(**{old: value, new: value})
