"""`lossbook new-paper`: the places that a planned paper needs, each saying what is to be written there.

A plan is made first, whole and checked; then all of it is written, or none.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import json
import keyword
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mode
from typing import Any

from lossbook._files import write_atomically
from lossbook.book.catalog import Catalog, Entry, load_catalog
from lossbook.book.scaffold import source, texts
from lossbook.book.scaffold.source import ScaffoldError

ROOT = Path(__file__).resolve().parents[3]
CATALOG = Path("lossbook/book/catalog.toml")
CONTRACT = Path("tests/losses/test_contract.py")


@dataclass(frozen=True)
class Plan:
    """What `new_paper` writes. Paths are relative to the checkout."""

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
        ScaffoldError: an unknown key, a paper that is built, a name that Python or lossbook uses, a target that
            exists, source that does not parse, no checkout, no ruff.
        OSError: a file could not be written; those before it are taken back.
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
    own = _snake(key) if _snake(key) not in map(_last, functions) else f"{_snake(key)}_paper"

    draft = _Draft(root)
    targets = [_target(dotted, own, root) for dotted in functions]
    present = tuple(target.dotted for target in targets if _is_there(target, draft))
    targets = [target for target in targets if target.dotted not in present]
    signatures = {}
    for target in targets:
        signatures[target] = texts.signature(target.dotted, _golden_cases(entry, target, root), house=loss is not None)
        _add_function(draft, target, texts.stub(entry, target.dotted, signatures[target]))
        _add_export(draft, target)
    in_contract = [target.name for target in targets if signatures[target].house]
    for name in in_contract:
        draft.edit(CONTRACT, partial(source.with_contract, name=name))
    test = None
    if targets:
        test = Path("tests", mode(target.package[0] for target in targets), f"test_{_snake(key)}.py")
        draft.create(test, texts.tests(entry, [target.dotted for target in targets]))
    draft.create(Path("notebooks") / page, texts.notebook(entry, page.as_posix(), functions))
    header = f"{'papers' if key in catalog.papers else 'foundations'}.{key}"
    row = [f"functions = {json.dumps([loss])}"] if loss else []
    row += [f'notebook = "{page.as_posix()}"']
    draft.edit(CATALOG, partial(source.with_row, header=header, added=row, claim=list(texts.CLAIM)))
    draft.format()
    steps = texts.steps(entry, page, [(target.dotted, target.path) for target in targets], test, in_contract)
    return Plan(Path("notebooks") / page, draft.texts, frozenset(draft.new), present, steps)


class _Draft:
    """New texts of files; nothing is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts: dict[Path, str] = {}
        self.new: set[Path] = set()

    def exists(self, path: Path) -> bool:
        return path in self.texts or (self.root / path).exists()

    def read(self, path: Path) -> str:
        if path in self.texts:
            return self.texts[path]
        text = (self.root / path).read_text(encoding="utf-8")
        if path.suffix == ".py":
            try:
                ast.parse(text)
            except SyntaxError as error:
                raise ScaffoldError(f"{path} is not Python: {error.msg}, line {error.lineno}") from error
        return text

    def create(self, path: Path, text: str) -> None:
        if self.exists(path):
            raise ScaffoldError(f"{path} exists already, and nothing is overwritten: no file was written")
        self.texts[path] = text
        self.new.add(path)

    def edit(self, path: Path, change: Callable[[str], str]) -> None:
        try:
            self.texts[path] = change(self.read(path))
        except ScaffoldError as error:
            raise ScaffoldError(f"{path} {error}: no file was written") from error

    def format(self) -> None:
        """As ruff has it: imports sorted, lines broken."""
        for path, text in self.texts.items():
            if path.suffix in (".py", ".ipynb"):
                self.texts[path] = _formatted(text, path, self.root)


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
        words = key.lower()
        near = [other for other, row in catalog.entries.items() if words and words in f"{other} {row.title.lower()}"]
        near += [other for other in difflib.get_close_matches(words, catalog.entries, n=4) if other not in near]
        hint = f"near it are {', '.join(near[:6])}" if near else "`lossbook papers --planned` lists the planned ones"
        raise ScaffoldError(f"the catalogue has no paper {key!r}; {hint}")
    if entry.built:
        raise ScaffoldError(f"{key} is built already, in notebooks/{entry.notebook}")
    # It becomes the name of a module, a test file and a claim.
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", key) or keyword.iskeyword(key):
        raise ScaffoldError(f"the key {key} is not lower-case words joined by hyphens, or is a word of Python")
    return entry


def _functions(entry: Entry, loss: str | None) -> tuple[str, ...]:
    functions = entry.functions
    if loss is not None:
        if functions:
            raise ScaffoldError(f"the catalogue names the functions of {entry.key} ({', '.join(functions)}): no --loss")
        if not re.fullmatch(r"losses\.\w+(\.\w+)+", loss):
            raise ScaffoldError(f"--loss takes losses.family.name, not {loss!r}")
        functions = (loss,)
    if not functions:
        raise ScaffoldError(f"the catalogue names no function of {entry.key}: name one, --loss losses.family.name")
    for dotted in functions:
        words = dotted.split(".")
        usable = all(re.fullmatch(r"[a-zA-Z]\w*", word, re.ASCII) and not keyword.iskeyword(word) for word in words)
        if not usable or len(words) == 1 or hasattr(builtins, words[-1]):
            raise ScaffoldError(
                f"{dotted!r} cannot be a function of lossbook: it takes package.name, of names that Python leaves free"
            )
        if functions.count(dotted) > 1:
            raise ScaffoldError(f"the catalogue names {dotted} twice")
    return functions


def _snake(key: str) -> str:
    return key.replace("-", "_")


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


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


def _target(dotted: str, own: str, root: Path) -> Target:
    """Into the family's module; where the catalogue names a package only, into the module `own` of the paper."""
    home = dotted.split(".")[:-1]
    if len(home) > 1 and not (root / "lossbook" / Path(*home) / "__init__.py").exists():
        return Target(dotted, tuple(home[:-1]), home[-1])
    return Target(dotted, tuple(home), own)


def _is_there(target: Target, draft: _Draft) -> bool:
    init = Path("lossbook", *target.dotted.split(".")[:-1], "__init__.py")
    if draft.exists(init):
        return any(target.name in names for names in source.exports(draft.read(init)).values())
    return draft.exists(target.path) and target.name in source.defined(draft.read(target.path))


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
    draft.edit(target.path, partial(source.with_function, name=target.name, stub=stub))


def _add_export(draft: _Draft, target: Target) -> None:
    above = Path("lossbook", *target.package[:-1], "__init__.py")
    if not draft.exists(target.init):
        draft.create(target.init, texts.package(target.package[-1]))
        draft.edit(above, partial(source.with_subpackage, name=target.package[-1]))
    # A function that is called like its module is reached through it.
    names = [target.name] if target.name != target.module else []
    draft.edit(target.init, partial(source.with_exports, module=target.module, added=names))
    if len(target.package) > 1:
        draft.edit(above, partial(source.with_exports, module=target.package[-1], added=names))


def _formatted(text: str, path: Path, root: Path) -> str:
    from ruff import find_ruff_bin

    name = ["--stdin-filename", str(root / path), "-"]
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        ruff = [find_ruff_bin(), *command, *name]
        done = subprocess.run(ruff, input=text, capture_output=True, text=True, encoding="utf-8", cwd=root, check=False)
        if done.returncode:
            raise ScaffoldError(f"ruff refuses what would be written to {path}: {done.stderr or done.stdout}")
        text = done.stdout
    return text
