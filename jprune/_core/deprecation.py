"""Old names, which keep working for one release with a warning."""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a module, which resolves renamed or moved names.

    Args:
      module: name of the module.
      names: maps each old name to the new path, such as "jprune.graph.choose".

    Returns:
      A function from a name to the object of the new name, which emits a
      DeprecationWarning.

    Raises:
      AttributeError: by that function, for names that never existed.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        path = names[name]
        warnings.warn(
            f"{module}.{name} is now {path}; the next release removes the old name.",
            DeprecationWarning,
            stacklevel=2,
        )
        home, _, last = path.rpartition(".")
        return getattr(importlib.import_module(home), last)

    return find


def renamed_arguments(**names: str) -> Callable[[_Function], _Function]:
    """Returns a decorator for functions whose keyword arguments were renamed.

    Args:
      **names: maps each old name to the new one.

    Returns:
      A decorator. The decorated function emits a DeprecationWarning when it is called
      with an old name.

    Raises:
      TypeError: by the decorated function, if an argument is given by both names.

    Example:
      >>> import warnings
      >>> @renamed_arguments(colour="color")
      ... def paint(color):
      ...     return color
      >>> with warnings.catch_warnings(action="ignore"):
      ...     paint(colour="red")
      'red'
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new, name = names[old], function.__name__
                if new in kwargs:
                    raise TypeError(
                        f"{name} got both {old}=, the old name, and {new}=."
                    )
                warnings.warn(
                    f"{name}({old}=) is now {name}({new}=); the next release removes "
                    "the old name.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
