"""Notebooks executed by Dask workers in processes of their own, one of which is killed."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lossbook.book import _progress
from lossbook.book.runner import RunError, run_notebooks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]


def run(cluster, **arguments):
    return run_notebooks(progress=False, cluster=cluster.client.scheduler.address, **arguments)


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_the_same_files_as_on_one_machine(cluster, book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/01-part/01-good.ipynb", "print(6 * 7, seed, profile)")
    tools.write(book / "notebooks/02-bad.ipynb", "print('so far')", "1 / 0")
    good, bad = run(cluster, parameters={"seed": 5})
    assert (good.status, bad.status) == ("ok", "failed")
    assert printed(good.executed) == "42 5 quick\n"
    assert good.executed == book / "build/notebooks/01-part/01-good.ipynb"
    assert bad.error == "cell 4 (In [4]): ZeroDivisionError: division by zero"
    assert printed(book / "build/notebooks/02-bad.failed.ipynb") == "so far\n"
    again, _ = run(cluster, parameters={"seed": 5})
    assert again.status == "cached"


class Recorder(_progress.Report):
    """What a person would see, as a list of events."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.events: list[tuple[str, str]] = []

    def start(self, job, *, elsewhere: bool = False) -> None:
        assert elsewhere
        self.events.append(("start", job.rel.stem))

    def stop(self, job) -> None:
        self.events.append(("stop", job.rel.stem))

    def finish(self, job, seconds_left: float | None) -> None:
        self.ended += 1
        self.events.append(("finish", job.rel.stem))
        assert (seconds_left == 0) == (self.ended == self.total)


def test_a_killed_worker_costs_no_notebook(
    cluster, book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown: two notebooks at a time, those of the lost worker stopped, and started again by the other."""
    recorder = Recorder(4)
    monkeypatch.setattr(_progress, "reporter", lambda *_: recorder)
    for i in range(4):
        tools.write(book / f"notebooks/0{i}.ipynb", f"import time; time.sleep(3); print({i})")
    victim = cluster.worker()

    def kill() -> None:
        cluster.until(lambda: len([event for event, _ in recorder.events if event == "start"]) >= 2)
        os.kill(victim.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    results = run(cluster)
    thread.join()
    assert victim.wait() == -signal.SIGKILL
    assert [result.status for result in results] == ["ok"] * 4
    assert [printed(result.executed) for result in results] == [f"{i}\n" for i in range(4)]
    both = [name for event, name in recorder.events[:2]]
    (lost,) = {name for name in both if recorder.events.count(("start", name)) == 2}
    story = [event for event, name in recorder.events if name == lost]
    assert story[:3] == ["start", "stop", "start"] and story.count("finish") == 1


def test_a_terminal_shows_what_runs_elsewhere(
    cluster, book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    for name in "ab":
        tools.write(book / f"notebooks/{name}.ipynb", "import time; time.sleep(2)")
    run_notebooks(cluster=cluster.client.scheduler.address)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for name in "ab":
        assert re.search(rf"{name}\.ipynb\s+━+\s+0:00:\d\d", text)
    assert re.search(r"the book\s+\S+\s+1/2\s+0:00:\d\d\s+about \d+ s left", text)
    assert re.search(r"the book\s+━+\s+2/2\s", text)


def test_a_lost_scheduler_ends_the_run_with_a_sentence(
    cluster, book: Path, tools: SimpleNamespace, tmp_path: Path
) -> None:
    """What ended before stays."""
    for name, seconds in (("0", 0), ("1", 600)):
        tools.write(book / f"notebooks/{name}.ipynb", f"import time; time.sleep({seconds})")
    (tmp_path / "own").mkdir()
    own = type(cluster)(tmp_path / "own")
    try:
        own.worker()

        def kill() -> None:
            cluster.until((book / "build/notebooks/0.json").exists)
            own.processes[0].kill()

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(RunError, match=r"the scheduler at tcp://127.0.0.1:\d+ is gone"):
            run(own, paths=["0.ipynb", "1.ipynb"])
        thread.join()
        assert (book / "build/notebooks/0.ipynb").exists() and not (book / "build/notebooks/1.ipynb").exists()
    finally:
        own.close()


def test_addresses_without_a_cluster(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/0.ipynb", "1")
    with pytest.raises(RunError, match="no scheduler answers at tcp://127.0.0.1:1"):
        run_notebooks(progress=False, cluster="tcp://127.0.0.1:1")
    with pytest.raises(RunError, match="no scheduler answers at nonsense://"):
        run_notebooks(progress=False, cluster="nonsense://here")
