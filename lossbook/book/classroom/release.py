"""The classroom: the book's exercises, and `lossbook release`, which makes the notebooks that students get.

An exercise is a Markdown cell with its number and bold title, an answer cell whose solution stands between
`### BEGIN SOLUTION` and `### END SOLUTION`, and a test cell with a hidden part between `### BEGIN HIDDEN TESTS` and
`### END HIDDEN TESTS`; both code cells carry nbgrader's metadata. nbgrader's own preprocessors make the student's
version of it.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import symtable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lossbook._files import write_atomically
from lossbook.book import _jobs
from lossbook.book._jobs import RunError

if TYPE_CHECKING:
    from nbformat import NotebookNode

_RECORD = ".lossbook-release.json"
_TITLE = re.compile(r"\*\*(\d+)\.\s+(.+?)\*\*", re.DOTALL)
_SOLUTION, _HIDDEN = "SOLUTION", "HIDDEN TESTS"

_README = """# Exercises

{contents}

## Open them

Install the book once, as its README says. Then, in this folder, start JupyterLab from the book's environment and open a
notebook:

    PATH/TO/THE/BOOK/.venv/bin/jupyter lab

Run the notebook's cells from the top: the exercises at the end use what the cells above them have made. That takes
about half a minute.

## Solve them

- Each exercise is a cell that ends in `raise NotImplementedError(...)`. Put your answer in place of that line. Keep the
  name of the function, and what it takes.
- The cell below it tests the answer and says what is wrong. It cannot be edited; the marks come from this test and from
  a part of it that you do not see.
- Cells of your own may stand anywhere above the test that needs them. What they define is there for your answers. They
  do not change what the book's cells and the tests see.
- Everything has to be in the notebook: other files are not handed in. Test it with *Kernel > Restart Kernel and Run All
  Cells*, one exercise after the other.

## Hand them in

Save the notebook under the name it has, in the folder it is in, and hand in that. You may leave out notebooks in which
you have changed nothing.
"""


@dataclass(frozen=True)
class Exercise:
    """A task of a notebook.

    number and title are the task's; answer and tests are nbgrader's ids of its cells; names are what the book's own
    answer cell defines.
    """

    number: int
    title: str
    answer: str
    tests: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def task(self) -> str:
        return f"Exercise {self.number}: {self.title}"


@dataclass(frozen=True)
class Released:
    """What a release wrote: notebooks, their exercises, and the changed files that it put aside."""

    notebooks: int
    exercises: int
    kept: list[Path]


def release(
    paths: Sequence[str | Path] | None = None,
    *,
    out: str | Path,
    root: str | Path = "notebooks",
    force: bool = False,
) -> Released:
    """Write the student's version of notebooks to `out`, under the same relative paths as in `root`.

    Solutions become stubs that raise NotImplementedError with the task, hidden tests and all outputs are removed, the
    exercises' cells are locked as nbgrader locks them. Outputs go because the book asks for a guess before each figure,
    and because what is handed in again should be small. Nothing is written unless all notebooks can be released.

    Args:
        paths: notebooks, or folders of them; None means all of root.
        out: a new or empty folder, or one of an earlier release. What that release wrote is replaced; a file that has
            been changed since is not.
        force: release into a folder that holds other files, and over changed ones; of each of these a copy is kept
            beside it, as `NAME.kept-1.ipynb`.

    Raises:
        RunError: a notebook that cannot be released, with its exercise; a folder that holds other people's files.
    """
    root, out = Path(root), Path(out).resolve()
    if out == root.resolve() or root.resolve() in out.parents:
        raise RunError(f"{out} is in the book itself: choose a folder outside of {root}")
    book = read_book(paths, root)
    written = {rel.as_posix(): _jobs._text(_student_version(nb, found)) for rel, (nb, found) in book.items()}
    record = _read_record(out)
    names = sorted({name for name in {*record, *written} if name.endswith(".ipynb")})
    written["README.md"] = _README.format(contents="\n".join(f"- [{name}]({name})" for name in names))
    changed = _changed(out, written, record, force)
    kept = []
    with _jobs.locked(out), _jobs.writing(out):
        for name in changed:
            kept.append(_put_aside(out / name))
        # Before the notebooks: what a release that was stopped has written is then known to the next one.
        record |= {name: _jobs.sha256(text) for name, text in written.items()}
        write_atomically(out / _RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
        for name, text in written.items():
            write_atomically(out / name, text)
    return Released(len(book), sum(len(found) for _, found in book.values()), kept)


def read_book(paths: Sequence[str | Path] | None, root: str | Path) -> dict[Path, tuple[NotebookNode, list[Exercise]]]:
    """The teacher's notebooks with their exercises, by path relative to root; RunError names all that are wrong."""
    import nbformat

    book, wrong = {}, []
    for path, rel in _jobs.find(paths, Path(root)).items():
        try:
            nb = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:
            raise RunError(f"{path} is not a notebook: {_jobs.first_line(error)}") from error
        found, problems = _exercises(nb)
        wrong += [f"{rel}: {problem}" for problem in problems]
        book[rel] = nb, found
    if wrong:
        raise RunError("\n  ".join(["these exercises have to be repaired first:", *wrong]))
    return book


def student_version(nb: NotebookNode) -> NotebookNode:
    """The notebook as students get it. RunError names an exercise that is not as the module says."""
    found, problems = _exercises(nb)
    if problems:
        raise RunError("; ".join(problems))
    return _student_version(nb, found)


def _student_version(nb: NotebookNode, exercises: list[Exercise]) -> NotebookNode:
    from nbgrader import preprocessors as nbgrader

    tasks = {exercise.answer: exercise.task for exercise in exercises}

    class Stubs(nbgrader.ClearSolutions):
        def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> Any:
            task = tasks.get(grade_id(cell), "")
            self.code_stub = {"python": f"raise NotImplementedError({json.dumps(task, ensure_ascii=False)})"}
            return super().preprocess_cell(cell, resources, index)

    # As nbgrader's generate_assignment does, without its database.
    steps = [
        nbgrader.LockCells,
        Stubs,
        nbgrader.ClearOutput,
        nbgrader.ClearHiddenTests,
        nbgrader.ClearMarkScheme,
        nbgrader.ComputeChecksums,
        nbgrader.CheckCellMetadata,
    ]
    nb, resources = _jobs.clean(nb), cast(Any, {})
    for step in steps:
        nb, resources = step(log=quiet()).preprocess(nb, resources)
    return nb


def _exercises(nb: NotebookNode) -> tuple[list[Exercise], list[str]]:
    """A notebook's exercises, and what is wrong with them."""
    answers: dict[str, NotebookNode] = {}
    tests: dict[str, list[str]] = {}
    titles: dict[str, tuple[int, str]] = {}
    problems: list[str] = []
    seen: set[str] = set()
    title: tuple[int, str] | None = None

    def wrong(what: str) -> None:
        problems.append(f"exercise {f'{title[0]} ({title[1]})' if title else '?'}, cell {name!r}: {what}")

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for number, words in _TITLE.findall(cell.source):
                title = int(number), " ".join(words.split()).rstrip(".")
        metadata, name = cell.metadata.get("nbgrader", {}), grade_id(cell)
        solution, grade = metadata.get("solution", False), metadata.get("grade", False)
        parts = {marker: _balance(cell.source, marker) for marker in (_SOLUTION, _HIDDEN)}
        for marker, part in parts.items():
            if part is None:
                wrong(f"### BEGIN {marker} and ### END {marker} do not alternate")
        if not (solution or grade):
            for marker in (marker for marker, part in parts.items() if part):
                wrong(f"it has a part BEGIN {marker}, but no nbgrader metadata")
            continue
        if name in seen:
            wrong("its grade_id is used twice")
        seen.add(name)
        if (solution and grade) or cell.cell_type != "code":
            wrong("it is to be graded by hand, which this book does not do: make it an answer and a test")
        elif solution:
            if title is None or title in titles.values():
                wrong("no title stands before it; the task begins with one, such as **2. The loudest example.**")
            if parts[_SOLUTION] == 0:
                wrong("it has no part ### BEGIN SOLUTION")
            answers[name], tests[name], titles[name] = cell, [], title or (0, "")
        else:
            if parts[_HIDDEN] == 0:
                wrong("its test has no hidden part ### BEGIN HIDDEN TESTS")
            if not isinstance(metadata.get("points"), int | float):
                wrong("it gives no points")
            if answers:
                tests[list(answers)[-1]].append(name)
            else:
                wrong("it tests no answer")
    exercises = []
    for name, cell in answers.items():
        title = titles[name]
        if not tests[name]:
            wrong("it has no test")
        try:
            names = _names(cell.source)
        except SyntaxError as error:
            wrong(f"it is not Python: {error.msg}")
            continue
        exercises.append(Exercise(*titles[name], name, tuple(tests[name]), names))
    if not problems:
        problems = _unreadable(nb, exercises)
    return exercises, problems


def _balance(source: str, marker: str) -> int | None:
    """How many parts BEGIN … END there are; None if they are not closed, or nested."""
    ends = [line for line in source.split("\n") if f"BEGIN {marker}" in line or f"END {marker}" in line]
    wanted = [f"BEGIN {marker}", f"END {marker}"] * (len(ends) // 2)
    alternate = len(ends) % 2 == 0 and all(word in line for word, line in zip(wanted, ends, strict=True))
    return len(ends) // 2 if alternate else None


def _names(source: str) -> tuple[str, ...]:
    """What a cell binds at its top level."""
    symbols = symtable.symtable(source, "<cell>", "exec").get_symbols()
    return tuple(symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported())


def _unreadable(nb: NotebookNode, exercises: list[Exercise]) -> list[str]:
    """Exercises of which a student would get a cell that is not Python."""
    cells = {grade_id(cell): cell for cell in _student_version(nb, exercises).cells if grade_id(cell)}
    problems = []
    for exercise in exercises:
        for name in (exercise.answer, *exercise.tests):
            try:
                ast.parse(cells[name].source)
            except SyntaxError as error:
                where = f"exercise {exercise.number} ({exercise.title}), cell {name!r}"
                problems.append(f"{where}: what a student gets is not Python ({error.msg}); move the markers")
    return problems


def grade_id(cell: NotebookNode) -> str:
    """nbgrader's id of a cell, or an empty string; of a student's cell too, whatever its metadata are."""
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    return name if isinstance(name, str) else ""


def quiet() -> logging.Logger:
    """For nbgrader's parts, which log what is an error or a mark here."""
    logger = logging.getLogger("lossbook.nbgrader")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _read_record(out: Path) -> dict[str, str]:
    """The files of earlier releases in this folder with their hashes; empty if there was none."""
    try:
        record = json.loads((out / _RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _changed(out: Path, written: dict[str, str], record: dict[str, str], force: bool) -> list[str]:
    """The files there that are not a release's own, and that one would replace."""
    if not out.exists():
        return []
    if not out.is_dir():
        raise RunError(f"{out} is a file: choose a folder")
    if not record and not force and any(path.name != ".lock" for path in out.iterdir()):
        raise RunError(f"{out} holds other files: choose an empty folder, or keep them beside the release with --force")
    changed = []
    for name, text in written.items():
        path = out / name
        if path.is_dir():
            raise RunError(f"{path} is a folder: choose another --out")
        if path.exists() or path.is_symlink():
            try:
                found = _jobs.sha256(path.read_bytes())
            except OSError:
                found = ""
            if found not in (record.get(name), _jobs.sha256(text)):
                changed.append(name)
    if changed and not force:
        raise RunError(
            f"{', '.join(changed)} in {out} changed since the release, and may be somebody's work: move it away, "
            "release to another folder, or put it aside with --force"
        )
    return changed


def _put_aside(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.stem}.kept-{number}{path.suffix}")).exists() or kept.is_symlink():
        number += 1
    return path.rename(kept)
