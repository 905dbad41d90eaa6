"""The package's public names: where each is documented, and which code uses it."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import lossbook

#: The folders that have a page of their own in the API reference, in the book's order.
PACKAGES = (
    "losses",
    "metrics",
    "calibrators",
    "layers",
    "theory",
    "data",
    "models",
    "train",
    "viz",
    "attacks",
    "adapt",
    "book",
)


@dataclass(frozen=True)
class Name:
    """A public function, class or constant."""

    full: str  # "lossbook.losses.comp_sum", what a user writes
    module: str  # "lossbook.losses.surrogate", the submodule that groups it
    value: Any

    @property
    def short(self) -> str:
        return self.full.rpartition(".")[2]

    @property
    def package(self) -> str:
        return self.full.split(".")[1]

    @property
    def address(self) -> str:
        """Its place in the API reference, from the top of the site."""
        return f"api/{self.package}.html#{self.full}"


@cache
def public(package: str) -> tuple[Name, ...]:
    """What a folder of the package exports, and what its modules without exports hold, grouped by module."""
    home = importlib.import_module(f"lossbook.{package}")
    names, modules = [], []
    for short in home.__all__:
        value = getattr(home, short)
        if inspect.ismodule(value):
            modules.append(value)
        else:
            names.append(Name(f"{home.__name__}.{short}", _group(home.__name__, short, value), value))
    exported = {id(name.value) for name in names}
    grouped = {name.module for name in names}
    for module in modules:
        # The commands and the machinery of the book are no library.
        if module.__name__ not in grouped and package != "book":
            names += [
                Name(f"{module.__name__}.{short}", module.__name__, value)
                for short, value in _of_module(module)
                if id(value) not in exported
            ]
    order = {module.__name__: i for i, module in enumerate(_in_order(home, modules))}
    return tuple(sorted(names, key=lambda name: (order.get(name.module, len(order)), name.short)))


def _in_order(home: Any, modules: list[Any]) -> list[Any]:
    """The modules in the order in which the folder's `__init__` lists them."""
    source = inspect.getsource(home)
    return sorted(modules, key=lambda module: source.find(f'"{module.__name__.rpartition(".")[2]}":'))


def _group(home: str, short: str, value: Any) -> str:
    """The submodule, directly below the package, that a name comes from."""
    defined = getattr(value, "__module__", "")
    if defined.startswith(home + "."):
        return ".".join(defined.split(".")[: home.count(".") + 2])
    # A constant does not know where it is from.
    for module in vars(importlib.import_module(home)).values():
        if inspect.ismodule(module) and module.__name__.startswith(home + ".") and short in vars(module):
            return module.__name__
    return home


def _of_module(module: Any) -> list[tuple[str, Any]]:
    """The public functions and classes that a module defines."""
    return [
        (short, value)
        for short, value in vars(module).items()
        if not short.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and value.__doc__
    ]


@cache
def everything() -> dict[str, Name]:
    """Every public name by the name that a user writes."""
    return {name.full: name for package in PACKAGES for name in public(package)}


@cache
def resolve(dotted: str) -> Name | None:
    """The public name behind any path to it: "losses.surrogate.comp_sum" is `lossbook.losses.comp_sum`."""
    path = dotted if dotted.startswith("lossbook.") else f"lossbook.{dotted}"
    if path in everything():
        return everything()[path]
    value: Any = lossbook
    try:
        for part in path.split(".")[1:]:
            value = getattr(value, part)
    except (AttributeError, ImportError):
        return None
    return _by_value().get(id(value))


@cache
def _by_value() -> dict[int, Name]:
    return {id(name.value): name for name in everything().values()}


def used(sources: Iterable[str]) -> set[str]:
    """The public names that Python code uses, cell after cell: names in strings and comments do not count.

    What is only passed on as a string, and what a function of the package calls in turn, is not found.
    """
    aliases: dict[str, str] = {}
    found: set[str] = set()
    for source in sources:
        nodes = list(ast.walk(_parsed(source)))
        for node in nodes:
            if isinstance(node, ast.Import):
                ours = [a for a in node.names if a.name.split(".")[0] == "lossbook"]
                aliases |= {a.asname or "lossbook": a.name if a.asname else "lossbook" for a in ours}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lossbook":
                aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
                found |= {f"{node.module}.{a.name}" for a in node.names}
        found |= {path for node in nodes if (path := _path(node, aliases))}
    return {name.full for path in found if (name := resolve(path))}


def _parsed(source: str) -> ast.AST:
    """The syntax tree, also of a cell with magics; an empty one of what is no Python, as an unfinished exercise."""
    try:
        return ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        try:
            return ast.parse(TransformerManager().transform_cell(source))
        except SyntaxError:
            return ast.Module([], [])


def _path(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """ "lossbook.losses.comp_sum" of `losses.comp_sum`, after `from lossbook import losses`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in aliases:
        return ".".join([aliases[node.id], *reversed(parts)])
    return None
