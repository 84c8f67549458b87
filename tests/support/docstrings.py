"""What docstrings have to say, read from signatures and syntax trees."""

import ast
import dataclasses
import doctest
import functools
import inspect
import re
import textwrap

import jprune as jp

_SECTIONS = "Args|Attributes|Returns|Raises|Examples?|References"


class _Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions, too."""

    def _from_module(self, module, object):  # noqa: A002 - doctest's name
        return super()._from_module(module, inspect.unwrap(object))


def examples(module):
    """The examples of a module, of which each docstring has one test."""
    return _Finder().find(module)


def section(text, title):
    """The body of a section, or "" if there is none."""
    found = re.search(rf"^{title}:\n((?:  .*\n|\n)*)", text + "\n", re.M)
    return found[1] if found else ""


def entries(text, title):
    """Names that a section describes: `x, y: ...` and `**fields: ...` are entries."""
    heads = re.findall(r"^  (\*{0,2}\w.*?):", section(text, title), re.M)
    return {name.strip(" `") for head in heads for name in head.split(",")}


def complaints(function):
    """What the docstring of a public function lacks, Raises aside.

    A function without parameters has no Args, one that returns None no Returns.
    """
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    if not re.fullmatch(r".+[.:]", text.partition("\n")[0]):
        yield "a summary of one line"
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    takes = {stars.get(p.kind.name, "") + n for n, p in signature.parameters.items()}
    missing = takes - entries(text, "Args")
    unknown = entries(text, "Args") - takes
    yield from (f"{name} in Args" for name in sorted(missing))
    yield from (f"no {name} in Args, as it is no parameter" for name in sorted(unknown))
    gives = signature.return_annotation is not None
    if gives and not section(text, "Returns").strip():
        yield "Returns"
    if not section(text, "Examples?").strip():
        yield "Example"
    if re.search(r"\S\n(?:" + _SECTIONS + "):", text):
        yield "an empty line before each section"


def class_complaints(cls):
    """What the docstring of a class lacks: a summary, or one of its fields."""
    text = inspect.getdoc(cls) or ""
    if not re.fullmatch(r".+[.:]", text.partition("\n")[0]):
        yield "a summary of one line"
    fields = set(getattr(cls, "_fields", ()))
    if dataclasses.is_dataclass(cls):
        fields = {field.name for field in dataclasses.fields(cls)}
    missing = fields - entries(text, "Attributes")
    yield from (f"{name} in Attributes" for name in sorted(missing))


def raises(function, public, own="jprune.", seen=()):
    """Whether a function raises an error of jprune's, itself or by private functions.

    Functions inside of it count as well, as what a link does at `update` is what the
    link does, and so do functions that it names, as it may map them over a tree. Errors
    of the public functions that it calls are described there.
    """
    for inner in _nodes(function):
        if isinstance(inner, ast.Raise) and _is_own_error(function, inner.exc):
            return True
        used = _function(_value(function, inner), own)
        if used is None or used in public or used in (function, *seen):
            continue
        if raises(used, public, own, (*seen, function)):
            return True
    return False


@functools.cache
def _nodes(function):
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    return [inner for each in node.body for inner in ast.walk(each)]


def _is_own_error(function, node):
    value = _value(function, node.func if isinstance(node, ast.Call) else node)
    return inspect.isclass(value) and issubclass(value, jp.PruningError)


def _function(value, own):
    """A value without decorators, if it is a function of modules of that prefix."""
    value = inspect.unwrap(value) if callable(value) else None
    known = inspect.isfunction(value) and value.__module__.startswith(own)
    return value if known else None


def _value(function, node):
    """What a name, or a name in a module, is in a function's file; else None."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute):
        module = _value(function, node.value)
        return vars(module).get(node.attr) if inspect.ismodule(module) else None
    return None
