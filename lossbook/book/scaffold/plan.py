"""`lossbook new-paper`: the places that a planned paper needs, each saying what is to be written there.

A plan is made first, whole and checked; then all of it is written, or none.
"""

from __future__ import annotations

import ast
import difflib
import json
import subprocess
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mode
from typing import Any

from lossbook._files import write_atomically
from lossbook.book.catalog import Catalog, Entry, load_catalog
from lossbook.book.scaffold import texts

ROOT = Path(__file__).resolve().parents[3]
CATALOG = Path("lossbook/book/catalog.toml")
CONTRACT = Path("tests/losses/test_contract.py")
# What a stub may need, and the line that brings it.
IMPORTS = {"Any": "from typing import Any", "Tensor": "from torch import Tensor", "nn": "from torch import nn"}


class ScaffoldError(ValueError):
    """Nothing was written; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What `new_paper` writes. Paths are relative to the checkout."""

    key: str
    notebook: Path
    files: dict[Path, str]  # path -> all of its new text
    new: frozenset[Path]  # those that are not there yet
    present: tuple[str, ...]  # functions of the paper that lossbook has already
    steps: tuple[str, ...]  # what is left to do


@dataclass(frozen=True)
class Target:
    """A function (or class) of the catalogue, and where it goes."""

    dotted: str  # "losses.retrieval.list_mle"
    package: tuple[str, ...]  # ("losses",)
    module: str  # "retrieval"

    @property
    def name(self) -> str:
        return _last(self.dotted)

    @property
    def path(self) -> Path:
        return Path("lossbook", *self.package, f"{self.module}.py")

    @property
    def init(self) -> Path:
        return Path("lossbook", *self.package, "__init__.py")


def new_paper(
    key: str, *, notebook: str | Path | None = None, loss: str | None = None, dry_run: bool = False, root: Path = ROOT
) -> Plan:
    """Scaffold a planned paper: functions, exports, tests, the contract table's line, notebook, catalogue row.

    A function raises NotImplementedError and a test fails until it is written; the notebook stops at its first task.
    Files that are there are added to, never replaced.

    Args:
        key: the paper's key in the catalogue.
        notebook: where its notebook goes, below `notebooks/`; if None, the next number of the part's folder.
        loss: "losses.family.name", for a paper whose row names no functions.
        dry_run: plan only.
        root: the checkout.

    Raises:
        ScaffoldError: an unknown key, a paper that is built, a target that exists, no checkout, no ruff.
    """
    load_catalog.cache_clear()
    plan = _plan(key, notebook, loss, root)
    if not dry_run:
        _write(plan, root)
        load_catalog.cache_clear()
    return plan


def _plan(key: str, notebook: str | Path | None, loss: str | None, root: Path) -> Plan:
    if missing := [name for name in (CATALOG, CONTRACT, Path("notebooks")) if not (root / name).exists()]:
        raise ScaffoldError(f"{root / missing[0]} is missing; a paper is added to a checkout of the book")
    if find_spec("ruff") is None:
        raise ScaffoldError("new-paper needs ruff, which is not installed; `pip install lossbook[test]` installs it")
    catalog = load_catalog(root / CATALOG)
    entry = _planned(catalog, key)
    page = _notebook_path(entry, notebook, root)
    functions = _functions(entry, loss)
    # The import system binds a submodule's name in its package, over a function of that name.
    own = _snake(key) if _snake(key) not in {_last(dotted) for dotted in functions} else f"{_snake(key)}_paper"
    targets = [_target(dotted, own, root) for dotted in functions]
    present = tuple(target.dotted for target in targets if _is_there(target, root))
    targets = [target for target in targets if target.dotted not in present]

    draft = _Draft(root)
    signatures = {}
    for target in targets:
        signatures[target] = texts.signature(target.dotted, _golden_cases(entry, target, root), house=loss is not None)
        _add_function(draft, target, texts.stub(entry, target.dotted, signatures[target]))
        _add_export(draft, target)
    in_contract = [target.name for target in targets if signatures[target].house]
    for name in in_contract:
        draft.edit(CONTRACT, partial(_into_contract, name=name))
    test = None
    if targets:
        test = Path("tests", mode(target.package[0] for target in targets), f"test_{_snake(key)}.py")
        draft.create(test, texts.tests(entry, [target.dotted for target in targets]))
    draft.create(Path("notebooks") / page, texts.notebook(entry, page.as_posix(), functions))
    draft.edit(CATALOG, lambda text: _with_row(text, catalog, entry, page, loss))
    for path in draft.texts:
        draft.texts[path] = _formatted(draft.texts[path], path, root)
    steps = texts.steps(entry, page, [(target.dotted, target.path) for target in targets], test, in_contract)
    return Plan(key, Path("notebooks") / page, draft.texts, frozenset(draft.new), present, steps)


class _Draft:
    """New texts of files; nothing is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts: dict[Path, str] = {}
        self.new: set[Path] = set()

    def exists(self, path: Path) -> bool:
        return path in self.texts or (self.root / path).exists()

    def create(self, path: Path, text: str) -> None:
        if self.exists(path):
            raise ScaffoldError(f"{path} exists already, and nothing is overwritten: no file was written")
        self.texts[path] = text
        self.new.add(path)

    def edit(self, path: Path, change: Callable[[str], str]) -> None:
        text = self.texts[path] if path in self.texts else (self.root / path).read_text(encoding="utf-8")
        self.texts[path] = change(text)


def _write(plan: Plan, root: Path) -> None:
    before = {path: None if path in plan.new else (root / path).read_bytes() for path in plan.files}
    written: list[Path] = []
    try:
        for path, text in plan.files.items():
            write_atomically(root / path, text)
            written.append(path)
    except BaseException:
        for path in written:
            content = before[path]
            if content is None:
                (root / path).unlink()
            else:
                write_atomically(root / path, content)
        raise


def _planned(catalog: Catalog, key: str) -> Entry:
    entry = catalog.entries.get(key)
    if entry is None:
        near = difflib.get_close_matches(key, catalog.entries, n=4, cutoff=0.4)
        near += [other for other in catalog.entries if key.lower() in other and other not in near]
        hint = (
            f"; near it are {', '.join(near[:6])}" if near else "; `lossbook papers --planned` lists the planned ones"
        )
        raise ScaffoldError(f"the catalogue has no paper {key!r}{hint}")
    if entry.built:
        raise ScaffoldError(f"{key} is built already, in notebooks/{entry.notebook}")
    return entry


def _functions(entry: Entry, loss: str | None) -> tuple[str, ...]:
    if loss is None:
        if not entry.functions:
            raise ScaffoldError(f"the catalogue names no function of {entry.key}: name one, --loss losses.family.name")
        return entry.functions
    if entry.functions:
        raise ScaffoldError(
            f"the catalogue names the functions of {entry.key} ({', '.join(entry.functions)}): no --loss"
        )
    words = loss.split(".")
    if len(words) < 3 or words[0] != "losses" or not all(word.isidentifier() for word in words):
        raise ScaffoldError(f"--loss takes losses.family.name, not {loss!r}")
    return (loss,)


def _snake(key: str) -> str:
    return key.replace("-", "_")


def _notebook_path(entry: Entry, wanted: str | Path | None, root: Path) -> Path:
    """The notebook's path below `notebooks/`."""
    if wanted is None:
        part = entry.part or "guides"
        numbers = [path.name[:2] for path in (root / "notebooks" / part).glob("[0-9][0-9]-*.ipynb")]
        return Path(part, f"{max(map(int, numbers), default=0) + 1:02d}-{entry.key}.ipynb")
    path = Path(wanted)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.parts[:1] == ("notebooks",):
        path = path.relative_to("notebooks")
    if path.is_absolute() or ".." in path.parts or path.suffix != ".ipynb":
        raise ScaffoldError(f"--notebook takes a path below notebooks/ that ends in .ipynb, not {str(wanted)!r}")
    return path


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _target(dotted: str, own: str, root: Path) -> Target:
    """Into the family's module; where the catalogue names a package only, into the module `own` of the paper."""
    home = dotted.split(".")[:-1]
    if len(home) > 1 and not (root / "lossbook" / Path(*home) / "__init__.py").exists():
        return Target(dotted, tuple(home[:-1]), home[-1])
    return Target(dotted, tuple(home), own)


def _is_there(target: Target, root: Path) -> bool:
    home = target.dotted.rpartition(".")[0].replace(".", "/")
    init = root / "lossbook" / home / "__init__.py"
    if init.exists():
        exports = _exports(init.read_text(encoding="utf-8"))
        return any(target.name in names for names in exports.values())
    module = root / target.path
    return module.exists() and target.name in _defined(module.read_text(encoding="utf-8"))


def _golden_cases(entry: Entry, target: Target, root: Path) -> list[dict[str, Any]]:
    cases = []
    for name in entry.golden:
        document = json.loads((root / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))
        for case in document["cases"]:
            if case.get("function", document["function"]).split(" ")[0] == f"lossbook.{target.dotted}":
                cases.append(case)
    return cases


def _add_function(draft: _Draft, target: Target, stub: str) -> None:
    if not draft.exists(target.path):
        draft.create(target.path, texts.module(target.module))
    draft.edit(target.path, lambda text: _appended(text, target.name, stub))


def _appended(text: str, name: str, stub: str) -> str:
    text = f"{text.rstrip()}\n\n\n{stub}"
    used = {node.id for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.Name)}
    lines = [line for word, line in IMPORTS.items() if word in used - _bound(text)]
    future = "from __future__ import annotations\n"
    if lines and future not in text:
        raise ScaffoldError(f"the module of {name} does not begin with `{future.strip()}`")
    text = text.replace(future, "\n".join([future, *lines, ""]), 1) if lines else text
    assert list(_defined(text)).count(name) == 1
    return text


def _add_export(draft: _Draft, target: Target) -> None:
    above = Path("lossbook", *target.package[:-1], "__init__.py")
    if not draft.exists(target.init):
        draft.create(target.init, texts.package(target.package[-1]))
        draft.edit(above, lambda text: _into_list(text, _assigned(ast.parse(text), "_SUBPACKAGES"), target.package[-1]))
    # A function that is called like its module is reached through it.
    names = [target.name] if target.name != target.module else []
    draft.edit(target.init, partial(_exporting, module=target.module, added=names, where=target.init.parent))
    if len(target.package) > 1:
        draft.edit(above, partial(_exporting, module=target.package[-1], added=names, where=above.parent))


def _exporting(text: str, module: str, added: list[str], where: Path) -> str:
    """A package's `__init__.py` that exports the added names from its module, too."""
    before = _exports(text)
    for name in added:
        if taken := [other for other, names in before.items() if name in names]:
            raise ScaffoldError(f"{where} exports a {name} already, from {taken[0]}: no file was written")
        if name in before or name == module:
            raise ScaffoldError(
                f"{where} has a module {name}, which hides a function of that name: no file was written"
            )
    if module not in before:
        text = _into_dict(text, _attached(text), f'"{module}": {json.dumps(added)}')
    for name in added if module in before else []:
        node = _attached(text)
        text = _into_list(text, node.values[list(before).index(module)], name)
    after = _exports(text)
    assert after == {**before, module: after[module]} and set(after[module]) == {*before.get(module, ()), *added}
    return text


def _attached(text: str) -> ast.Dict:
    """The literal that a package hands to `attach`: submodule -> exported names."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=ast.Name(id="attach"), args=[_, ast.Dict() as names]):
                return names
    raise ScaffoldError("a package's __init__.py does not call attach(__name__, {…})")


def _exports(text: str) -> dict[str, list[str]]:
    return ast.literal_eval(_attached(text))


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]:
            return node.value
    raise ScaffoldError(f"nothing is assigned to {name}")


def _into_list(text: str, node: ast.expr, name: str) -> str:
    names = ast.literal_eval(node)
    place = next((i for i, other in enumerate(names) if other > name), len(names))
    names.insert(place, name)
    start, end = _span(text, node)
    # A list that stands on several lines stays so.
    comma = "," if "\n" in text[start:end] else ""
    return f"{text[:start]}[{', '.join(map(json.dumps, names))}{comma}]{text[end:]}"


def _into_dict(text: str, node: ast.Dict, item: str) -> str:
    _, end = _span(text, node)
    inside = text[: end - 1].rstrip()
    comma = "" if inside.endswith((",", "{")) else ","
    return f"{inside}{comma}\n{item},\n{text[end - 1 :]}"


def _into_contract(text: str, name: str) -> str:
    node = _assigned(ast.parse(text), "LOSSES")
    assert isinstance(node, ast.Dict)
    if name in [key.value for key in node.keys if isinstance(key, ast.Constant)]:
        raise ScaffoldError(f"{CONTRACT} has a line {name} already: no file was written")
    return _into_dict(text, node, f'"{name}": (losses.{name}, None, None, None)')


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """Where a node's source begins and ends; ast counts columns in bytes."""
    lines = text.split("\n")

    def offset(line: int, column: int) -> int:
        return sum(len(before) + 1 for before in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())

    assert node.end_lineno is not None and node.end_col_offset is not None
    return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)


def _defined(text: str) -> Iterable[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(text).body if isinstance(node, kinds)]


def _bound(text: str) -> set[str]:
    """The names that a module's imports bind."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def _with_row(text: str, catalog: Catalog, entry: Entry, page: Path, loss: str | None) -> str:
    """The catalogue with the paper's notebook and a claim to be written."""
    table = "papers" if entry.key in catalog.papers else "foundations"
    before = tomllib.loads(text)
    lines = text.rstrip("\n").split("\n")
    start = lines.index(f"[{table}.{entry.key}]")
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    while not lines[end - 1].strip():
        end -= 1
    added = [f"functions = {json.dumps([loss])}"] if loss else []
    added += [f'notebook = "{page.as_posix()}"', "", f"[[{table}.{entry.key}.claims]]", *texts.CLAIM]
    text = "\n".join([*lines[:end], *added, *lines[end:], ""])
    after = tomllib.loads(text)
    row = after[table].pop(entry.key)
    assert row["notebook"] == page.as_posix() and len(row["claims"]) == 1
    old = before[table].pop(entry.key)
    assert after == before and old.items() <= row.items()
    return text


def _formatted(text: str, path: Path, root: Path) -> str:
    """As ruff has it: imports sorted, lines broken."""
    if path.suffix not in (".py", ".ipynb"):
        return text
    from ruff import find_ruff_bin

    name = ["--stdin-filename", str(root / path), "-"]
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        ruff = [find_ruff_bin(), *command, *name]
        done = subprocess.run(ruff, input=text, capture_output=True, text=True, encoding="utf-8", cwd=root, check=False)
        if done.returncode:
            raise ScaffoldError(f"ruff refuses what would be written to {path}: {done.stderr or done.stdout}")
        text = done.stdout
    return text
