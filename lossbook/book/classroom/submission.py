"""From what a student hands in to the notebook that runs.

What runs is the book's notebook with the student's cells put into it, not the student's notebook: the data, the
trained networks and the tests are then the book's, whatever a student has edited or deleted there. A cell of the
student's is one whose text is not in the released notebook; answers are found by nbgrader's id, the other cells keep
their place between the answers, since answers may call what they define. Student and book have separate names
(`kernel`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook.book import _jobs
from lossbook.book._jobs import RunError
from lossbook.book.classroom.release import Exercise, grade_id, student_version

if TYPE_CHECKING:
    from nbformat import NotebookNode

_LARGEST_FILE = 50 << 20
_GUARD = '__import__("lossbook.book.classroom.kernel", fromlist=["_"])'


@dataclass(frozen=True)
class Mark:
    """What a student gets for a test: points out of `of`, and what was wrong; points are None if it was not judged."""

    student: str
    notebook: str
    exercise: str
    points: float | None
    of: float
    message: str = ""


@dataclass
class Chapter:
    """A notebook of the book, and what its student's version looks like."""

    rel: Path
    nb: NotebookNode
    exercises: list[Exercise]
    answers: dict[str, Exercise] = field(init=False)
    tests: dict[str, Exercise] = field(init=False)
    points: dict[str, float] = field(init=False)  # of each test
    released: set[str] = field(init=False)  # texts of code cells; who hands in only these has solved nothing

    def __post_init__(self) -> None:
        code = [cell for cell in self.nb.cells if cell.cell_type == "code"]
        self.answers = {exercise.answer: exercise for exercise in self.exercises}
        self.tests = {test: exercise for exercise in self.exercises for test in exercise.tests}
        self.points = {grade_id(c): float(c.metadata.nbgrader.points) for c in code if grade_id(c) in self.tests}
        self.released = {c.source.strip() for c in student_version(self.nb).cells if c.cell_type == "code"}
        # Who hands in a copy of the teacher's notebook has edited no cell of the book's either.
        self.released |= {cell.source.strip() for cell in code if not grade_id(cell)} | {""}


@dataclass
class Submission:
    """A notebook of a student: its code cells as (grade_id, text), or why there are none."""

    student: str
    chapter: Chapter
    path: Path
    cells: list[tuple[str, str]] | str
    judged: dict[str, tuple[float, str]] = field(default_factory=dict)  # points and message of each test
    error: str | None = None
    note: str = ""  # on a cell that was left out although no exercise asks for it

    @property
    def marks(self) -> list[Mark]:
        """One for each test; if the notebook could not be judged, without points."""
        marks = []
        for test, exercise in self.chapter.tests.items():
            name = f"{exercise.number}. {exercise.title}"
            points, message = self.judged.get(test, (None, self.error or "not judged"))
            of = self.chapter.points[test]
            marks.append(Mark(self.student, self.chapter.rel.as_posix(), name, points, of, plain(message)))
        return marks

    def fail(self, tests: Collection[str], why: str) -> None:
        for test in tests:
            self.judged.setdefault(test, (0.0, why))


def plain(text: str) -> str:
    """One short line without what a terminal or a spreadsheet would take for a command."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text[:2000])
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = f"'{text}" if text[:1] in tuple("=+-@") else text
    return text if len(text) <= 300 else f"{text[:299]}…"


def students(folder: Path, book: Collection[Path]) -> dict[str, Path]:
    """The students' folders by name; RunError where there are none, or two names look the same."""
    names = {rel.name for rel in book}
    if any((folder / rel).exists() for rel in book) or any(path.name in names for path in folder.iterdir()):
        return {_name(folder.resolve()): folder}
    homes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not homes:
        raise RunError(f"{folder} holds neither notebooks of the book nor a folder for each student")
    found: dict[str, Path] = {}
    for home in homes:
        if found.setdefault(_name(home), home) != home:
            raise RunError(f"two folders in {folder} would both be the student {_name(home)!r}: rename one")
    return found


def _name(home: Path) -> str:
    # A name that is not UTF-8 keeps its bytes to be seen: without them it could be the same as another's.
    return plain(os.fsencode(home.name).decode(errors="backslashreplace"))


def locate(home: Path, rel: Path) -> list[Path]:
    """Where a student has put a notebook: as released, or wherever files of that name are."""
    if os.path.lexists(home / rel):
        return [home / rel]
    same = []
    for place, folders, files in os.walk(home, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        same += [Path(place) / name for name in files if name == rel.name]
    return same


def _raise(error: OSError) -> None:
    raise error


def read(paths: list[Path], home: Path) -> list[tuple[str, str]] | str:
    """The code cells of the one notebook among paths, or the sentence why there are none."""
    from nbformat import convert, reader

    if not paths:
        return "no notebook was handed in"
    if len(paths) > 1:
        return f"{len(paths)} files have the notebook's name, and none is where it was released"
    (path,) = paths
    if home.is_symlink() or not path.resolve().is_relative_to(home.resolve()):
        return "the notebook is a link to something outside of the student's folder"
    try:
        # Not a pipe or a device either: reading one may never end.
        if not path.is_file():
            return "the notebook is not a file"
        if path.stat().st_size > _LARGEST_FILE:
            return f"the file is larger than {_LARGEST_FILE >> 20} MB: clear the outputs"
        if not (text := path.read_bytes()).strip():
            return "the file is empty"
        nb = reader.reads(text.decode())
        if nb.get("nbformat", 0) < 4:
            nb = convert(nb, 4)
        return [
            (grade_id(cell), source if isinstance(source := cell["source"], str) else "".join(source))
            for cell in nb["cells"]
            if cell["cell_type"] == "code"
        ]
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    except Exception as error:
        return f"the file is not a notebook: {_jobs.first_line(error)}"


def compose(
    chapter: Chapter, cells: list[tuple[str, str]], left_out: Collection[int | str], memory: float
) -> list[Any]:
    """The cells to run, each with what it is in metadata.role: guard, book, student or test.

    Cells of the student's have their position as metadata.key, and an answer its grade_id; a test has its own.
    left_out: keys of cells that ended a kernel.
    """
    from nbformat import v4

    slots = [name for cell in chapter.nb.cells if (name := grade_id(cell)) in chapter.answers.keys() | chapter.tests]
    # Of cells with the same id the last one counts, as in nbgrader.
    position = {name: i for i, (name, _) in enumerate(cells) if name in slots}
    own = [
        i
        for i, (name, source) in enumerate(cells)
        if i not in position.values() and source.strip() not in chapter.released and name not in chapter.tests
    ]
    running: list[Any] = []
    names: list[str] = []  # which the answers so far were to define
    theirs = False

    def add(role: str, source: str, key: int | str = "", **metadata: Any) -> None:
        if key not in left_out:
            running.append(v4.new_code_cell(source, metadata={"role": role, "key": key, **metadata}))

    def enter(student: bool) -> None:
        nonlocal theirs
        if student != theirs:
            add("guard", f"{_GUARD}.student()" if student else f"{_GUARD}.book({names!r})")
        theirs = student

    add("guard", f"{_GUARD}.start({int(memory * 2**30)})")
    for cell in chapter.nb.cells:
        name = grade_id(cell)
        if name in slots:
            # Before it come those of their own cells that stand above its place, or above the next that they have.
            end = next((position[slot] for slot in slots[slots.index(name) :] if slot in position), len(cells))
            while own and own[0] < end:
                enter(True)
                add("student", cells[own[0]][1], own.pop(0))
        if name in chapter.answers:
            enter(True)
            names += chapter.answers[name].names
            if name in position:
                add("student", cells[position[name]][1], position[name], answer=name)
        elif cell.cell_type == "code":
            enter(False)
            add("test" if name in chapter.tests else "book", cell.source, name, nbgrader=cell.metadata.get("nbgrader"))
        if name == slots[-1]:
            break
    return running
