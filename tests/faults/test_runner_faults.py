"""`lossbook run` under fire: what it has reported as finished is there afterwards, and is not run again."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lossbook.book import _jobs
from lossbook.book.prewarm import Zygote

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")]

Start = Callable[..., BaseProcess]
Fault = Callable[[str, int, int], None]

NAMES = ("a", "b", "c")


class Book:
    """Three notebooks in the working folder, run again and again; `lost` counts finished results that are gone."""

    def __init__(self, folder: Path, start: Start, tools: SimpleNamespace) -> None:
        self.folder, self.start = folder, start
        self.lives = 0
        self.begin("out")
        for name in NAMES:
            result = f"import time; time.sleep(0.05); print('{name}' * 1000)"
            tools.write(folder / f"notebooks/{name}.ipynb", f"_ = open('{name}-runs', 'a').write('x')", result)

    def begin(self, out: str | Path, seen: Path | None = None) -> None:
        """Go on in a folder of results that is empty; this process may see it elsewhere."""
        self.out = self.folder / out
        self.seen = seen or self.out
        self.kept: dict[str, bytes] = {}
        for path in (self.folder / "notebooks").glob("*-runs"):
            path.unlink()

    def run(self, *options: object, **arguments: object) -> BaseProcess:
        self.lives += 1
        self.log = self.folder / f"log-{self.lives}"
        arguments = {"environment": {"TMPDIR": str(self.folder)}, **arguments}
        return self.start("command.py", "run", "--out", self.out, *options, cwd=self.folder, log=self.log, **arguments)

    def lost(self) -> int:
        """To be asked after each end of a run."""
        log = text(self.log)
        lost = 0
        for name in NAMES:
            executed = self.seen / f"{name}.ipynb"
            if name in self.kept:
                ran_again = re.search(rf"^\[./.\] {name}.ipynb: (?!unchanged)", log, re.M) is not None
                lost += ran_again or not executed.exists() or executed.read_bytes() != self.kept[name]
            elif re.search(rf"^\[./.\] {name}.ipynb: [\d.]+ s, of which", log, re.M):
                if executed.exists():
                    self.kept[name] = executed.read_bytes()
                else:
                    lost += 1
        return lost

    def results(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.seen.glob("?.ipynb")}

    def complete(self) -> bool:
        return all((self.seen / f"{name}.json").exists() for name in NAMES)


@pytest.fixture
def shelf(book: Path, start: Start, tools: SimpleNamespace) -> Book:
    return Book(book, start, tools)


def end(run: BaseProcess, shelf: Book, code: int = 0) -> str:
    run.join(120)
    log = shelf.log.read_text()
    assert run.exitcode == code, log
    return log


def text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


undisturbed: dict[tuple[bytes, ...], dict[str, bytes]] = {}


def results_of(shelf: Book) -> dict[str, bytes]:
    """Of an undisturbed run, which is made once for the same notebooks."""
    notebooks = tuple(path.read_bytes() for path in sorted(shelf.folder.glob("notebooks/*.ipynb")))
    if notebooks not in undisturbed:
        end(shelf.run(), shelf)
        undisturbed[notebooks] = shelf.results()
    return undisturbed[notebooks]


def kernels(zygote: Zygote | psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(zygote.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def test_run_and_kernels_killed_at_random_moments(
    shelf: Book, zygote: Zygote, moments: Iterator[float], kills: int, fault: Fault
) -> None:
    begun = time.monotonic()
    end(shelf.run(), shelf)
    life = time.monotonic() - begun
    whole, rounds, lost, killed = results_of(shelf), 0, 0, 0
    while killed < kills:
        rounds += 1
        shelf.begin(f"out-{rounds}")
        while not shelf.complete():
            run = shelf.run("--workers", 1 + rounds % 2)
            while run.exitcode is None:
                run.join(next(moments) * life if killed < kills else 120)
                # By turns the run itself, and one of its kernels.
                victims = [run] if killed % 2 else kernels(zygote)
                if run.exitcode is None and victims:
                    victims[0].kill()
                    killed += 1
                    run.join(5 * (killed % 2 == 0))
            assert run.exitcode in (0, 1, -9), shelf.log.read_text()
            lost += shelf.lost()
        assert shelf.results() == whole
    end(shelf.run(), shelf)
    lost += shelf.lost()
    assert not list(shelf.folder.rglob("*.lossbook-part"))
    fault("run: SIGKILL of it or a kernel at a random moment", killed, lost)


def test_a_killed_zygote_costs_what_it_was_running_and_no_more(
    shelf: Book, tools: SimpleNamespace, fault: Fault
) -> None:
    whole = results_of(shelf)
    shelf.begin("cold")
    run = shelf.run("--workers", 1, environment={"TMPDIR": str(shelf.folder), "LOSSBOOK_ZYGOTE": ""})
    zygote = tools.wait_for(lambda: psutil.Process(run.pid).children(), 60)[0]
    tools.wait_for(lambda: kernels(zygote), 60)
    zygote.kill()
    log = end(run, shelf, 1)
    assert re.search("^.1/3. a.ipynb: failed (in|before) .*the kernel was killed", log, re.M)
    lost = shelf.lost()
    assert shelf.kept.keys() == {"b", "c"}
    end(shelf.run(), shelf)
    lost += shelf.lost()
    assert shelf.results() == whole
    fault("run: SIGKILL of the zygote", 1, lost)


@pytest.fixture
def heavy(shelf: Book, tools: SimpleNamespace) -> Book:
    """The last of its notebooks has a result that needs more room than the disk has: one very long line."""
    tools.write(shelf.folder / "notebooks/c.ipynb", "_ = open('c-runs', 'a').write('x')", "print('c' * 10**6)")
    return shelf


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(heavy: Book, disk: Any, fault: Fault) -> None:
    whole = results_of(heavy)
    heavy.begin(disk.folder / "out", disk.seen / "out")
    log = end(heavy.run("--workers", 1, hit=disk.hit), heavy, 1)
    assert re.search(r"^lossbook: cannot write .*/out/c.ipynb: (No space left on device|File too large)$", log, re.M)
    lost = heavy.lost()
    assert heavy.kept.keys() == {"a", "b"}
    assert not list(disk.seen.rglob("*.lossbook-part"))
    disk.grow()
    end(heavy.run(hit=disk.hit), heavy)
    lost += heavy.lost()
    assert heavy.results() == whole
    fault("run: full disk", 1, lost)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(shelf: Book, disk: Any, fault: Fault) -> None:
    disk.grow()
    shelf.begin(disk.folder / "out", disk.seen / "out")
    end(shelf.run(hit=disk.hit), shelf)
    shelf.lost()
    disk.protect()
    log = end(shelf.run("--force", hit=disk.hit), shelf, 1)
    assert re.fullmatch(r"lossbook: cannot write .*/out/.lock: Read-only file system\n", log)
    assert (shelf.folder / "notebooks/a-runs").read_text() == "x"
    fault("run: read-only folder", 1, shelf.lost())


def test_a_second_run_is_refused_and_the_first_is_not_disturbed(
    shelf: Book, tools: SimpleNamespace, fault: Fault
) -> None:
    whole = results_of(shelf)
    shelf.begin("both")
    first, log = shelf.run(), shelf.log
    tools.wait_for(lambda: "importing" in text(log), 60)
    for _ in range(3):
        said = end(shelf.run("--force"), shelf, 1)
        assert re.fullmatch(r"lossbook: another run is writing to .*/both: wait for it, or choose another .*\n", said)
    shelf.log = log
    end(first, shelf)
    lost = shelf.lost()
    assert shelf.results() == whole
    killed = shelf.run("--force")
    tools.wait_for(lambda: "importing" in text(shelf.log), 60)
    killed.kill()
    killed.join()
    end(shelf.run(), shelf)
    lost += shelf.lost()
    fault("run: two at once", 4, lost)


MEMORY = {
    "a": "import numpy\nnumpy.ones(10**14)",
    "b": "import os, resource, torch\nused = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, -1))\nkept = []\n"
    "while True:\n    kept.append(torch.ones(2**22))",
    "d": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)  # as the kernel of the system does",
}


def test_out_of_memory_costs_the_notebook_that_asked_for_it(shelf: Book, tools: SimpleNamespace, fault: Fault) -> None:
    whole = results_of(shelf)
    shelf.begin("memory")
    sources = {path: path.read_bytes() for path in (shelf.folder / "notebooks").glob("*.ipynb")}
    end(shelf.run(shelf.folder / "notebooks/c.ipynb"), shelf)
    for name, cell in MEMORY.items():
        tools.write(shelf.folder / f"notebooks/{name}.ipynb", cell)
    log = end(shelf.run(), shelf, 1)
    assert "a.ipynb: failed in cell 3 (In [2]): MemoryError: Unable to allocate" in log.replace(
        "numpy._core._exceptions._Array", ""
    )
    assert re.search(r"b.ipynb: failed in cell 3 \(In \[2\]\): RuntimeError: .*can't allocate memory", log)
    assert "d.ipynb: failed in cell 3 (In [2]): the kernel was killed (SIGKILL, by hand or for lack of memory)" in log
    lost = "c.ipynb: unchanged" not in log
    for path, source in sources.items():
        path.write_bytes(source)
    (shelf.folder / "notebooks/d.ipynb").unlink()
    end(shelf.run(), shelf)
    assert shelf.results() == whole
    fault("run: out of memory in a kernel", len(MEMORY), lost)


def test_killed_between_the_steps_of_writing_a_result(start: Start, tmp_path: Path, fault: Fault) -> None:
    """Over the result of an earlier run. The next run finds the new result, or knows that there is none."""
    point, lost, log = 0, 0, tmp_path / "log"

    def step(folder: Path, word: str, hit: str = "") -> int | None:
        child = start("finish.py", folder, word, hit=hit)
        child.join(60)
        return child.exitcode

    def cached(folder: Path, word: str) -> bool:
        job = _jobs.prepare(folder / f"{word}.ipynb", Path("a.ipynb"), folder / "out", {}, {}, "here")
        found = _jobs.cached(job) is not None
        assert not found or word in job.executed.read_text()
        return found

    while True:
        folder = tmp_path / str(point)
        folder.mkdir()
        assert step(folder, "old") == 0, log.read_text()
        assert cached(folder, "old")
        code = step(folder, "new", f"import steps; steps.die_at({point})")
        replaced = "new" in (folder / "out/a.ipynb").read_text()
        # What was finished is there until the very moment at which the new result takes its place.
        lost += not replaced and not cached(folder, "old")
        lost += code == 0 and not cached(folder, "new")
        cached(folder, "new")
        if code == 0:
            break
        assert code == -9, log.read_text()
        point += 1
    assert point >= 4
    fault("run: SIGKILL between the steps of a write", point, lost)


def test_a_clock_that_goes_backwards(
    shelf: Book, tools: SimpleNamespace, backwards: dict[str, str], fault: Fault
) -> None:
    whole = results_of(shelf)
    shelf.begin("backwards")
    command = [sys.executable, "-m", "lossbook.book.cli", "run", "--out", shelf.out, "--workers", "2", "--timeout", "6"]
    endless = tools.write(shelf.folder / "notebooks/d.ipynb", "import time; time.sleep(1000)")
    environment = {**os.environ, **backwards, "TMPDIR": str(shelf.folder), "LOSSBOOK_ZYGOTE": ""}
    begun = time.monotonic()
    run = subprocess.run(command, cwd=shelf.folder, env=environment, capture_output=True, text=True)
    passed = time.monotonic() - begun
    assert re.search(r"d.ipynb: failed (in|before) .*stopped after 6 s, the time limit", run.stderr)
    for record in map(json.loads, map(Path.read_text, shelf.out.glob("*.json"))):
        assert 0 < record["overhead"] < record["seconds"] < passed
    lost = shelf.results() != whole
    endless.unlink()
    # A clock that was wrong leaves files of all times.
    for path, year in zip(sorted(shelf.folder.rglob("*.ipynb")), itertools.cycle((1971, 2100)), strict=False):
        os.utime(path, (year * 31556952 - 62167219200,) * 2)
    lost += end(shelf.run(), shelf).count("cached") != 3
    fault("run: clock going backwards", 2, lost)


@pytest.mark.xdist_group("cluster")
def test_a_killed_client_of_a_cluster_keeps_what_has_come_back(
    shelf: Book, cluster: Any, tools: SimpleNamespace, fault: Fault
) -> None:
    whole = results_of(shelf)
    shelf.begin("cluster")
    tools.write(shelf.folder / "notebooks/d.ipynb", "import time; time.sleep(1000)")
    address = cluster.client.scheduler.address
    run = shelf.run("--cluster", address)
    for name in NAMES:
        tools.wait_for((shelf.out / f"{name}.json").exists, 60)
    run.kill()
    run.join()
    shelf.lost()
    (shelf.folder / "notebooks/d.ipynb").unlink()
    log = end(shelf.run("--cluster", address), shelf)
    assert len(shelf.kept) == 3 and log.count("cached") == 3
    lost = shelf.lost() + (shelf.results() != whole)
    # What it had asked for is no longer computed: each worker's only thread is free for others.
    tools.wait_for(lambda: not any(cluster.client.processing().values()), 30)
    for worker in cluster.client.nthreads():
        assert cluster.client.submit(os.getpid, workers=[worker], pure=False).result(timeout=30)
    fault("run: SIGKILL of a cluster's client", 1, lost)
