"""Every exported function says what it takes, returns and raises, and shows it.

Functions are held to all sections. Classes of fields (NamedTuples, dataclasses) say
what these are; of other classes, exceptions among them, a summary is all that is asked.
Type aliases such as `Rules` are neither: a page shows what they stand for.
"""

import doctest
import functools
import importlib
import inspect
import typing

from support import docstrings
from support.exports import exported, public_modules

from jprune import NonFiniteScoreError, links

MODULES = ["jprune", *(name for name, _ in public_modules())]


@functools.cache
def functions():
    """Exported functions, without decorators -> their public paths."""
    found = {}
    for module in MODULES:
        for name, value in exported(module).items():
            if inspect.isfunction(inspect.unwrap(value)):
                found[inspect.unwrap(value)] = f"{module}.{name}"
    return found


@functools.cache
def shown(module):
    """Names in a module whose examples `test_docstring_examples` runs."""
    return {
        test.name
        for test in docstrings.examples(importlib.import_module(module))
        if any(doctest.SKIP not in each.options for each in test.examples)
    }


def test_what_is_exported_is_a_function_a_class_or_a_type():
    """So that nothing callable escapes the tests below."""
    others = [
        f"{module}.{name}"
        for module in MODULES
        for name, value in exported(module).items()
        if not inspect.isfunction(inspect.unwrap(value))
        and not inspect.isclass(value)
        and typing.get_origin(value) is None
    ]
    assert not others
    assert len(functions()) > 300


def test_functions_have_all_sections():
    lacks = [
        f"{path} lacks {complaint}"
        for function, path in functions().items()
        for complaint in docstrings.complaints(function)
    ]
    assert not lacks, "\n".join(lacks)


def test_functions_have_an_example_that_runs():
    lacks = [
        path
        for function, path in functions().items()
        if f"{function.__module__}.{function.__name__}"
        not in shown(function.__module__)
    ]
    assert not lacks, "\n".join(lacks)


def test_functions_say_what_they_raise():
    public = frozenset(functions())
    lacks = [
        path
        for function, path in functions().items()
        if docstrings.raises(function, public)
        and not docstrings.entries(inspect.getdoc(function), "Raises")
    ]
    assert not lacks, "\n".join(lacks)


def test_classes_say_what_their_fields_are():
    lacks = []
    for module in MODULES:
        for name, value in exported(module).items():
            if inspect.isclass(value) and value.__module__.startswith("jprune."):
                found = docstrings.class_complaints(value)
                lacks += [f"{module}.{name} lacks {complaint}" for complaint in found]
    assert not lacks, "\n".join(lacks)


# What the tests above find, on functions that lack something.


def adds(x, y=0, *more, **fields):
    """Returns x + y.

    Args:
      x, y: numbers.
      z: is no parameter.
      **fields: ignored.
    """


def prints(x) -> None:
    """Prints an argument.
    Args:
      x: the argument.

    Example:
      >>> prints(1)
      1
    """


def raises_later(x):
    def update(y):
        raise NonFiniteScoreError(f"{x} {y}")

    return update


def raises_by_another(x):
    return raises_later(x)


def calls_what_says_so(x):
    return links.keep_top(x)


def raises_another(x):
    if x:
        raise ValueError(x)


def test_each_lack_is_found():
    assert set(docstrings.complaints(adds)) == {
        *("*more in Args", "no z in Args, as it is no parameter"),
        *("Returns", "Example"),
    }
    assert set(docstrings.complaints(prints)) == {
        "an empty line before each section",
    }
    assert set(docstrings.complaints(raises_another)) == {
        *("a summary of one line", "x in Args", "Returns", "Example"),
    }


def test_errors_are_found_through_private_functions():
    public, own = frozenset(functions()), ("jprune.", __name__)
    assert docstrings.raises(raises_later, public, own)
    assert docstrings.raises(raises_by_another, public, own)
    assert docstrings.raises(calls_what_says_so, frozenset(), own)
    assert not docstrings.raises(calls_what_says_so, public, own)
    assert not docstrings.raises(raises_another, public, own)
