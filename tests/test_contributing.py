"""CONTRIBUTING.md is followed to the letter: its blocks, in order, in a copy of the repository."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lossbook.book.catalog import load_catalog

KEY = "plackett-luce-distillation"
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
# Of the quick tests, `make check` runs those that the example is about: the others are run on the repository itself.
OTHERS = [path.name for path in (ROOT / "tests").iterdir() if path.name not in ("losses", "conftest.py", "golden")]
NARROWED = " ".join([*(f"--ignore=tests/{name}" for name in sorted(OTHERS)), "-k", "'pld or plackett'"])


def test_every_block_is_one_that_the_test_executes() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "toml"}
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_the_commands_and_files_it_names_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"`make ([a-z]+)`", PAGE)) <= set(targets)
    for name in re.findall(r"`((?:lossbook|tests|data|notebooks)/[\w./-]+)`", PAGE):
        assert (ROOT / name).exists() or "plackett-luce" in name, name


def repository_files() -> list[str]:
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in names if name and (ROOT / name).is_file()]


class Copy:
    """A copy of the repository, with an environment of its own that is this one."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "lossbook"
        for name in repository_files():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        bin_ = self.root / ".venv" / "bin"
        bin_.mkdir(parents=True)
        (bin_ / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (bin_ / "python").chmod(0o755)
        (bin_ / "activate").write_text("")
        # What make takes for a finished environment.
        (self.root / ".venv" / ".lossbook").write_text(f"[{self.root}] {sys.executable}\n")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MAKE", "MFLAGS", "GIT_"))}
        kept.pop("LOSSBOOK_ZYGOTE", None)
        self.environment = kept | {
            "PATH": f"{bin_}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            "PYTEST_ADDOPTS": NARROWED,
            "OMP_NUM_THREADS": "1",
            "WORKERS": "1",
            "PRE_COMMIT_HOME": str(folder / "pre-commit"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        self.shell("git init --quiet && git add --all && git commit --quiet --message start")

    def shell(self, script: str) -> str:
        # The example names its own tests; only `make check` is narrowed.
        environment = dict(self.environment)
        if "make check" not in script:
            del environment["PYTEST_ADDOPTS"]
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def write(self, block: str) -> None:
        """Do with a block what its first line says."""
        first, _, body = block.partition("\n")
        name, where = re.fullmatch(r"# (\S+), (.+)", first).groups()
        path = self.root / name
        if where == "the whole file":
            path.write_text(body, encoding="utf-8")
            return
        text = path.read_text(encoding="utf-8")
        if where == "in place of the stub":
            text = with_function(text, body)
        elif where == "in place of the claim":
            stub = next(part for part in text.split("\n\n") if 'id = "to-be-written"' in part)
            text = text.replace(stub, f"{stub.splitlines()[0]}\n{body.rstrip()}")
        elif where.startswith("above "):
            line = start_of(text, where.removeprefix("above "))
            text = with_lines(text, line, line, f"{body.rstrip()}\n\n")
        else:
            text = with_member(text, where.removeprefix("in "), body.strip())
        path.write_text(text, encoding="utf-8")


def with_lines(text: str, start: int, end: int, new: str) -> str:
    lines = text.splitlines()
    return "\n".join([*lines[:start], *new.splitlines(), *lines[end:], ""])


def with_function(text: str, body: str) -> str:
    """The function of the body in place of the one of that name; its imports below the first."""
    imports, _, function = body.partition("\n\n\n")
    (new,) = ast.parse(function).body
    (old,) = (node for node in ast.parse(text).body if getattr(node, "name", None) == new.name)
    assert "NotImplementedError" in ast.unparse(old)
    text = with_lines(text, old.lineno - 1, old.end_lineno, function)
    future = "from __future__ import annotations\n"
    assert text.count(future) == 1
    return text.replace(future, f"{future}\n{imports}\n")


def assignment(text: str, name: str) -> ast.Assign | ast.AnnAssign:
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    (node,) = (n for n in nodes if ast.unparse(n.targets[0] if isinstance(n, ast.Assign) else n.target) == name)
    return node


def start_of(text: str, name: str) -> int:
    """The line at which an assignment begins, with the comments above it."""
    line, lines = assignment(text, name).lineno - 1, text.splitlines()
    while lines[line - 1].startswith("#"):
        line -= 1
    return line


def with_member(text: str, name: str, member: str) -> str:
    """A literal with one more member, or one in place of that of the same key."""
    value = assignment(text, name).value
    key = member.partition(":")[0]
    if isinstance(value, ast.Dict):
        for node, old in zip(value.keys, value.values, strict=True):
            if ast.unparse(node) == ast.unparse(ast.parse(key).body[0].value):
                return with_lines(text, node.lineno - 1, old.end_lineno, f"    {member}")
    before, after = text.splitlines()[: value.end_lineno - 1], text.splitlines()[value.end_lineno - 1 :]
    column = value.end_col_offset - 1
    comma = "," if value.end_lineno == value.lineno else ""
    return "\n".join([*before, f"{after[0][:column].rstrip()}{comma}", member, after[0][column:], *after[1:], ""])


@pytest.mark.slow
@pytest.mark.skipif(load_catalog().entries[KEY].built, reason=f"{KEY} is built: CONTRIBUTING.md needs another example")
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("bash") is None, reason="needs make and bash")
def test_the_worked_example_works_as_it_stands(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    for language, block in BLOCKS:
        if language != "sh":
            copy.write(block)
            continue
        # Asked for twice, it is run once: at the end, with everything in place.
        printed = copy.shell(block.replace("make check\nmake hooks", "make hooks"))
        if "test_golden" in block:
            assert "1 passed" in printed and "skipped" not in printed
    assert copy.shell("git status --porcelain") == ""
    # What else of the repository's tests takes notice of a new loss.
    copy.shell("pytest -q tests/book/test_site_pages.py tests/test_project.py tests/book/test_catalog.py -m 'not slow'")
    copy.shell("SKIP=mypy pre-commit run --all-files")
