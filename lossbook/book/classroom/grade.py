"""`lossbook grade`: the tests of the book, hidden parts included, run on what students hand in.

What runs is the book's notebook with the student's cells put into it, not the student's notebook: the data, the
trained networks and the tests are then the book's, whatever a student has edited or deleted there. A cell of the
student's is one whose text is not in the released notebook; answers are found by nbgrader's id, the other cells keep
their place between the answers, since answers may call what they define. Student and book have separate names
(`kernel`). nbgrader executes the cells and determines the points.

Each notebook runs in a kernel, a working folder and a home of its own, which are gone afterwards. A cell that does not
end, or that ends the kernel, costs its exercise: the notebook is run again without it, so that the others are judged.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook._files import write_atomically
from lossbook.book import _jobs, _progress
from lossbook.book._jobs import Job, Result, RunError
from lossbook.book.classroom.release import Exercise, grade_id, quiet, read_book, student_version

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

    from lossbook.book.prewarm import Zygote

_LARGEST_FILE = 50 << 20
_LARGEST_OUTPUT = 10 << 20  # of a cell; a loop that prints reaches it in seconds
_GUARD = '__import__("lossbook.book.classroom.kernel", fromlist=["_"])'
# A student's code sees nothing else of the teacher's environment, which may hold passwords.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Mark:
    """What a student gets for a test: points out of `of`, and what was wrong; points are None if it was not judged."""

    student: str
    notebook: str
    exercise: str
    points: float | None
    of: float
    message: str = ""


def grade(
    folder: str | Path,
    *,
    notebooks: Sequence[str | Path] | None = None,
    root: str | Path = "notebooks",
    out: str | Path | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    memory: float = 4.0,
    progress: bool = True,
) -> list[Mark]:
    """Judge the notebooks that students have handed in; their files are only read.

    On Linux, processes that this one gets while it judges are ended: do not start others from other threads meanwhile.

    Args:
        folder: one student's notebooks under the paths that they were released with, or a folder of such for each
            student, named after the student. A notebook in another place is found by its name.
        notebooks: which notebooks of the book to judge; one that is not handed in gets no points. None means those
            that at least one student has handed in.
        root: the book: its notebooks, with solutions and hidden tests.
        out: a folder for `grades.csv`, a row a Mark, and `totals.csv`, a row a student; written after each notebook.
        workers: notebooks at a time, by default one per core.
        timeout: seconds for a cell of a student or a test; a cell of the book has ten times as long.
        memory: GiB that a notebook may take beyond the libraries (Linux only).
        progress: say on stderr what happens.

    Returns:
        a Mark per test, by student and in the book's order.

    Raises:
        ValueError: a bad argument.
        RunError: there is nothing to judge, or the book's own exercises are not in order.
    """
    folder, root = Path(folder), Path(root)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if not memory > 0:
        raise ValueError(f"memory must be a positive number of GiB, not {memory!r}")
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}")
    if out is not None and Path(out).resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{out} is among what was handed in: choose another folder for the grades")
    book = {rel: _Chapter(rel, nb, found) for rel, (nb, found) in read_book(notebooks, root).items() if found}
    students = _students(folder, list(_jobs.find(None, root).values()))
    found = {name: {rel: _locate(home, rel) for rel in book} for name, home in students.items()}
    wanted = [rel for rel in book if notebooks is not None or any(paths[rel] for paths in found.values())]
    if not wanted:
        raise RunError(f"no notebook with exercises in {folder} has the name of one in {root}")
    submissions = []
    for name, home in students.items():
        for rel in wanted:
            cells = _read(found[name][rel], home)
            submissions.append(_Submission(name, book[rel], found[name][rel] or home / rel, cells))
    _Grading(submissions, out, workers, timeout, memory, progress).run()
    return [mark for submission in submissions for mark in submission.marks]


def totals(marks: Sequence[Mark]) -> pd.DataFrame:
    """A row a student: student, points, of."""
    import pandas as pd

    frame = pd.DataFrame([(m.student, m.points or 0.0, m.of) for m in marks], columns=["student", "points", "of"])
    return frame.groupby("student", sort=False, as_index=False).sum()


def table(marks: Sequence[Mark]) -> pd.DataFrame:
    """A row a test: student, notebook, exercise, points, of, message."""
    import pandas as pd

    return pd.DataFrame(marks, columns=["student", "notebook", "exercise", "points", "of", "message"])


@dataclass
class _Chapter:
    """A notebook of the book, and what its student's version looks like."""

    rel: Path
    nb: NotebookNode
    exercises: list[Exercise]
    answers: dict[str, Exercise] = field(init=False)
    tests: dict[str, Exercise] = field(init=False)
    released: dict[str, str] = field(init=False)  # text of each code cell to its grade_id

    def __post_init__(self) -> None:
        self.answers = {exercise.answer: exercise for exercise in self.exercises}
        self.tests = {test: exercise for exercise in self.exercises for test in exercise.tests}
        cells = [cell for cell in student_version(self.nb).cells if cell.cell_type == "code"]
        self.released = {cell.source.strip(): grade_id(cell) for cell in cells}
        # Who hands in a copy of the teacher's notebook has edited no cell of the book's either.
        self.released |= {c.source.strip(): "" for c in self.nb.cells if c.cell_type == "code" and not grade_id(c)}

    def points(self, test: str) -> float:
        return next(float(c.metadata.nbgrader.points) for c in self.nb.cells if grade_id(c) == test)


@dataclass
class _Submission:
    """A notebook of a student: its code cells as (grade_id, text), or why there are none."""

    student: str
    chapter: _Chapter
    path: Path
    cells: list[tuple[str, str]] | str
    judged: dict[str, tuple[float | None, str]] = field(default_factory=dict)
    error: str | None = None
    note: str = ""  # on a cell that was left out although no exercise asks for it

    @property
    def marks(self) -> list[Mark]:
        """One for each test; if the notebook could not be judged, without points."""
        marks = []
        for test, exercise in self.chapter.tests.items():
            name = f"{exercise.number}. {exercise.title}"
            points, message = self.judged.get(test, (None, self.error or "not judged"))
            of = self.chapter.points(test)
            marks.append(Mark(_plain(self.student), self.chapter.rel.as_posix(), name, points, of, _plain(message)))
        return marks

    def fail(self, tests: Sequence[str], why: str) -> None:
        for test in tests:
            self.judged.setdefault(test, (0.0, why))


def _plain(text: str) -> str:
    """One short line without what a terminal or a spreadsheet would take for a command."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text[:2000])
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = f"'{text}" if text[:1] in tuple("=+-@") else text
    return text if len(text) <= 300 else f"{text[:299]}…"


# What was handed in


def _students(folder: Path, book: Sequence[Path]) -> dict[str, Path]:
    names = {rel.name for rel in book}
    if any((folder / rel).exists() for rel in book) or any(path.name in names for path in folder.iterdir()):
        return {folder.resolve().name: folder}
    homes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not homes:
        raise RunError(f"{folder} holds neither notebooks of the book nor a folder for each student")
    return {path.name: path for path in homes}


def _locate(home: Path, rel: Path) -> Path | None:
    """Where a student has put a notebook: as released, or wherever the one file of that name is."""
    if os.path.lexists(home / rel):
        return home / rel
    same = []
    for place, folders, files in os.walk(home):
        folders[:] = [name for name in folders if not name.startswith(".")]
        same += [Path(place) / name for name in files if name == rel.name]
    return same[0] if len(same) == 1 else None


def _read(path: Path | None, home: Path) -> list[tuple[str, str]] | str:
    """The code cells of a student's notebook, or the sentence why it has none."""
    from nbformat import convert, reader

    if path is None:
        return "no notebook was handed in"
    if home.is_symlink() or not path.resolve().is_relative_to(home.resolve()):
        return "the notebook is a link to something outside of the student's folder"
    try:
        # Not a pipe or a device either: reading one may never end.
        if not path.is_file():
            return "the notebook is not a file"
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            return f"the file is larger than {_LARGEST_FILE >> 20} MB: clear the outputs"
        if not path.read_bytes().strip():
            return "the file is empty"
        nb = reader.reads(path.read_text(encoding="utf-8"))
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


# The notebook that runs


def _compose(chapter: _Chapter, cells: list[tuple[str, str]], left_out: set[int | str], memory: float) -> list[Any]:
    """The cells to run, each with what it is in metadata.role: guard, book, student or test.

    Cells of the student's have their position as metadata.key, and an answer its grade_id; a test has its own.
    left_out: keys of cells that ended a kernel.
    """
    from nbformat import v4

    slots = [grade_id(c) for c in chapter.nb.cells if grade_id(c) in chapter.answers or grade_id(c) in chapter.tests]
    # Of cells with the same id the last one counts, as in nbgrader.
    position = {name: i for i, (name, _) in enumerate(cells) if name in slots}
    own = [
        i
        for i, (name, source) in enumerate(cells)
        if i not in position.values()
        and source.strip()
        and source.strip() not in chapter.released
        and name not in chapter.tests
    ]
    ends: list[float] = [0.0] * len(slots)
    end = float("inf")
    for i in reversed(range(len(slots))):
        ends[i] = end = position.get(slots[i], end)
    running: list[Any] = []
    names: list[str] = []
    theirs = False

    def add(role: str, source: str, key: int | str = "", **metadata: Any) -> None:
        if key not in left_out or key == "":
            running.append(v4.new_code_cell(source, metadata={"role": role, "key": key, **metadata}))

    def enter(student: bool) -> None:
        nonlocal theirs
        if student != theirs:
            add("guard", f"{_GUARD}.student()" if student else f"{_GUARD}.book({names!r})")
        theirs = student

    def put(source_indices: list[int]) -> None:
        for i in source_indices:
            enter(True)
            add("student", cells[i][1], i)

    add("guard", f"{_GUARD}.start({int(memory * 2**30)})")
    last = max(i for i, c in enumerate(chapter.nb.cells) if grade_id(c) in chapter.tests)
    done = -1
    for cell in chapter.nb.cells[: last + 1]:
        if cell.cell_type != "code":
            continue
        name = grade_id(cell)
        if name in slots:
            end = ends[slots.index(name)]
            put([i for i in own if done < i < end])
            done = max([done, *(i for i in own if i < end)])
        if name in chapter.answers:
            enter(True)
            names += chapter.answers[name].names
            if name in position:
                add("student", cells[position[name]][1], position[name], answer=name)
        else:
            enter(False)
            add("test" if name in chapter.tests else "book", cell.source, name, nbgrader=cell.metadata.get("nbgrader"))
    return running


def _is_untouched(chapter: _Chapter, cells: list[tuple[str, str]]) -> bool:
    return all(not source.strip() or source.strip() in chapter.released for _, source in cells)


# Running it


class _Grading:
    """The main thread's part: start threads, show progress, write the tables."""

    def __init__(
        self,
        submissions: list[_Submission],
        out: str | Path | None,
        workers: int | None,
        timeout: float,
        memory: float,
        progress: bool,
    ) -> None:
        import joblib

        self.submissions = submissions
        self.out = None if out is None else Path(out)
        self.workers = min(workers or joblib.cpu_count(), len(submissions))
        self.threads = 1 if self.workers > 1 else joblib.cpu_count()
        self.timeout, self.memory = timeout, memory
        self.report = _progress.reporter(len(submissions), progress)
        self.stopped = threading.Event()

    def run(self) -> None:
        from lossbook.book.prewarm import Zygote
        from lossbook.book.runner import Interrupted, _terminable, _Terminated

        try:
            with _terminable(), self.report, Zygote() as zygote, _orphans_killed():
                self.report.say("importing the libraries, once for all notebooks")
                _engine()  # takes seconds: while the zygote imports
                zygote.ready()
                self._judge_all(zygote)
        except KeyboardInterrupt as interrupt:
            signum = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
            raise Interrupted(signum, []) from None

    def _judge_all(self, zygote: Zygote) -> None:
        jobs = [self._job(submission) for submission in self.submissions]
        pool = ThreadPoolExecutor(self.workers)
        waiting = {
            pool.submit(self._judge, submission, job, zygote): (submission, job)
            for submission, job in zip(self.submissions, jobs, strict=True)
        }
        try:
            started = time.monotonic()
            while waiting:
                for future in wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED).done:
                    submission, job = waiting.pop(future)
                    future.result()
                    self._finish(submission, job, started, len(waiting))
                self.report.update([job for _, job in waiting.values() if job.started and not job.done.is_set()])
        finally:
            # Nothing is left to stop after an ordinary end.
            self.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for job in jobs:
                job.kill("interrupted")
            pool.shutdown()
            self._write()

    @staticmethod
    def _job(submission: _Submission) -> Job:
        rel = Path(_plain(submission.student)) / submission.chapter.rel
        cells = len(submission.chapter.nb.cells)
        return Job(submission.path, "", rel, submission.path, submission.chapter.nb, cells, {}, "", None)

    def _finish(self, submission: _Submission, job: Job, started: float, left: int) -> None:
        seconds = time.monotonic() - job.started
        overhead = (job.first_cell or job.started) - job.started
        status = "failed" if submission.error else "ok"
        job.result = Result(submission.path, status, None, seconds, overhead, submission.error)  # type: ignore[arg-type]
        ended = len(self.submissions) - left
        self.report.finish(job, (time.monotonic() - started) / ended * left)
        self._write()

    def _write(self) -> None:
        marks = [mark for one in self.submissions for mark in one.marks if one.judged or one.error]
        if self.out is not None and marks:
            with _jobs.writing(self.out):
                write_atomically(self.out / "grades.csv", table(marks).to_csv(index=False))
                write_atomically(self.out / "totals.csv", totals(marks).to_csv(index=False))

    def _judge(self, submission: _Submission, job: Job, zygote: Zygote) -> None:
        """A thread's work: all attempts at a notebook."""
        self.report.start(job)
        job.started = time.monotonic()
        chapter, cells = submission.chapter, submission.cells
        tests = list(chapter.tests)
        try:
            if isinstance(cells, str):
                submission.fail(tests, cells)
            elif _is_untouched(chapter, cells):
                submission.fail(tests, "not solved")
            else:
                self._attempts(submission, cells, job, zygote)
        except Exception as error:
            submission.error = f"could not be judged: {type(error).__name__}: {_jobs.first_line(error)}"
        finally:
            job.done.set()

    def _attempts(self, submission: _Submission, cells: list[tuple[str, str]], job: Job, shared: Zygote) -> None:
        from lossbook.book.prewarm import Zygote

        chapter, zygote = submission.chapter, shared
        left_out: set[int | str] = set()
        with contextlib.ExitStack() as own:
            for _ in range(len(chapter.exercises) + 4):
                if shared.environment and not _answers(zygote):
                    zygote = own.enter_context(Zygote())
                    zygote.ready()
                running = _compose(chapter, cells, left_out, self.memory)
                end = self._run(running, job, zygote)
                if self.stopped.is_set():
                    return
                if end is not None and zygote is shared and shared.environment and not _answers(shared):
                    # Somebody has killed what all kernels are forked from; who, shows with one for each notebook.
                    continue
                self._read_marks(submission, running, end)
                if end is None:
                    return
                index, why = end
                culprits = [cell for cell in running[: index + 1] if cell.metadata.role in ("student", "test")]
                if not any(cell.metadata.role == "student" for cell in culprits):
                    submission.error = f"could not be judged: before the student's cells, {why}"
                    return
                culprit = culprits[-1].metadata
                left_out.add(culprit.key)
                if culprit.role == "test":
                    submission.fail([culprit.key], why)
                elif "answer" in culprit:
                    submission.fail(chapter.answers[culprit.answer].tests, f"in the answer, {why}")
                else:
                    submission.note = f"; another cell of the student's was left out: {why}"
            submission.fail(list(chapter.tests), "the notebook's cells have ended the kernel too often")

    def _read_marks(self, submission: _Submission, running: list[Any], end: tuple[int, str] | None) -> None:
        """Note the marks of the tests that have run to their end."""
        from nbgrader.utils import determine_grade

        answers: dict[str, str] = {}
        student_began = tampered = False
        for cell in running[: len(running) if end is None else end[0]]:
            role, error = cell.metadata.role, _error(cell)
            student_began |= role == "student"
            if error and not student_began and role in ("guard", "book"):
                submission.error = f"could not be judged: a cell of the book failed: {_sentence(cell, error)}"
                return
            if role == "guard" and error:
                tampered = True
            elif role == "student" and error and "answer" in cell.metadata:
                answers[cell.metadata.answer] = f"the answer cell: {_sentence(cell, error)}"
            elif role == "test":
                exercise = submission.chapter.tests[cell.metadata.key]
                # A warning is no wrong answer; and an error counts, whatever was shown before it.
                cell.outputs = [error] if error else [o for o in cell.outputs if o.output_type != "stream"]
                try:
                    # nbgrader takes no output for success, so that there was a run has to be known.
                    points = (
                        0.0 if tampered or not cell.metadata.get("ran") else float(determine_grade(cell, quiet())[0])
                    )
                except (ValueError, KeyError, TypeError):
                    points = 0.0
                message = ""
                if points == 0 or error:
                    message = answers.get(exercise.answer) or (_sentence(cell, error) if error else "no points")
                    if error and error.ename == "NotImplementedError" and error.evalue == exercise.task:
                        message = "not solved"
                    elif tampered:
                        message = "the student's cells have changed the grading itself"
                    message += submission.note
                submission.judged.setdefault(cell.metadata.key, (points, message))

    def _run(self, running: list[Any], job: Job, zygote: Zygote) -> tuple[int, str] | None:
        """Execute the cells in a new kernel; which cell it ended in and why, None if it came to the end."""
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from nbformat import v4

        from lossbook.book.prewarm import ForkProvisioner

        nb = v4.new_notebook(cells=running)
        place = Path(tempfile.mkdtemp(prefix="lossbook-grade-"))
        job.killed_because, job.kernel, job.cell = None, None, 0
        execute = _engine()(log=quiet(), timeout_func=lambda cell: self._seconds(cell), job=job)
        # No kernel folders: of the kernels called python3, the one that belongs to this interpreter.
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        manager.provisioner = ForkProvisioner(kernel_id=place.name, kernel_spec=manager.kernel_spec, parent=manager)
        manager.log = quiet()
        if zygote.folder is not None:
            manager.transport, manager.ip = "ipc", str(zygote.folder / place.name[-8:])
            manager.connection_file = f"{manager.ip}.json"
        try:
            for name in ("work", "home", "tmp"):
                (place / name).mkdir()
            run_sync(manager.start_kernel)(
                extra_arguments=["--HistoryManager.hist_file=:memory:"],
                env=self._environment(place, zygote),
                cwd=str(place / "work"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            job.kernel = manager.provisioner.process
            if self.stopped.is_set():
                job.kill("interrupted")
            execute.preprocess(nb, {}, km=manager)
            return None
        except CellTimeoutError:
            why = f"a cell took longer than {self._seconds(running[execute.index]):g} s and was stopped"
            return execute.index, why
        except (DeadKernelError, RuntimeError) as error:
            if job.kernel is None:
                raise
            return execute.index, job.killed_because or _death(job, error)
        finally:
            job.kill("ended")
            with contextlib.suppress(Exception):
                job.kernel.wait(5)
            with contextlib.suppress(Exception):
                run_sync(manager.cleanup_resources)()
            if execute.kc is not None:
                with contextlib.suppress(Exception):
                    execute.kc.stop_channels()
            _remove(place)

    def _seconds(self, cell: Any) -> float:
        return self.timeout * (1 if cell.metadata.role in ("student", "test") else 10)

    def _environment(self, place: Path, zygote: Zygote) -> dict[str, str]:
        from lossbook.book.prewarm import WAITING
        from lossbook.book.runner import _THREAD_VARIABLES
        from lossbook.data import data_root

        return {
            **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            **WAITING,
            **dict.fromkeys(_THREAD_VARIABLES, str(self.threads)),
            **zygote.environment,
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "tmp"),
            "LOSSBOOK_DATA": str(data_root().resolve()),
            "LOSSBOOK_STATIC": "1",
        }


@functools.cache
def _engine() -> Any:
    """nbgrader's executor, for cells that try to take more than their share."""
    from nbgrader.preprocessors import Execute

    class Judge(Execute):
        def __init__(self, *, job: Job, **traits: Any) -> None:
            super().__init__(**traits)
            self.job, self.index, self.kc = job, 0, None
            # A kernel that was interrupted may go on as if nothing had been said: it is ended instead.
            self.interrupt_on_timeout = False
            self.store_widget_state = False
            self.startup_timeout = 60

        def preprocess_cell(self, cell: Any, resources: Any, index: int) -> Any:
            self.index, self.size = index, 0
            self.job.enter(min(index, self.job.cells - 1))
            return super().preprocess_cell(cell, resources, index)

        def on_cell_executed(self, **told: Any) -> None:
            super().on_cell_executed(**told)
            told["cell"].metadata.ran = told["execute_reply"]["content"]["status"] == "ok"

        def output(self, outs: Any, msg: Any, *rest: Any) -> Any:
            self.size += len(json.dumps(msg["content"], default=str))
            if self.size > _LARGEST_OUTPUT:
                self.job.kill(f"a cell wrote more than {_LARGEST_OUTPUT >> 20} MB and was stopped")
                return None
            return super().output(outs, msg, *rest)

    return Judge


def _error(cell: Any) -> Any:
    return next((output for output in cell.get("outputs", []) if output.output_type == "error"), None)


def _sentence(cell: Any, error: Any) -> str:
    """What an error says: of an assertion its message, of another its name too."""
    words = (error.evalue or "").strip().split("\n")[0]
    if error.ename == "AssertionError":
        return words or f"wrong: {cell.source.strip().splitlines()[0] if len(cell.source) < 80 else 'an assertion'}"
    return f"{error.ename}: {words}" if words else error.ename


def _death(job: Job, error: Exception) -> str:
    status = job.kernel.poll()
    if status is None:
        return f"the kernel no longer answers: {_jobs.first_line(error)}"
    return "the kernel was killed, by a cell or for lack of memory" if status < 0 else "the kernel was ended by a cell"


def _answers(zygote: Zygote) -> bool:
    from lossbook.book.prewarm import ADDRESS

    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(zygote.environment.get(ADDRESS, "")) == 0


def _remove(folder: Path) -> None:
    """Delete a folder, also what a student has made undeletable by its permissions."""
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _orphans_killed() -> Iterator[None]:
    """Have processes that outlive their kernel become children of this one (Linux), and kill them at the end."""
    import psutil

    here = psutil.Process()
    before = {*here.children(recursive=True)}
    adopts = sys.platform == "linux" and _adopt(True)
    try:
        yield
    finally:
        if adopts:
            for _ in range(10):  # those that the killed ones leave come here in turn
                strangers = [process for process in here.children() if process not in before]
                for process in strangers:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(strangers, timeout=5)
            _adopt(False)


def _adopt(wanted: bool) -> bool:
    import ctypes

    pr_set_child_subreaper = 36
    return ctypes.CDLL(None).prctl(pr_set_child_subreaper, int(wanted), 0, 0, 0) == 0
