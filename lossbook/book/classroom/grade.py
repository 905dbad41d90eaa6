"""`lossbook grade`: the tests of the book, hidden parts included, run on what students hand in.

The notebook that runs is made by `submission`, and executed by nbgrader in a kernel of its own (`execute`). A cell that
does not end, or that ends the kernel, costs its exercise: the notebook is run again without it, so that the others are
judged. nbgrader determines the points.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook._files import write_atomically
from lossbook.book import _jobs, _progress
from lossbook.book._jobs import Job, Result, RunError
from lossbook.book.classroom.execute import Limits, answers, engine, execute, orphans_killed
from lossbook.book.classroom.release import quiet, read_book
from lossbook.book.classroom.submission import Chapter, Mark, Submission, compose, locate, read, students

if TYPE_CHECKING:
    import pandas as pd

    from lossbook.book.prewarm import Zygote


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
        RunError: there is nothing to judge, two students have one name, or the book's own exercises are not in order.
    """
    import joblib

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
    book = {rel: Chapter(rel, nb, found) for rel, (nb, found) in read_book(notebooks, root).items() if found}
    homes = students(folder, _jobs.find(None, root).values())
    found = {name: {rel: locate(home, rel) for rel in book} for name, home in homes.items()}
    wanted = [rel for rel in book if notebooks is not None or any(paths[rel] for paths in found.values())]
    if not wanted:
        raise RunError(f"no notebook with exercises in {folder} has the name of one in {root}")
    submissions = [
        Submission(name, book[rel], home / rel, read(found[name][rel], home))
        for name, home in homes.items()
        for rel in wanted
    ]
    workers = min(workers or joblib.cpu_count(), len(submissions))
    limits = Limits(timeout, memory, threads=1 if workers > 1 else joblib.cpu_count())
    report = _progress.reporter(len(submissions), progress)
    _Grading(submissions, None if out is None else Path(out), workers, limits, report).run()
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


class _Grading:
    """The main thread's part: start threads, show progress, write the tables."""

    def __init__(
        self,
        submissions: list[Submission],
        out: Path | None,
        workers: int,
        limits: Limits,
        report: _progress.Report,
    ) -> None:
        self.jobs = [(submission, _job(submission)) for submission in submissions]
        self.out, self.workers = out, workers
        self.limits, self.report = limits, report
        self.stopped = threading.Event()

    def run(self) -> None:
        from lossbook.book.prewarm import Zygote
        from lossbook.book.runner import Interrupted, _terminable, _Terminated

        try:
            with _terminable(), self.report, Zygote() as zygote, orphans_killed():
                self.report.say("importing the libraries, once for all notebooks")
                engine()  # while the zygote imports
                zygote.ready()
                self._judge_all(zygote)
        except KeyboardInterrupt as interrupt:
            signum = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
            raise Interrupted(signum, [job.result for _, job in self.jobs if job.result]) from None

    def _judge_all(self, zygote: Zygote) -> None:
        pool = ThreadPoolExecutor(self.workers)
        waiting = {pool.submit(self._judge, *pair, zygote): pair for pair in self.jobs}
        try:
            started = time.monotonic()
            while waiting:
                for future in wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED).done:
                    submission, job = waiting.pop(future)
                    future.result()
                    ended = len(self.jobs) - len(waiting)
                    self._finish(submission, job, (time.monotonic() - started) / ended * len(waiting))
                self.report.update([job for _, job in waiting.values() if job.started and not job.done.is_set()])
        finally:
            # Nothing is left to stop or to write after an ordinary end.
            self.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for _, job in self.jobs:
                job.kill("interrupted")
            pool.shutdown()
            self._write()

    def _finish(self, submission: Submission, job: Job, seconds_left: float) -> None:
        seconds = time.monotonic() - job.started
        overhead = (job.first_cell or job.started) - job.started
        error = submission.error
        job.result = Result(submission.path, "failed" if error else "ok", None, seconds, overhead, error)
        self.report.finish(job, seconds_left)
        self._write()

    def _write(self) -> None:
        marks = [mark for submission, job in self.jobs if job.result for mark in submission.marks]
        if self.out is not None and marks:
            with _jobs.writing(self.out):
                write_atomically(self.out / "grades.csv", table(marks).to_csv(index=False))
                write_atomically(self.out / "totals.csv", totals(marks).to_csv(index=False))

    def _judge(self, submission: Submission, job: Job, zygote: Zygote) -> None:
        """A thread's work: all attempts at a notebook."""
        self.report.start(job)
        job.started = time.monotonic()
        try:
            if isinstance(submission.cells, str):
                submission.fail(submission.chapter.tests, submission.cells)
            elif all(source.strip() in submission.chapter.released for _, source in submission.cells):
                submission.fail(submission.chapter.tests, "not solved")
            else:
                self._attempts(submission, submission.cells, job, zygote)
        except Exception as error:
            submission.error = f"could not be judged: {type(error).__name__}: {_jobs.first_line(error)}"
        finally:
            job.done.set()

    def _attempts(self, submission: Submission, cells: list[tuple[str, str]], job: Job, shared: Zygote) -> None:
        """Run the notebook until it comes to its end, each time without the cell in which it ended before."""
        from lossbook.book.prewarm import Zygote

        left_out: set[int | str] = set()
        for _ in range(len(submission.chapter.exercises) + 4):
            running = compose(submission.chapter, cells, left_out, self.limits.memory)
            with contextlib.ExitStack() as own:
                alone = bool(shared.environment) and not answers(shared)
                zygote = own.enter_context(Zygote()) if alone else shared
                zygote.ready()
                end = execute(running, job, zygote, self.limits, self.stopped)
            if self.stopped.is_set():
                return
            if end and not alone and shared.environment and not answers(shared):
                # Somebody has killed what all kernels are forked from; who, shows with one for each notebook.
                continue
            _read_marks(submission, running[: end[0]] if end else running)
            if end is None or submission.error:
                return
            culprits = [cell for cell in running[: end[0] + 1] if cell.metadata.role in ("student", "test")]
            if not any(cell.metadata.role == "student" for cell in culprits):
                submission.error = f"could not be judged: before the student's cells, {end[1]}"
                return
            left_out.add(culprits[-1].metadata.key)
            _blame(submission, culprits[-1].metadata, end[1])
        submission.fail(submission.chapter.tests, "the notebook's cells have ended the kernel too often")


def _job(submission: Submission) -> Job:
    rel = Path(submission.student) / submission.chapter.rel
    cells = len(submission.chapter.nb.cells)
    return Job(submission.path, "", rel, submission.path, submission.chapter.nb, cells, {}, "", None)


def _blame(submission: Submission, culprit: Any, why: str) -> None:
    """Note what it costs that a cell with these metadata has ended the kernel."""
    if culprit.role == "test":
        submission.fail([culprit.key], why)
    elif "answer" in culprit:
        submission.fail(submission.chapter.answers[culprit.answer].tests, f"in the answer, {why}")
    else:
        submission.note = f"; another cell of the student's was left out: {why}"


def _read_marks(submission: Submission, ran: list[Any]) -> None:
    """Note the marks of the tests among the cells that have run to their end."""
    wrong: dict[str, str] = {}  # what is wrong with an answer's own cell
    student_began = tampered = False
    for cell in ran:
        role, error = cell.metadata.role, _error(cell)
        student_began |= role == "student"
        if error and not student_began:
            submission.error = f"could not be judged: a cell of the book failed: {_sentence(cell, error)}"
            return
        if role == "guard" and error:
            tampered = True
        elif role == "student" and error and "answer" in cell.metadata:
            wrong[cell.metadata.answer] = f"the answer cell: {_sentence(cell, error)}"
        elif role == "test":
            exercise = submission.chapter.tests[cell.metadata.key]
            points, message = 0.0 if tampered else _points(cell), ""
            if points == 0 or error:
                message = wrong.get(exercise.answer) or (_sentence(cell, error) if error else "no points")
                if error and error.ename == "NotImplementedError" and error.evalue == exercise.task:
                    message = "not solved"
                elif tampered:
                    message = "the student's cells have changed the grading itself"
                message += submission.note
            submission.judged.setdefault(cell.metadata.key, (points, message))


def _points(test: Any) -> float:
    from nbgrader.utils import determine_grade

    # nbgrader takes no output for success, so that there was a run has to be known; and a number for points, although
    # an error follows it.
    if not test.metadata.get("ran") or _error(test):
        return 0.0
    # A warning is no wrong answer.
    test.outputs = [output for output in test.outputs if output.output_type != "stream"]
    try:
        return float(determine_grade(test, quiet())[0])
    except (ValueError, KeyError, TypeError):
        return 0.0


def _error(cell: Any) -> Any:
    return next((output for output in cell.get("outputs", []) if output.output_type == "error"), None)


def _sentence(cell: Any, error: Any) -> str:
    """What an error says: of an assertion its message, of another its name too."""
    words = (error.evalue or "").strip().split("\n")[0]
    if error.ename == "AssertionError":
        return words or f"wrong: {cell.source.strip().splitlines()[0] if len(cell.source) < 80 else 'an assertion'}"
    return f"{error.ename}: {words}" if words else error.ename
