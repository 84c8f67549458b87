"""Old names, which work for one release and say what they are called now."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a module's `__getattr__` that finds what was renamed or moved.

    Args:
      module: name of the module.
      names: old name -> the path of what it stands for now, such as
        "jprune.graph.choose".

    Returns:
      A function of the name. It warns with a DeprecationWarning, or raises
      AttributeError for a name that never was.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        path = names[name]
        warnings.warn(
            f"{module}.{name} is now {path}; the old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        home, _, last = path.rpartition(".")
        found = getattr(importlib.import_module(home), last, None)
        return importlib.import_module(path) if found is None else found

    return find
