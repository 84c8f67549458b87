"""What the library exports: public modules, and the names that each offers."""

import ast
import importlib
import pathlib
import pkgutil

import jprune


def public_modules():
    """`(name, is a package)` of every module that is public by its path.

    Without jprune's own page.
    """
    found = []
    for info in pkgutil.walk_packages(jprune.__path__, "jprune."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            found.append((info.name, info.ispkg))
    return found


def exports(module):
    """Names of functions, classes and re-exports `x as x` -> the module of each."""
    body = ast.parse(pathlib.Path(module.__file__).read_text()).body
    found = {}
    for node in body:
        if isinstance(node, ast.ImportFrom):
            kept = (a.name for a in node.names if a.asname == a.name)
            found |= dict.fromkeys(kept, node.module)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = module.__name__
    return {name: home for name, home in found.items() if name[0] != "_"}


def exported(name):
    """Names that a public module offers -> the values that are callable."""
    module = importlib.import_module(name)
    values = {each: getattr(module, each) for each in exports(module)}
    return {each: value for each, value in values.items() if callable(value)}
