"""Writes the API pages: one per public module, from its docstrings and sources.

    python docs/_ext/api_pages.py DIRECTORY

A page begins with the module's docstring, whose maps of names become tables, followed
by one entry for each public name, in the order of the maps. Signatures are those of the
source, so that they say `Params` and `jax.Array`, not what these stand for.

Docstrings are Markdown with Google's sections (`docstrings.py`).
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import docstrings

ROOT = "jprune"
# Modules whose names signatures leave out: their types are explained on the first page.
_PRIVATE = re.compile(r"\b(?:base|tree|masks_lib|dims_lib|_[a-z]\w*|encoding)\.")
TYPES = """
Signatures use these names for what they take and return:

| type | meaning |
|---|---|
| `Params` | any pytree of arrays |
| `Masks` | the params' tree; boolean leaves that broadcast to theirs; True = keep |
| `Scores` | the params' tree, with real leaves; higher = keep |
| `Counts` | the scores' tree, with int32 scalars |
| `Scalar` | a number, an array of no axes, or a tracer of one |
| `Sparsity` | a fraction removed, in [0, 1], or a schedule of it: step -> fraction |
"""


class Entry(NamedTuple):
    """A public name.

    Attributes:
      name: the name.
      home: the public module that it belongs to.
      value: what it is.
    """

    name: str
    home: str
    value: Any


def public_modules() -> list[str]:
    """Returns the names of all public modules, packages before their members."""
    package = importlib.import_module(ROOT)
    found = [ROOT]
    for info in pkgutil.walk_packages(package.__path__, f"{ROOT}."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            found.append(info.name)
    return sorted(found, key=lambda name: (name.split("."), name))


def entries(module: ModuleType) -> list[Entry]:
    """Returns the public names that a module defines, or re-exports as `x as x`."""
    names: dict[str, None] = {}
    for node in ast.parse(Path(str(module.__file__)).read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names |= dict.fromkeys(a.name for a in node.names if a.asname == a.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = None
        else:
            names |= dict.fromkeys(sorted(_assigned(node)))
    public = [n for n in names if not n.startswith("_") and n != "T"]
    values = [(n, getattr(module, n)) for n in public]
    return [
        Entry(n, module.__name__, v)
        for n, v in values
        if not inspect.ismodule(v) and not _is_shortcut(module.__name__, v)
    ]


def _is_shortcut(module: str, value: Any) -> bool:
    """Whether a name of the first page has its entry on the page of a package."""
    if module != ROOT:
        return False
    return not str(getattr(value, "__module__", "")).startswith(f"{ROOT}._core")


def page(name: str, homes: dict[str, str]) -> str:
    """Returns the Markdown page of a module.

    Args:
      name: name of the module.
      homes: public name, as prose writes it -> its full name, for links.
    """
    module = importlib.import_module(name)
    local = {**_local(module), **homes}
    body = docstrings.markdown(inspect.getdoc(module) or "", local)
    order = docstrings.in_order(module.__doc__ or "")
    found = sorted(
        entries(module),
        key=lambda e: order.index(e.name) if e.name in order else len(order),
    )
    parts = [f"# {name}", f"```{{py:module}} {name}\n```", body]
    if name == ROOT:
        parts.append(TYPES)
    parts += [entry(e, local) for e in found]
    below = [m for m in public_modules() if m.rpartition(".")[0] == name]
    if below:
        listed = "\n".join(m for m in below)
        parts.append(f"```{{toctree}}\n:hidden:\n\n{listed}\n```")
    return "\n\n".join(parts) + "\n"


def _local(module: ModuleType) -> dict[str, str]:
    """Full names by the short names that a module's own docstrings use."""
    found = {e.name: f"{e.home}.{e.name}" for e in entries(module)}
    for value in vars(module).values():
        if not inspect.ismodule(value):
            continue
        parent, _, last = value.__name__.rpartition(".")
        if parent == module.__name__ and not last.startswith("_"):
            found[last] = value.__name__
    return found


def entry(e: Entry, names: dict[str, str]) -> str:
    """Returns the entry of a name as a directive of Sphinx's Python domain."""
    value = inspect.unwrap(e.value)
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, Exception) else "class"
        head = e.name + _fields(value)
    elif inspect.isfunction(value):
        kind, head = "function", e.name + _signature(value)
    else:
        kind, head = "data", e.name
    if kind == "data":
        text = _constant(e)
    else:
        text = docstrings.markdown(inspect.getdoc(value) or "", names)
    return f"````{{py:{kind}}} {head}\n\n{text}\n````"


def _signature(function: Any) -> str:
    """The signature as it is written, without defaults' and types' private homes."""
    node = _tree(function)
    assert isinstance(node, ast.FunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return _readable(f"({ast.unparse(node.args)}){returns}")


def _fields(value: type) -> str:
    """The fields of a NamedTuple with their types and defaults."""
    if not hasattr(value, "_fields"):
        return ""
    fields = (n for n in _tree(value).body if isinstance(n, ast.AnnAssign))
    return f"({', '.join(_readable(ast.unparse(n)) for n in fields)})"


def _tree(value: Any) -> Any:
    source = inspect.cleandoc("\n" + inspect.getsource(value))
    return ast.parse(source).body[0]


def _readable(text: str) -> str:
    return _PRIVATE.sub("", text).replace("'", '"')


def _constant(e: Entry) -> str:
    """The assignment of a constant or a type, and the text below it."""
    body = ast.parse(inspect.getsource(_definition(e))).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if e.name not in _assigned(node):
            continue
        said = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said = inspect.cleandoc(str(after.value.value))
        return f"```python\n{_readable(ast.unparse(node))}\n```\n\n{said}"
    raise LookupError(f"{e.home}.{e.name} is assigned nowhere")


def _assigned(node: ast.stmt) -> set[str]:
    """The names that a statement assigns."""
    if isinstance(node, ast.Assign):
        targets = [n for target in node.targets for n in ast.walk(target)]
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        targets = []
    return {n.id for n in targets if isinstance(n, ast.Name)}


def _definition(e: Entry) -> ModuleType:
    """The module of an entry, or the private one that it is imported from."""
    module = importlib.import_module(e.home)
    for node in ast.parse(inspect.getsource(module)).body:
        names = getattr(node, "names", ())
        if isinstance(node, ast.ImportFrom) and e.name in {a.name for a in names}:
            return importlib.import_module(str(node.module))
    return module


def homes() -> dict[str, str]:
    """Returns full names by the names that prose uses: `jp.x`, `jprune.links.x`."""
    found = {}
    short = {f"{ROOT}.graph": "jg", f"{ROOT}.attention": "ja", f"{ROOT}.hardware": "hw"}
    for name in public_modules():
        found[name] = name
        found[name.replace(ROOT, "jp", 1)] = name
        for e in entries(importlib.import_module(name)):
            full = f"{name}.{e.name}"
            for prefix in (name, name.replace(ROOT, "jp", 1), short.get(name)):
                if prefix:
                    found[f"{prefix}.{e.name}"] = full
            if e.name in vars(importlib.import_module(ROOT)):
                found.setdefault(f"jp.{e.name}", full)
                found.setdefault(f"jprune.{e.name}", full)
    return found


def write(directory: Path) -> list[str]:
    """Writes all pages where they differ, and returns their names."""
    directory.mkdir(parents=True, exist_ok=True)
    known, names = homes(), public_modules()
    for name in names:
        path, text = directory / f"{name}.md", page(name, known)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    return names


if __name__ == "__main__":
    write(Path(sys.argv[1]))
