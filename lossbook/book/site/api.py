"""The API reference: a page for each folder of the package, from signatures and docstrings.

It is written here, where the package is imported already. Sphinx's autodoc would import it once more.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePath
from types import FunctionType
from typing import Any

from lossbook.book.site.docstrings import documented, restructured, summary
from lossbook.book.site.names import PACKAGES, Name, public

# An attribute of a class with its words, as in "    counts: Tensor  #: (K,) rows of each class".
_ATTRIBUTE = re.compile(r"^    (\w+): [^#\n]*#: (.+)$", re.MULTILINE)


def api_pages() -> dict[str, str]:
    """File name -> reStructuredText."""
    pages = {f"api/{package}.rst": _package_page(package) for package in PACKAGES}
    return {"api/index.rst": _index_page(), **pages}


def _index_page() -> str:
    lines = [
        *_title("API reference", "="),
        "Every public function and class, from its docstring; ``help()`` in Python says the same. What a name here is "
        "for, the notebooks show: the :doc:`list of losses </losses>` and the :doc:`list of papers </papers>` lead "
        "there.",
        "",
        ".. toctree::",
        "   :hidden:",
        "",
        *(f"   {package}" for package in PACKAGES),
        "",
    ]
    for package in PACKAGES:
        home = importlib.import_module(f"lossbook.{package}")
        text = " ".join(restructured([summary(home)], set(), package))
        lines += [f":doc:`lossbook.{package} <{package}>`", f"   {text}", ""]
    return "\n".join(lines)


def _package_page(package: str) -> str:
    home = importlib.import_module(f"lossbook.{package}")
    lines = [*_title(f"lossbook.{package}", "="), *_docstring(home, package), ""]
    for module, names in groupby(public(package), key=lambda name: name.module):
        lines += _title(module.rpartition(".")[2] if module != home.__name__ else "More", "-")
        if module != home.__name__:
            lines += [*_docstring(importlib.import_module(module), package), ""]
        for name in names:
            lines += _directive(name)
    return "\n".join(lines)


def _docstring(module: object, package: str) -> list[str]:
    return restructured((inspect.getdoc(module) or "").splitlines(), set(), package)


def _directive(name: Name) -> list[str]:
    module = name.full.rpartition(".")[0]
    if not callable(name.value):
        # Its docstring is that of its type.
        return _entry("data", name.short, [f"A constant, ``{type(name.value).__name__}``."], module=module)
    kind = "class" if inspect.isclass(name.value) else "function"
    body = _documented(name.value, name.package)
    if kind == "class":
        for short, words in _ATTRIBUTE.findall(inspect.getsource(name.value)):
            text = restructured([words], set(), name.package)
            body += ["", *_entry("attribute", f"{name.short}.{short}", text, module=module)]
        for member in _members(name.value):
            body += ["", *_member(name, *member)]
    return _entry(kind, name.short + _signature(name.value), body, module=module)


def _entry(kind: str, signature: str, body: list[str], **options: str) -> list[str]:
    """A directive of Sphinx's Python domain."""
    lines = [f".. py:{kind}:: {signature}", *(f"   :{key}: {value}".rstrip() for key, value in options.items()), ""]
    return [*lines, *textwrap.indent("\n".join(body), "   ").splitlines(), ""]


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines and documents, itself or in a base of this package."""
    for short, member in vars(value).items():
        written = isinstance(member, FunctionType | property | classmethod | staticmethod)
        if written and not short.startswith("_") and _has_words(value, short):
            yield short, member


def _has_words(value: type, member: str) -> bool:
    home = value.__module__.partition(".")[0]
    ours = (base for base in value.__mro__ if base.__module__.partition(".")[0] == home)
    return any(getattr(vars(base).get(member), "__doc__", None) for base in ours)


def _member(owner: Name, short: str, member: Any) -> list[str]:
    value = getattr(owner.value, short)
    module, _, cls = owner.full.rpartition(".")
    if isinstance(member, property):
        return _entry("property", f"{cls}.{short}", _documented(value, owner.package), module=module)
    options = {"classmethod": ""} if isinstance(member, classmethod) else {}
    options |= {"staticmethod": ""} if isinstance(member, staticmethod) else {}
    signature = _signature(value, bound=isinstance(member, FunctionType))
    return _entry("method", f"{cls}.{short}{signature}", _documented(value, owner.package), module=module, **options)


def _documented(value: Any, package: str) -> list[str]:
    return documented(value, {one.name for one in _parameters(value)}, package)


def _parameters(value: Any) -> list[inspect.Parameter]:
    """None for a property, and for what is written in C."""
    try:
        return list(inspect.signature(value).parameters.values())
    except (TypeError, ValueError):
        return []


class _Written(str):
    """Shown as it is, without quotes."""

    __repr__ = str.__str__


def _signature(value: Any, *, bound: bool = False) -> str:
    """The arguments with their defaults, without types; `bound` leaves out the first one.

    A function as a default is its name, and 1/3 has four digits. A path is left out: it is one of the machine that
    builds the site.
    """
    shown = []
    for one in _parameters(value)[bound:]:
        default = one.default
        if inspect.isfunction(default):
            default = _Written(default.__name__)
        elif isinstance(default, PurePath):
            default = _Written("...")
        elif isinstance(default, float) and len(repr(default)) > 8:
            default = _Written(f"{default:.4g}")
        shown.append(one.replace(annotation=one.empty, default=default))
    return str(inspect.Signature(shown))


def _title(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]
