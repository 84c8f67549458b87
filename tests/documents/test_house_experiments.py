"""The house of the experiments: rooms, catalogues and commands."""

import ast
import functools
import pathlib

import pytest

import experiments
from experiments.benchmarks import BENCHMARKS
from experiments.studies import STUDIES

ROOT = pathlib.Path(experiments.__file__).parent
PROJECT = ROOT.parent

# Imports run one way: a folder uses those of earlier rows, and itself.
LAYERS = [
    {"harness"},
    {"tasks"},
    {"models"},
    {"loops"},
    {"studies", "benchmarks"},
    {"tables"},
    {"__main__"},
]
# Benchmarks that compare implementations of one function reach behind its face.
COMPARED = {("benchmarks.attention.attention_gpu", "jprune.attention._choose")}


@functools.cache
def modules():
    """Dotted name below `experiments` -> file, without the pages."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith("__init__"):
            found[name] = path
    return found


def imported(path):
    """Full names of all that a file imports, and of modules it names in a string."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Constant) and "experiments." in str(node.value)[:12]:
            yield node.value


def ours(path):
    """Those of `experiments`, below it: modules, or names in them."""
    for name in imported(path):
        if name.startswith("experiments."):
            yield name.removeprefix("experiments.")


def module_of(name):
    """The module of a dotted name, which may be that of something in it."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name


def studied():
    """The modules that the catalogues name: each holds studies or benchmarks."""
    return {e.module.removeprefix("experiments.") for e in (*STUDIES, *BENCHMARKS)}


def test_imports_run_one_way():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    rooms = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert set(level) == rooms - {"__init__", "__pycache__", "results"}
    for name, path in modules().items():
        own = name.split(".")[0]
        for other in {each.split(".")[0] for each in ours(path)} & set(level):
            one_way = level[other] < level[own] or other == own
            assert one_way, f"{name} imports experiments.{other}"


def test_no_study_imports_another():
    for name, path in modules().items():
        if name.split(".")[0] not in ("studies", "benchmarks"):
            continue
        found = {module_of(each) for each in ours(path)} & studied()
        assert found <= {name}, f"{name} imports {found}"


def test_families_keep_their_private_modules_to_themselves():
    families = {"studies", "benchmarks"}
    private = {name for name in modules() if name.split(".")[-1].startswith("_")}
    private.discard("__main__")
    assert all(name.split(".")[0] in families for name in private)
    for name, path in modules().items():
        home = name.rpartition(".")[0]
        for other in {module_of(each) for each in ours(path)} & private:
            assert other.rpartition(".")[0] == home, f"{name} imports {other}"


def test_studies_are_the_public_modules_of_their_families():
    public = {
        name
        for name in modules()
        if name.split(".")[0] in ("studies", "benchmarks")
        and not name.split(".")[-1].startswith("_")
    }
    assert public == studied()
    assert all(name.count(".") == 2 for name in public)


@pytest.mark.parametrize("entry", [*STUDIES, *BENCHMARKS], ids=lambda e: e.name)
def test_every_entry_names_a_study_that_exists(entry):
    path = modules()[entry.module.removeprefix("experiments.")]
    assigned = {
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert entry.attribute in assigned


def test_the_library_does_not_know_the_experiments():
    for path in (PROJECT / "jprune").rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] != "experiments", f"{path} imports {name}"


def test_experiments_use_the_public_interface_of_the_library():
    found = {
        (name, ".".join(each.split(".")[: i + 1]))
        for name, path in modules().items()
        for each in imported(path)
        if each.split(".")[0] == "jprune"
        for i, part in enumerate(each.split("."))
        if part.startswith("_") and not part.startswith("__")
    }
    assert found == COMPARED
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                named_tuple = node.attr in ("_replace", "_asdict", "_fields")
                special = node.attr.startswith("__")
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                assert named_tuple or special or own, f"{name} uses {node.attr}"


def test_commands_keep_their_names():
    assert [entry.name for entry in STUDIES] == [
        *("quickstart", "quickstart-mnist", "quickstart-fashion-mnist"),
        *("quickstart-cifar-10", "rewinding", "rewinding-cifar-10"),
        *("bip_vs_imp", "bip_vs_imp-digits", "bip_vs_imp-cifar-10"),
        *("architectures", "group_pruning", "detector", "widths"),
        *("hardware_validation", "spatten_accuracy", "spatten_accuracy-toy"),
        *("spatten_students", "spatten_students-toy", "spatten_tables"),
        *("spatten_vision", "spatten_vision-digits", "spatten_decoding"),
        *("spatten_decoding-toy", "energy_pruning"),
    ]
    assert [entry.name for entry in BENCHMARKS] == [
        *("vmapped_conv", "overhead", "sparse_products", "selection", "leaves"),
        *("bip_step", "graph", "shrink", "attention", "attention_gpu", "hardware"),
    ]
