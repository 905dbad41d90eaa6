"""What holds the project together: versions, commands, licences, and that every committed notebook was run."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if not any(p.startswith(".") for p in path.parts)
)


def pinned(lines: list[str]) -> dict[str, str]:
    pins = {}
    for line in lines:
        name, _, version = line.partition("==")
        pins[canonicalize_name(name)] = version
    return pins


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    return pinned(lines)


@pytest.fixture(scope="module")
def direct() -> set[str]:
    listed = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return {canonicalize_name(Requirement(line).name) for line in listed}


def test_conda_users_get_the_same_versions(constraints, direct):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (listed,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert listed[-1] == "-e ."
    assert pinned(listed[:-1]) == {name: constraints[name] for name in direct}
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


# What another platform (macOS, Windows) or another Python (papermill on 3.12) needs.
ELSEWHERE = {"appnope", "colorama", "pywinpty", "overrides", "aiohttp", "aiohappyeyeballs", "aiosignal", "frozenlist"}
ELSEWHERE |= {"multidict", "propcache", "yarl"}


def needed_here(direct: set[str]) -> set[str]:
    """Every package that lossbook with all its extras needs on this platform, followed through the installed ones.

    What torch brings for a GPU is left out: torch pins it itself, and it differs from one build of torch to the other.
    """
    waiting = [(name, "") for name in direct]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in importlib.metadata.distribution(name).requires or []:
            requirement = Requirement(line)
            needed = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            if name == "torch" and re.match("nvidia-|cuda-|triton", needed):
                continue
            waiting += [(needed, ""), *((needed, inner) for inner in requirement.extras)]
    return {name for name, _ in seen}


def test_every_package_is_pinned_to_the_version_installed(constraints, direct):
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in needed_here(direct)}
    assert installed == {name: constraints.get(name) for name in installed}
    assert constraints.keys() - installed.keys() <= ELSEWHERE


def test_every_import_is_declared(direct):
    homes = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in (ROOT / "lossbook").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in (name.partition(".")[0] for name in names):
                if name == "lossbook" or name in sys.stdlib_module_names:
                    continue
                if direct.isdisjoint(canonicalize_name(home) for home in homes.get(name, [name])):
                    undeclared[name] = path.relative_to(ROOT).as_posix()
    assert undeclared == {}


def test_the_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", readme, flags=re.MULTILINE))
    assert {"book", "test", "lab", "check", "bench"} <= named <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_files_that_pages_name_exist():
    for page in ("README.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert "://" in target or (ROOT / target).exists(), f"{page} names {target}"


def test_the_licences_are_there():
    assert PROJECT["license"] == "MIT AND CC-BY-4.0"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    text = (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in text
    for third_party in (ROOT / "notebooks" / "_static").glob("*/*.js"):
        assert (third_party.parent / "LICENSE").is_file()


def project_files() -> list[Path]:
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


# Paths of somebody's machine, a kernel's temporary files, and the addresses that packages came from.
MACHINE = re.compile(
    r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp/build|tmp/ipykernel\w*)/"
    r"|\b(?:files\.pythonhosted|pypi|registry\.npmjs|download\.pytorch|deb\.debian)\.org\b"
)


def test_nothing_names_the_machine_it_was_written_on():
    found = []
    for path in project_files():
        if "mathjax" in path.parts or path.suffix in {".webp", ".png", ".npz", ".gz", ".zip"}:
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            # Figures are base64, in which a slash and a word can stand by chance.
            text = re.sub(r"[A-Za-z0-9+/=]{200,}", "", text)
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE.finditer(text)]
    assert found == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def test_a_committed_notebook_was_run_in_order(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
    assert tags.count("parameters") == 1
    assert "injected-parameters" not in tags
    counts = [cell["execution_count"] for cell in code if "".join(cell["source"]).strip()]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def test_the_headings_of_a_notebook_are_a_table_of_contents(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^(#+) +(.+?) *$", text, flags=re.MULTILINE)
    levels, titles = [len(marks) for marks, _ in headings], [title for _, title in headings]
    assert levels[0] == 1 and levels.count(1) == 1, "one title, and it comes first"
    assert all(below <= above + 1 for above, below in pairwise(levels)), f"a level is left out: {headings}"
    assert sorted(set(titles)) == sorted(titles), "two headings are the same"
    assert not [title for title in titles if "$" in title], "JupyterLab's contents do not find a heading with a formula"


def globals_read(table: symtable.SymbolTable) -> set[str]:
    """The global names that a function, and those within it, read."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(globals_read, table.get_children()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def test_what_a_slider_draws_is_not_bound_anew_below_it(path):
    """The function given to `viz.play` runs again at every move, with the names as the last cell has left them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    bound, functions, sliders = [], {}, []  # names of each cell; what each function reads; cells, and what they read
    for i, source in enumerate("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        table = symtable.symtable(source, "cell", "exec")
        bound.append({symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()})
        functions |= {child.get_name(): globals_read(child) for child in table.get_children()}
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "viz.play":
                read = {node.id for node in ast.walk(call.args[0]) if isinstance(node, ast.Name)}
                while more := set().union(*(functions.get(name, ()) for name in read)) - read:
                    read |= more
                sliders.append((i, read))
    anew = [(i, j, read & bound[j]) for i, read in sliders for j in range(i + 1, len(bound)) if read & bound[j]]
    assert anew == [], "(code cell of the slider, code cell that binds anew, names)"


FAKE_PYTHON = """#!/bin/sh
echo "$1 $2" >> "$CALLS"
case "$1 $2" in
  "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip") exit "${PIP:-0}" ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
class TestMakefile:
    @pytest.fixture
    def make(self, tmp_path):
        """Run make in a folder with a space in its name, with a Python that only notes how it was called."""
        python, calls = tmp_path / "python", tmp_path / "calls"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        folder = tmp_path / "a book"
        folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)

        def run(*words: str, where: Path = folder, **variables: str):
            calls.write_text("")
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
            done = subprocess.run(
                ["make", *words, f"PYTHON={variables.pop('PYTHON', python)}"],
                cwd=where,
                env={**kept, "CALLS": str(calls), **variables},
                capture_output=True,
                text=True,
                check=False,
            )
            return done, [line for line in calls.read_text().splitlines() if line in ("-m venv", "-m pip")]

        run.folder = folder
        return run

    def test_the_environment_is_made_once_and_installed_again_when_the_versions_change(self, make):
        done, calls = make("check")
        assert done.returncode == 0, done.stderr
        assert calls == ["-m venv", "-m pip"]
        assert make("check")[1] == []
        later = (make.folder / ".venv" / ".lossbook").stat().st_mtime + 10
        os.utime(make.folder / "constraints.txt", (later, later))
        assert make("check")[1] == ["-m pip"]

    def test_an_install_that_fails_is_not_taken_for_an_environment(self, make):
        done, _ = make("check", PIP="1")
        assert done.returncode != 0
        assert not (make.folder / ".venv" / ".lossbook").exists()
        assert make("check")[1] == ["-m venv", "-m pip"]

    def test_a_folder_that_moved_gets_a_new_environment(self, make):
        make("check")
        moved = make.folder.rename(make.folder.with_name("moved"))
        assert make("check", where=moved)[1] == ["-m venv", "-m pip"]

    def test_a_python_that_does_not_fit_is_refused_by_name(self, make):
        done, calls = make("check", PYTHON="false")
        assert done.returncode != 0
        assert calls == []
        assert "lossbook needs Python 3.11, 3.12 or 3.13, and false is not one of them" in done.stderr
