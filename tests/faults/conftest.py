"""Processes that are hit, and the table of what it cost.

Children are forked from a process that has imported torch and the package, so that a kill costs tenths of a second and
hundreds can be tried: LOSSBOOK_KILLS says how many for each test of random moments.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

CHILDREN = Path(__file__).parent / "children"
PRELOADED = [
    "torch._dynamo",
    "papermill",
    *(f"lossbook.{name}" for name in ("train", "models", "book.cli", "book.runner")),
]


def code_of(argv: list[str], cwd: Path, log: Path, environment: dict[str, str], hit: str) -> str:
    """The code of a child: a script with these arguments, as if it were started by hand in cwd."""
    return f"""
import os, resource, runpy, signal, sys
os.chdir({str(cwd)!r})
os.environ.clear()
os.environ.update({environment!r})
log = os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(CHILDREN)!r})
sys.argv = {argv!r}
{hit}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


Start = Callable[..., BaseProcess]


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Forks processes that have imported what a training and a run import; it is warm when it is handed over."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    warm = context.Process(target=exec, args=("",))
    warm.start()
    warm.join()
    return context


@pytest.fixture
def start(forkserver: ForkServerContext, tmp_path: Path) -> Iterator[Start]:
    """start(script, *arguments, cwd, log, environment, hit): a child process, in which the code `hit` comes first."""
    started: list[BaseProcess] = []

    def start(
        script: str,
        *arguments: object,
        cwd: Path = tmp_path,
        log: Path = tmp_path / "log",
        environment: dict[str, str] | None = None,
        hit: str = "",
    ) -> BaseProcess:
        argv = [str(CHILDREN / script), *map(str, arguments)]
        code = code_of(argv, cwd, log, {**os.environ, **(environment or {})}, hit)
        process = forkserver.Process(target=exec, args=(code,))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[[str, int, int], None]:
    """fault(name, tried, lost): a row of the table; a result that is lost fails the test."""

    def record(name: str, tried: int, lost: int) -> None:
        request.node.user_properties.append(("fault", (name, tried, lost)))
        assert tried > 0
        assert lost == 0, f"{name}: {lost} results lost in {tried} tries"

    return record


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> Iterator[float]:
    """Moments of a life, in [0, 1), drawn by the test's name."""
    generator = random.Random(request.node.name)
    return iter(generator.random, None)


@pytest.fixture
def kills() -> int:
    return int(os.environ.get("LOSSBOOK_KILLS", "20"))


class Disk:
    """A folder on a file system of its own, which has little room until it is made to grow.

    Where the system does not let us mount one, a limit on the size of files stands in for it, and the folder cannot be
    made read-only. Processes see it if they are started with `hit`, and this one under `seen`.
    """

    def __init__(self, folder: Path, kib: int) -> None:
        folder.mkdir()
        self.folder, self.kib = folder, kib
        mount = f"mount -t tmpfs -o size={kib}k none {folder} && echo mounted && exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", mount], stdout=PIPE, stderr=DEVNULL)
        assert self.holder.stdout is not None
        self.real = self.holder.stdout.readline() == b"mounted\n"
        self.full = True

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.holder.pid}/root{self.folder}") if self.real else self.folder

    @property
    def hit(self) -> str:
        if not self.real:
            return f"resource.setrlimit(resource.RLIMIT_FSIZE, ({self.kib * 128}, -1))" if self.full else ""
        return f"import disk; disk.enter({self.holder.pid})"

    def grow(self) -> None:
        self.full = False
        self._mount("size=64m")

    def protect(self) -> None:
        if not self.real:
            pytest.skip("nothing can be mounted here")
        self._mount("ro")

    def _mount(self, options: str) -> None:
        if self.real:
            command = ["nsenter", "-t", str(self.holder.pid), "-m", "mount", "-o", f"remount,{options}", self.folder]
            subprocess.run(command, check=True)

    def close(self) -> None:
        self.holder.kill()
        self.holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", kib=24)
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def backwards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the clock of a new process goes backwards."""
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("clock") / "backwards.so"
    if compiler is None:
        pytest.skip("no C compiler, by which the clock is made to go backwards")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CHILDREN / "backwards.c"], check=True)
    environment = {"LD_PRELOAD": str(library)}
    read = "import time\nfrom datetime import datetime as d\nprint(time.time(), d.now().timestamp())\ntime.sleep(0.5)"
    command = [sys.executable, "-c", f"{read}\nprint(time.time(), d.now().timestamp())"]
    before, after = subprocess.check_output(command, env={**os.environ, **environment}, text=True).splitlines()
    assert all(float(a) < float(b) - 3600 for a, b in zip(after.split(), before.split(), strict=True))
    return environment


@pytest.fixture
def children() -> Path:
    return CHILDREN
