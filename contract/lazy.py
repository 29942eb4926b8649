"""Re-exports of names without importing the modules that define them."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a module's `__getattr__` that imports each name when it is first used.

    Args:
        package: `__name__` of the package that re-exports.
        modules: name -> the module that defines it, relative to the package, as "config" or "graph.builder".
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get
