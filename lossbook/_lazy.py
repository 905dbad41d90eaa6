"""Load a name's module when the name is first used, so that importing lossbook stays as cheap as importing torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def attach(
    package: str, names: dict[str, list[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__, __dir__, __all__` of a package (PEP 562).

    names maps each submodule to the names it exports; the submodules themselves are reachable too.
    """
    # The import system binds a submodule's name in its package, over a function of that name.
    if shadowed := {name for exported in names.values() for name in exported} & names.keys():
        raise ImportError(f"{package} exports {sorted(shadowed)[0]!r}, which is also the name of its submodule")
    home = {name: module for module, exported in names.items() for name in exported}

    def getattr_(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    exported = sorted([*home, *names])
    return getattr_, lambda: exported, exported
