"""Edits of source text: a text and what is to be added go in, the new text comes out, and the rest of it stays."""

from __future__ import annotations

import ast
import json
import tomllib

# What a stub may need, and the line that brings it.
IMPORTS = {"Any": "from typing import Any", "Tensor": "from torch import Tensor", "nn": "from torch import nn"}
FUTURE = "from __future__ import annotations\n"


class ScaffoldError(ValueError):
    """Nothing was written; the message says why."""


def defined(text: str) -> list[str]:
    """The names of a module's functions and classes."""
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def with_function(text: str, name: str, stub: str) -> str:
    """A module with a stub at its end, and the imports that the stub needs."""
    used = {node.id for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.Name)}
    lines = [line for word, line in IMPORTS.items() if word in used - _bound(text)]
    if lines and FUTURE not in text:
        raise ScaffoldError(f"does not begin with `{FUTURE.strip()}`")
    text = text.replace(FUTURE, "\n".join([FUTURE, *lines, ""]), 1) if lines else text
    if name in _bound(text):
        raise ScaffoldError(f"has a {name} already")
    return f"{text.rstrip()}\n\n\n{stub}"


def exports(text: str) -> dict[str, list[str]]:
    """Of a package's `__init__.py`: submodule -> the names that are exported from it."""
    return ast.literal_eval(_attached(text))


def with_exports(text: str, module: str, added: list[str]) -> str:
    """A package's `__init__.py` that exports the added names from its module, too."""
    before = exports(text)
    for name in [*added, module] if module not in before else added:
        if taken := [other for other, names in before.items() if name in names]:
            raise ScaffoldError(f"exports a {name} already, from {taken[0]}")
    # The import system binds a submodule's name in its package, over a function of that name.
    if hidden := [name for name in added if name in {*before, module}]:
        raise ScaffoldError(f"has a module {hidden[0]}, which would hide a function of that name")
    if module not in before:
        text = _with_item(text, _attached(text), f'"{module}": {json.dumps(added)}')
    for name in added if module in before else []:
        node = _attached(text)
        text = _with_name(text, node.values[list(before).index(module)], name)
    return text


def with_subpackage(text: str, name: str) -> str:
    """The package's `__init__.py` with one more folder in its list."""
    return _with_name(text, _assigned(text, "_SUBPACKAGES"), name)


def with_contract(text: str, name: str) -> str:
    """The contract table with a line for a loss, whose parameter is to be written."""
    node = _assigned(text, "LOSSES")
    assert isinstance(node, ast.Dict)
    if name in [key.value for key in node.keys if isinstance(key, ast.Constant)]:
        raise ScaffoldError(f"has a line {name} already")
    return _with_item(text, node, f'"{name}": (losses.{name}, None, None, None)')


def with_row(text: str, header: str, added: list[str], claim: list[str]) -> str:
    """The catalogue with more fields in a paper's row, "papers.key", and a claim after it."""
    lines = text.rstrip("\n").split("\n")
    if f"[{header}]" not in lines:
        raise ScaffoldError(f"has no line `[{header}]`")
    start = lines.index(f"[{header}]")
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    while not lines[end - 1].strip():
        end -= 1
    text = "\n".join([*lines[:end], *added, "", f"[[{header}.claims]]", *claim, *lines[end:], ""])
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScaffoldError(f"would not be TOML any more: {error}") from error
    return text


def _attached(text: str) -> ast.Dict:
    """The literal that a package hands to `attach`: submodule -> exported names."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=ast.Name(id="attach"), args=[_, ast.Dict() as names]):
                return names
    raise ScaffoldError("does not call attach(__name__, {…})")


def _assigned(text: str, name: str) -> ast.expr:
    for node in ast.parse(text).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return value
    raise ScaffoldError(f"assigns nothing to {name}")


def _with_name(text: str, node: ast.expr, name: str) -> str:
    """The text with a name more in a sorted list."""
    names = ast.literal_eval(node)
    place = next((i for i, other in enumerate(names) if other > name), len(names))
    names.insert(place, name)
    start, end = _span(text, node)
    # A list that stands on several lines stays so.
    comma = "," if "\n" in text[start:end] else ""
    return f"{text[:start]}[{', '.join(map(json.dumps, names))}{comma}]{text[end:]}"


def _with_item(text: str, node: ast.Dict, item: str) -> str:
    """The text with an item more at the end of a dictionary."""
    _, end = _span(text, node)
    inside = text[: end - 1].rstrip()
    comma = "" if inside.endswith((",", "{")) else ","
    return f"{inside}{comma}\n{item},\n{text[end - 1 :]}"


def _bound(text: str) -> set[str]:
    """The names that a module's functions, classes, imports and assignments bind."""
    names = set(defined(text))
    for node in ast.parse(text).body:
        match node:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """Where a node's source begins and ends; ast counts columns in bytes."""
    lines = text.split("\n")

    def offset(line: int, column: int) -> int:
        return sum(len(before) + 1 for before in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())

    assert node.end_lineno is not None and node.end_col_offset is not None
    return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)
