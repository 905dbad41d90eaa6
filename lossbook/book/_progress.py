"""What the person at the terminal sees of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lossbook.book._jobs import Job


class Report:
    """What the person at the terminal sees: here, a line when a notebook ends."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.ended = 0

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def start(self, job: Job, *, elsewhere: bool = False) -> None:
        """A notebook runs now; of one that runs elsewhere the cell is not known."""

    def stop(self, job: Job) -> None:
        """It does not run any longer, and has not ended: its worker is lost, or its result on the way."""

    def update(self, running: list[Job]) -> None:
        pass

    def finish(self, job: Job, seconds_left: float | None) -> None:
        self.ended += 1
        left = _left(seconds_left)
        self.say(f"[{self.ended}/{self.total}] {_ending(job)}{left and f' ({left})'}")


class _Silence(Report):
    def say(self, text: str) -> None:
        pass


class _Bars(Report):
    """On a terminal: a bar for each running notebook, which counts its cells, and one for all with the time left."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(total)
        name, count, note = (
            TextColumn(f"{{task.{text}}}") for text in ("description", "fields[count]", "fields[note]")
        )
        self.progress = Progress(name, BarColumn(), count, TimeElapsedColumn(), note, console=Console(stderr=True))
        self.whole = self.progress.add_task("the book", total=total, count=f"0/{total}", note="")
        self.tasks: dict[Path, Any] = {}

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def start(self, job: Job, *, elsewhere: bool = False) -> None:
        total, count = (None, "") if elsewhere else (job.cells, f"0/{job.cells}")
        self.tasks[job.rel] = self.progress.add_task(str(job.rel), total=total, count=count, note="")

    def stop(self, job: Job) -> None:
        if job.rel in self.tasks:
            self.progress.remove_task(self.tasks.pop(job.rel))

    def update(self, running: list[Job]) -> None:
        for job in running:
            done = max(job.cell - 1, 0)
            self.progress.update(self.tasks[job.rel], completed=done, count=f"{done}/{job.cells}")

    def finish(self, job: Job, seconds_left: float | None) -> None:
        self.ended += 1
        self.say(_ending(job))
        self.stop(job)
        count = f"{self.ended}/{self.total}"
        self.progress.update(self.whole, completed=self.ended, count=count, note=_left(seconds_left))


def reporter(total: int, progress: bool) -> Report:
    if not progress:
        return _Silence(total)
    return _Bars(total) if sys.stderr.isatty() else Report(total)


def _ending(job: Job) -> str:
    assert job.result is not None
    if job.result.status == "cached":
        return f"{job.rel}: unchanged"
    if job.result.status == "failed":
        error = job.result.error or ""
        return f"{job.rel}: failed {'in ' * error.startswith('cell ')}{error}"
    return f"{job.rel}: {job.result.seconds:.1f} s, of which {job.result.overhead:.1f} s to start"


def _left(seconds: float | None) -> str:
    if not seconds:
        return ""
    return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"
