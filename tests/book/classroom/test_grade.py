"""`lossbook grade`: what students hand in, good, wrong, broken and hostile, with real kernels."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode, v4

from lossbook.book import cli
from lossbook.book.classroom.grade import grade, totals
from lossbook.book.classroom.release import read_book, release, student_version
from lossbook.book.classroom.submission import Mark
from lossbook.book.runner import Interrupted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[3]
TIMEOUT = 6.0
# In an answer: the folder to which it writes the ids of the processes that it starts.
PIDS = "@PIDS@"


def lesson(*exercises: tuple[str, str, str], start: str = "") -> NotebookNode:
    """A teacher's notebook: of each exercise the answer, its visible and its hidden test; the points are 1, 2, …"""
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell(start or "from lossbook import losses\nfactor = 2")]
    for number, (solution, visible, hidden) in enumerate(exercises, start=1):
        name = f"x-{number}"
        header, _, body = solution.partition("\n")
        common = {"schema_version": 3, "task": False}
        cells += [
            v4.new_markdown_cell(f"**{number}. Task {number}.** Write it."),
            v4.new_code_cell(
                f"{header}\n    ### BEGIN SOLUTION\n{body}\n    ### END SOLUTION",
                metadata={"nbgrader": {"grade": False, "grade_id": name, "locked": False, "solution": True, **common}},
            ),
            v4.new_code_cell(
                f"{visible}\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS",
                metadata={
                    "nbgrader": {"grade": True, "grade_id": f"{name}-test", "locked": True, "solution": False}
                    | {"points": number}
                    | common
                },
            ),
        ]
    return v4.new_notebook(cells=cells)


TRIPLE = (
    "def triple(x):\n    return 3 * x",
    "assert triple(1) == 3, 'three'",
    "assert abs(triple(-2) + 6) < 1e-9, 'minus six'",
)
DOUBLE = (
    "def double(x):\n    return factor * x",
    "v_ = double(1)\nassert v_ == factor, 'twice one is two'",
    "assert double(5) == 10, 'twice five is ten'",
)
LAST = (
    "def last(x):\n    return x[-1]",
    "assert last([1, 2]) == 2, 'the last is two'",
    "assert last('ab') == 'b', 'text'",
)
LESSON = (DOUBLE, TRIPLE, LAST)
RIGHT = ["def double(x):\n    return x + x", "def triple(x):\n    return x + x + x", "def last(x):\n    return x[-1]"]


def submission(*answers: str | None, **changes: Any) -> NotebookNode:
    """The released lesson with these answers in place of its stubs; None leaves one."""
    nb = student_version(lesson(*LESSON))
    for number, text in enumerate(answers, start=1):
        if text is not None:
            answer_cell(nb, number).source = text
    return nb


def answer_cell(nb: NotebookNode, number: int) -> NotebookNode:
    return cell_of(nb, f"x-{number}")


def cell_of(nb: NotebookNode, name: str) -> NotebookNode:
    return next(cell for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == name)


def before(nb: NotebookNode, name: str, source: str) -> NotebookNode:
    nb.cells.insert(nb.cells.index(cell_of(nb, name)), v4.new_code_cell(source))
    return nb


def without(nb: NotebookNode, *names: str) -> NotebookNode:
    gone = [cell_of(nb, name) for name in names]
    nb.cells = [cell for cell in nb.cells if cell not in gone]
    return nb


def second(text: str) -> NotebookNode:
    """The second of three answers is this; the others are right."""
    return submission(RIGHT[0], text, RIGHT[2])


# Each goes on when what it has started has written down its id.
FORK = """import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    open(f"@PIDS@/{os.getpid()}", "w").close()
    os.write(writer, b"+")
    time.sleep(600)
    os._exit(0)
os.read(reader, 1)
"""
DAEMON = """import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(f"@PIDS@/{os.getpid()}", "w").close()
        os.write(writer, b"+")
        time.sleep(600)
    os._exit(0)
os.read(reader, 1)
"""
PROCESS = """import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env={})
open(f"@PIDS@/{child.pid}", "w").close()
"""
TOUCH = (
    "import pathlib, os\n"
    "for name in ('work.ipynb', 'x.csv'):\n"
    "    pathlib.Path(name).write_text('x')\n"
    "(pathlib.Path.home() / '.profile').write_text('x')\n"
    "os.mkdir('locked'); os.chmod('locked', 0)\n"
)


def renamed(nb: NotebookNode) -> NotebookNode:
    """As after a round through a service that keeps no metadata and no ids."""
    for cell in nb.cells:
        cell.metadata.clear()
        cell.id = os.urandom(4).hex()
    return nb


def duplicated(nb: NotebookNode) -> NotebookNode:
    cell = nbformat.from_dict(answer_cell(nb, 2))
    cell.source, cell.id = "def triple(x):\n    return 0", "copy"
    nb.cells.insert(nb.cells.index(answer_cell(nb, 2)), cell)
    return nb


def shuffled(nb: NotebookNode) -> NotebookNode:
    nb.cells = [*nb.cells[:2], *nb.cells[-3:], *nb.cells[2:-3]]
    return nb


def edited_tests(nb: NotebookNode) -> NotebookNode:
    for cell in nb.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.source = "pass"
            cell.metadata.nbgrader.points = 100
    return nb


# A student's name: what is handed in, the points for the three exercises (1, 2 and 3 if right), and parts of messages.
GOOD = [1.0, 2.0, 3.0]
CASES: dict[str, tuple[NotebookNode | bytes, list[float], list[str]]] = {
    "teacher": (lesson(*LESSON), GOOD, ["", "", ""]),
    "right": (submission(*RIGHT), GOOD, ["", "", ""]),
    "as-released": (submission(), [0, 0, 0], ["not solved"] * 3),
    "one-answer": (submission(None, RIGHT[1]), [0, 2, 0], ["not solved", "", "not solved"]),
    "wrong": (second("def triple(x):\n    return x"), [1, 0, 3], ["", "three", ""]),
    "wrong-in-the-hidden-test": (second("def triple(x):\n    return abs(3 * x)"), [1, 0, 3], ["", "minus six", ""]),
    "another-error": (second("def triple(x):\n    return 3 / 0"), [1, 0, 3], ["", "ZeroDivisionError: division", ""]),
    "syntax-error": (second("def triple(x:\n    return 3"), [1, 0, 3], ["", "the answer cell: SyntaxError", ""]),
    "another-name": (second("def treble(x):\n    return 3 * x"), [1, 0, 3], ["", "'triple' is not defined", ""]),
    "warns": (second("def triple(x):\n    import warnings; warnings.warn('hm'); return 3 * x"), GOOD, ["", "", ""]),
    # Cells of their own
    "helper": (before(second("def triple(x):\n    return h(x)"), "x-2", "def h(x):\n    return 3 * x"), GOOD, [""] * 3),
    "helper-after": (
        before(second("def triple(x):\n    return h(x)"), "x-2-test", "def h(x):\n    return 3 * x"), GOOD, [""] * 3
    ),
    "helper-named-as-the-books": (
        before(second("def triple(x):\n    return losses(x)"), "x-2", "losses = lambda x: 3 * x\nfactor = 7"),
        GOOD, [""] * 3,
    ),
    "uses-an-earlier-answer": (second("def triple(x):\n    return double(x) + x + v_ - 2"), GOOD, [""] * 3),
    "failing-cell": (before(submission(*RIGHT), "x-1", "1 / 0"), GOOD, [""] * 3),
    "answer-in-another-cell": (before(second(""), "x-2-test", RIGHT[1]), GOOD, [""] * 3),
    "no-metadata": (renamed(submission(*RIGHT)), GOOD, [""] * 3),
    "duplicated-cell": (duplicated(submission(*RIGHT)), GOOD, [""] * 3),
    "another-order": (shuffled(submission(*RIGHT)), GOOD, [""] * 3),
    "answer-deleted": (without(submission(*RIGHT), "x-2"), [1, 0, 3], ["", "NameError", ""]),
    "answer-as-text": (second("def triple(x):\n    return 3"), [1, 0, 3], ["", "NameError", ""]),
    # Tests that are not what they were
    "tests-deleted": (without(second("x = 1"), "x-1-test", "x-2-test", "x-3-test"), [1, 0, 3], ["", "NameError", ""]),
    "tests-edited": (edited_tests(second("def triple(x):\n    return 0")), [1, 0, 3], ["", "three", ""]),
    "book-edited": (submission("def double(x):\n    return 100 * x", *RIGHT[1:]), [0, 2, 3], ["twice one", "", ""]),
    "redefines": (submission("factor = 100\ndef double(x):\n    return 100 * x"), [0, 0, 0], ["twice one", "", ""]),
    "patches": (
        second("import builtins\nbuiltins.abs = lambda x: 0\ndef triple(x):\n    return 3"),
        [1, 0, 3], ["", "minus six", ""],
    ),
    "drops-asserts": (
        second(
            "import ast\nclass Drop(ast.NodeTransformer):\n    def visit_Assert(self, node): return ast.Pass()\n"
            "get_ipython().ast_transformers.append(Drop())\ntriple = len"
        ),
        [1, 0, 3], ["", "TypeError", ""],
    ),
    "patches-in-a-test": (
        submission(
            "def double(x):\n    import builtins\n    builtins.abs = lambda x: 0\n    return x + x",
            "def triple(x):\n    return 3", RIGHT[2],
        ),
        [1, 0, 3], ["", "minus six", ""],
    ),
    "claims-points": (
        second("def triple(x):\n    get_ipython().displayhook(2)\n    return 0"), [1, 0, 3], ["", "three", ""]
    ),
    # Cells that do not end
    "loops-when-called": (second("def triple(x):\n    while True: pass"), [1, 0, 3], ["", "longer than 6 s", ""]),
    "loops-at-once": (second("while True: pass"), [1, 0, 3], ["", "in the answer, a cell took longer", ""]),
    "cannot-be-interrupted": (
        second("def triple(x):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass"),
        [1, 0, 3], ["", "longer than 6 s", ""],
    ),
    "own-cell-loops": (before(submission(*RIGHT), "x-2", "while True: pass"), GOOD, [""] * 3),
    "waits-for-input": (second("def triple(x):\n    return int(input())"), [1, 0, 3], ["", "StdinNotImplemented", ""]),
    # Kernels that end
    "exit": (second("def triple(x):\n    exit()"), [1, 0, 3], ["", "SystemExit", ""]),
    "sys-exit": (second("import sys\nsys.exit(0)"), [1, 0, 3], ["", "SystemExit", ""]),
    "os-exit": (second("import os\ndef triple(x):\n    os._exit(0)"), [1, 0, 3], ["", "ended by a cell", ""]),
    "kills-itself": (second("import os\nos.kill(os.getpid(), 9)"), [1, 0, 3], ["", "in the answer, the kernel", ""]),
    "own-cell-exits": (before(submission(*RIGHT), "x-2", "import os\nos._exit(1)"), GOOD, [""] * 3),
    "helper-exits": (
        before(second("def triple(x):\n    return h(x)"), "x-2", "import os\nos._exit(1)"),
        [1, 0, 3], ["", "'h' is not defined; another cell of the student's was left out: the kernel was ended", ""],
    ),
    # Cells that take much
    "prints-a-million": (second("def triple(x):\n    print('x' * 1_000_000)\n    return 3 * x"), GOOD, [""] * 3),
    "prints-for-ever": (
        second("def triple(x):\n    while True: print('x' * 10_000)"), [1, 0, 3], ["", "wrote more than 10 MB", ""]
    ),
    "much-memory": (second("def triple(x):\n    return bytearray(3 << 30)"), [1, 0, 3], ["", "MemoryError", ""]),
    "sends-nonsense": (
        second(
            "def triple(x):\n    k = get_ipython().kernel\n"
            "    k.session.send(k.iopub_socket, 'stream', content={}, parent=k.get_parent())\n    return 3 * x"
        ),
        [1, 0, 3], ["", "the kernel's messages cannot be read (KeyError: 'name')", ""],
    ),
    # Processes and files
    "forks": (second(FORK + RIGHT[1]), GOOD, [""] * 3),
    "daemon": (second(DAEMON + RIGHT[1]), GOOD, [""] * 3),
    "process": (second(PROCESS + RIGHT[1]), GOOD, [""] * 3),
    "writes-files": (second(TOUCH + RIGHT[1]), GOOD, [""] * 3),
    "changes-folder": (second("import os\nos.chdir('/')\n" + RIGHT[1]), GOOD, [""] * 3),
    "format-3": (nbformat.writes(nbformat.convert(submission(*RIGHT), 3)).encode(), GOOD, [""] * 3),
    # Not a notebook
    "empty": (b"", [0, 0, 0], ["the file is empty"] * 3),
    "text": (b"print('hello')", [0, 0, 0], ["the file is not a notebook"] * 3),
    "bytes": (bytes(range(256)), [0, 0, 0], ["the file is not a notebook"] * 3),
    "other-json": (b'{"cells": 3}', [0, 0, 0], ["the file is not a notebook"] * 3),
    "list": (b"[1, 2]", [0, 0, 0], ["the file is not a notebook"] * 3),
    "deep": (b"[" * 100_000, [0, 0, 0], ["the file is not a notebook"] * 3),
    "format-99": (b'{"nbformat": 99, "nbformat_minor": 0, "cells": []}', [0, 0, 0], ["not a notebook"] * 3),
    "no-cells": (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}', [0, 0, 0], ["not solved"] * 3),
    "odd-cells": (
        b'{"nbformat": 4, "nbformat_minor": 5, "cells": [{"cell_type": "code", "source": 5, "metadata": 7}]}',
        [0, 0, 0], ["not a notebook"] * 3,
    ),
}  # fmt: skip
answer_cell(CASES["answer-as-text"][0], 2).cell_type = "raw"  # type: ignore[arg-type]
CASES["book-edited"][0].cells[1].source = "factor = 100"  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory, zygote: Any) -> SimpleNamespace:
    """All cases handed in by a student each, and judged in one go, as a teacher does."""
    folder, pids = tmp_path_factory.mktemp("classroom"), tmp_path_factory.mktemp("pids")
    (folder / "notebooks/01-part").mkdir(parents=True)
    nbformat.write(lesson(*LESSON), folder / "notebooks/01-part/01-topic.ipynb")
    for name, (given, _, _) in CASES.items():
        path = folder / "handed-in" / name / "01-part/01-topic.ipynb"
        path.parent.mkdir(parents=True)
        text = given if isinstance(given, bytes) else nbformat.writes(given).encode()
        path.write_bytes(text.replace(PIDS.encode(), str(pids).encode()))
    (folder / "handed-in/missing").mkdir()
    outside = folder / "outside.ipynb"
    nbformat.write(submission(*RIGHT), outside)
    (folder / "handed-in/link/01-part").mkdir(parents=True)
    (folder / "handed-in/link/01-part/01-topic.ipynb").symlink_to(outside)
    (folder / "handed-in/pipe/01-part").mkdir(parents=True)
    os.mkfifo(folder / "handed-in/pipe/01-part/01-topic.ipynb")
    nbformat.write(submission(*RIGHT), folder / "handed-in/missing/other.ipynb")
    (folder / "handed-in/elsewhere").mkdir()
    nbformat.write(submission(*RIGHT), folder / "handed-in/elsewhere/01-topic.ipynb")
    (folder / "home").mkdir()
    (folder / "tmp").mkdir()
    state = snapshot(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        marks = grade(
            folder / "handed-in", root=folder / "notebooks", out=folder / "grades", workers=2, timeout=TIMEOUT,
            memory=1.0, progress=False,
        )  # fmt: skip
    started = [int(path.name) for path in pids.iterdir()]
    by_student: dict[str, list[Mark]] = {}
    for mark in marks:
        by_student.setdefault(mark.student, []).append(mark)
    return SimpleNamespace(folder=folder, marks=by_student, all=marks, before=state, started=started)


def snapshot(folder: Path) -> dict[str, Any]:
    return {str(path): (path.lstat().st_mode, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_what_a_student_gets(name: str, classroom: SimpleNamespace) -> None:
    _, points, messages = CASES[name]
    marks = classroom.marks[name]
    assert [mark.points for mark in marks] == points, [mark.message for mark in marks]
    for mark, message in zip(marks, messages, strict=True):
        assert message in mark.message
        assert bool(mark.message) == (mark.points != mark.of)
    assert [(mark.exercise, mark.of) for mark in marks] == [("1. Task 1", 1), ("2. Task 2", 2), ("3. Task 3", 3)]


@pytest.mark.parametrize(
    ("name", "points", "message"),
    [
        ("missing", [0, 0, 0], "no notebook was handed in"),
        ("link", [0, 0, 0], "is a link to something outside"),
        ("pipe", [0, 0, 0], "is not a file"),
        ("elsewhere", GOOD, ""),
    ],
)
def test_what_is_handed_in_otherwise(name: str, points: list[float], message: str, classroom: SimpleNamespace) -> None:
    assert [mark.points for mark in classroom.marks[name]] == points
    assert all(message in mark.message for mark in classroom.marks[name])


def test_every_file_is_as_it_was_and_none_is_left(classroom: SimpleNamespace) -> None:
    grades = snapshot(classroom.folder / "grades")
    after = snapshot(classroom.folder)
    after.pop(str(classroom.folder / "grades"))
    assert {path: state for path, state in after.items() if path not in grades} == classroom.before


def test_no_process_stays(classroom: SimpleNamespace, tools: SimpleNamespace) -> None:
    assert len(classroom.started) == 3, "each of the three has started one"
    assert not any(tools.is_running(pid) for pid in classroom.started)


def test_the_tables(classroom: SimpleNamespace) -> None:
    with (classroom.folder / "grades/grades.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["student", "notebook", "exercise", "points", "of", "message"]
    assert len(rows) == len(classroom.all)
    wrong = next(row for row in rows if row["student"] == "wrong" and row["exercise"] == "2. Task 2")
    assert wrong == {
        "student": "wrong", "notebook": "01-part/01-topic.ipynb", "exercise": "2. Task 2", "points": "0.0",
        "of": "2.0", "message": "three",
    }  # fmt: skip
    with (classroom.folder / "grades/totals.csv").open(newline="") as file:
        whole = {row["student"]: (float(row["points"]), float(row["of"])) for row in csv.DictReader(file)}
    assert whole["right"] == (6, 6) and whole["wrong"] == (4, 6) and whole["missing"] == (0, 6)
    assert whole == {s: (p, of) for s, p, of in totals(classroom.all).itertuples(index=False)}


# The command, and what else can go wrong


@pytest.fixture
def school(book: Path) -> Callable[..., Path]:
    """A book with one lesson in the working folder; returns what hands a notebook in."""
    nbformat.write(lesson(*LESSON), book / "notebooks/01-topic.ipynb")

    def hand_in(nb: NotebookNode, place: str = "in/ada/01-topic.ipynb") -> Path:
        (book / place).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, book / place)
        return book / place

    return hand_in


def test_the_command(school: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    school(second("def triple(x):\n    return x"))
    school(submission(*RIGHT), "in/bob/01-topic.ipynb")
    assert cli._main(["grade", "in", "--out", "grades"]) == 0
    shown = capfd.readouterr()
    words = [line.split() for line in shown.out.splitlines()]
    assert ["ada", "01-topic.ipynb", "2.", "Task", "2", "0", "2", "three"] in words
    assert ["ada", "4", "6"] in words and ["bob", "6", "6"] in words
    assert [line.split()[1] for line in shown.err.splitlines() if line.startswith("[")] == [
        "ada/01-topic.ipynb:",
        "bob/01-topic.ipynb:",
    ] or "[2/2]" in shown.err
    assert Path("grades/grades.csv").is_file()


def test_one_students_folder_and_a_notebook_that_is_missing(school: Callable[..., Path], book: Path) -> None:
    nbformat.write(lesson(LAST), book / "notebooks/02-other.ipynb")
    school(submission(*RIGHT), "ada/01-topic.ipynb")
    marks = grade("ada", progress=False)
    assert [(m.student, m.notebook, m.points) for m in marks] == [("ada", "01-topic.ipynb", p) for p in GOOD]
    marks = grade("ada", notebooks=["02-other.ipynb"], progress=False)
    assert [(m.notebook, m.points, m.message) for m in marks] == [("02-other.ipynb", 0, "no notebook was handed in")]


def test_an_error_says_what_to_do(school: Callable[..., Path], book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (book / "empty").mkdir()
    (book / "strangers/ada").mkdir(parents=True)
    nbformat.write(submission(), book / "strangers/ada/other.ipynb")
    school(submission(*RIGHT))
    for arguments, sentence in [
        (["nowhere"], "there is no folder nowhere"),
        (["empty"], "holds neither notebooks of the book nor a folder for each student"),
        (["strangers"], "no notebook with exercises in strangers has the name of one in notebooks"),
        (["in", "--out", "in/grades"], "is among what was handed in"),
        (["in", "--notebook", "09-none.ipynb"], "there is no notebook 09-none.ipynb"),
    ]:
        assert cli._main(["grade", *arguments]) == 1
        assert sentence in capsys.readouterr().err
    for name in ("workers", "timeout", "memory"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            grade("in", **{name: 0})


def test_a_book_that_fails_gives_no_marks(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nbformat.write(lesson(LAST, start="1 / 0"), book / "notebooks/a.ipynb")
    (book / "ada").mkdir()
    nbformat.write(lesson(LAST, start="1 / 0"), book / "ada/a.ipynb")
    assert cli._main(["grade", "ada", "--out", "grades"]) == 1
    shown = capsys.readouterr()
    assert "could not be judged: a cell of the book failed: ZeroDivisionError" in " ".join(shown.out.split())
    assert "1 could not be judged" in shown.err


def test_who_kills_the_kernels_parent_harms_nobody_else(
    school: Callable[..., Path], book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOSSBOOK_ZYGOTE")
    monkeypatch.delenv("JUPYTER_DEFAULT_PROVISIONER_NAME")
    # It starts three zygotes: they import torch and no more, which costs seconds less for each.
    (book / "sitecustomize.py").write_text(
        "from lossbook.book import prewarm\nprewarm._import_heavy_modules = lambda: __import__('torch')"
    )
    monkeypatch.setenv("PYTHONPATH", str(book))
    school(before(submission(*RIGHT), "x-3", "import time\ntime.sleep(2)"), "in/bob/01-topic.ipynb")
    school(second("def triple(x):\n    import os\n    os.kill(os.getppid(), 9)"), "in/eve/01-topic.ipynb")
    marks = grade("in", workers=2, progress=False)
    assert [(m.student, m.points) for m in marks] == [("bob", p) for p in GOOD] + [("eve", p) for p in (1, 0, 3)]


def test_what_one_student_starts_is_gone_before_the_next(school: Callable[..., Path], book: Path) -> None:
    school(second(DAEMON.replace(PIDS, str(book)) + RIGHT[1]), "in/ada/01-topic.ipynb")
    look = (
        "import glob, pathlib\n"
        f"pids = [path for path in pathlib.Path({str(book)!r}).iterdir() if path.name.isdigit()]\n"
        "states = [open(name).read().split(')')[1] for p in pids for name in glob.glob(f'/proc/{p.name}/stat')]\n"
        "def triple(x):\n    return 3 * x if pids and all(state.split()[0] == 'Z' for state in states) else 0"
    )
    school(second(look), "in/bob/01-topic.ipynb")
    marks = grade("in", workers=1, progress=False)
    assert [(m.student, m.points) for m in marks] == [(name, p) for name in ("ada", "bob") for p in GOOD]


def test_interrupted_it_leaves_no_process_and_keeps_what_is_judged(
    school: Callable[..., Path], book: Path, tools: SimpleNamespace
) -> None:
    school(submission(*RIGHT), "in/ada/01-topic.ipynb")
    text = f"import os, pathlib, time\npathlib.Path({str(book)!r}, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    school(second(text), "in/bob/01-topic.ipynb")
    command = [sys.executable, "-m", "lossbook.book.cli", "grade", "in", "--out", "grades", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        kernel = tools.kernel_pid(book)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "the marks so far are in grades" in error and "Traceback" not in error
    assert not tools.is_running(kernel)
    assert [row.split(",")[0] for row in Path("grades/totals.csv").read_text().splitlines()] == ["student", "ada"]


def test_interrupted_before_the_first_mark_it_names_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted(signal.SIGINT, [])

    monkeypatch.setattr("lossbook.book.classroom.grade.grade", interrupted)
    assert cli._main(["grade", "in"]) == 128 + signal.SIGINT
    assert "interrupted by SIGINT; no notebook was judged yet" in capsys.readouterr().err


def test_it_reads_no_configuration_and_hands_on_no_environment(
    school: Callable[..., Path], book: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in (book / ".jupyter", book / ".ipython/profile_default/startup", book):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("nbgrader_config.py", "jupyter_config.py", "start.py", "ipython_config.py"):
            (folder / name).write_text("import sys; sys.stderr.write('read'); raise SystemExit(3)")
    monkeypatch.setenv("HOME", str(book))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(book / ".jupyter"))
    monkeypatch.setenv("PASSWORD", "secret")
    school(second("import os\ndef triple(x):\n    return 0 if 'PASSWORD' in os.environ else 3 * x"))
    assert [mark.points for mark in grade("in", progress=False)] == GOOD
    assert capfd.readouterr() == ("", "")


# The book


def errors_of(nb: NotebookNode, place: Path) -> dict[str, str]:
    """Execute all cells as a student does who runs all: which failed, by grade_id or position."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(place)}}
    NotebookClient(nb, allow_errors=True, timeout=300, kernel_name="python3", resources=resources).execute()
    return {
        cell.metadata.get("nbgrader", {}).get("grade_id", str(position)): f"{output.ename}: {output.evalue}"
        for position, cell in enumerate(nb.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    }


def test_a_released_notebook_fails_in_the_exercises_and_nowhere_else(tmp_path: Path, zygote: Any) -> None:
    wanted = {f"x-{n}-test": f"NotImplementedError: Exercise {n}: Task {n}" for n in (1, 2, 3)}
    assert errors_of(submission(), tmp_path) == wanted


def test_the_round_trip_of_a_notebook_of_the_book(tmp_path: Path, zygote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSBOOK_STATIC", "1")
    name = "00-start-here.ipynb"
    notebooks = REPOSITORY / "notebooks"
    release([name], root=notebooks, out=tmp_path / "release")
    (exercises,) = (found for _, found in read_book([name], notebooks).values())
    student = nbformat.read(tmp_path / "release" / name, as_version=4)
    wanted = {test: f"NotImplementedError: {exercise.task}" for exercise in exercises for test in exercise.tests}
    assert errors_of(student, tmp_path) == wanted
    (tmp_path / "in/teacher").mkdir(parents=True)
    (tmp_path / "in/teacher" / name).write_bytes((notebooks / name).read_bytes())
    marks = grade(tmp_path / "in", root=notebooks, timeout=120, progress=False)
    assert len(marks) == len(wanted) and all(mark.points == mark.of for mark in marks)
