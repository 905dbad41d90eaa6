"""The API reference: a page for each folder of the package, from the docstrings."""

from __future__ import annotations

import importlib
import inspect
from itertools import groupby

from lossbook.book.site.docstrings import restructured, summary
from lossbook.book.site.names import PACKAGES, Name, public


def api_pages() -> dict[str, str]:
    """File name -> reStructuredText, for Sphinx with the extension `lossbook.book.site.docstrings`."""
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
    if inspect.isclass(name.value):
        return [f".. autoclass:: {name.full}", "   :members:", ""]
    if callable(name.value):
        return [f".. autofunction:: {name.full}", ""]
    # autodoc would show the docstring of its type.
    return [f".. py:data:: {name.full}", "", f"   A constant, ``{type(name.value).__name__}``.", ""]


def _title(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]
