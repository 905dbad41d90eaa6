"""Fixtures that every test may use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from lossbook.book.prewarm import Zygote

REPOSITORY = Path(__file__).resolve().parents[1]

PARAMETERS = 'profile = "quick"\nseed: int = 0\ndevice = "auto"'
# Says which process the kernel is; notebooks run in their own folder.
PID = "import os, pathlib\n_ = pathlib.Path('pid').write_text(str(os.getpid()))"

# What a browser under test leaves alone: the network, its own updates, and a sandbox that containers do not have.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Each pytest worker gets one thread: two workers on two cores then do not fight over them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files named by LOSSBOOK_DATA; tests that need it are skipped without it."""
    folder = Path(os.environ.get("LOSSBOOK_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip("no real data files here: set LOSSBOOK_DATA to a folder that holds them")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        from distributed import Client

        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        where = folder / "scheduler.json"
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(where))
        self.until(where.exists)
        self.where = where
        self.client = Client(scheduler_file=str(where), timeout=60)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        count = len(self.client.nthreads())
        process = self.start(
            "worker", "--scheduler-file", str(self.where), "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--local-directory", str(self.folder),
        )  # fmt: skip
        self.client.wait_for_workers(count + 1, timeout=60)
        return process

    def close(self) -> None:
        self.client.close()
        for process in self.processes:
            process.kill()
            process.wait()

    @staticmethod
    def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Dask scheduler with one worker; tests add further ones, and kill them."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.worker()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests that start kernels: starting one for each would cost seconds."""
    from lossbook.book.prewarm import Zygote

    with pytest.MonkeyPatch.context() as patch, Zygote() as zygote:
        zygote.ready()
        for name, value in zygote.environment.items():
            patch.setenv(name, value)
        yield zygote


@pytest.fixture
def book(tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty book: the working folder, with `notebooks/` in it."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("CHROME_BIN") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here: install it, or name it in CHROME_BIN")
    return found


# Not for the session: while Playwright runs, no other test of the same process may use asyncio.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest, repository: Path) -> Iterator[Any]:
    """A page that notes its console errors and every address it asks for; a picture is kept of a test that failed."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.asked, page.errors = [], []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.on("websocket", lambda socket: page.asked.append(socket.url))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    failed_before = request.session.testsfailed
    yield page
    if request.session.testsfailed > failed_before:
        pictures = repository / "build" / "screenshots"
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / f"{request.node.name.replace('/', '-')}.png")
    page.close()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What several test modules share; under pytest's importlib mode they cannot import it from each other."""
    return SimpleNamespace(
        PARAMETERS=PARAMETERS,
        PID=PID,
        write=write,
        wait_for=wait_for,
        is_running=is_running,
        kernel_pid=kernel_pid,
    )


def write(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    import nbformat

    v4 = nbformat.v4
    sources = [v4.new_code_cell(source) for source in cells]
    if parameters is not None:
        sources.insert(0, v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for number, cell in enumerate(sources):
        cell.id = f"cell-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Title", id="title"), *sources]), path)
    return path


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The condition's first true value; fails after that many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def is_running(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kernel_pid(folder: Path) -> int:
    """The process that the PID cell of a notebook in this folder has written down."""
    return int(wait_for(lambda: os.path.exists(folder / "pid") and (folder / "pid").read_text(), 60))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of faults, from what the tests of tests/faults have recorded: faults tried, and results lost."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    table: dict[str, list[int]] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", []) if getattr(report, "when", "") == "call" else []:
            if name == "fault":
                fault, tried, lost = value
                table[fault] = [a + b for a, b in zip(table.get(fault, [0, 0]), (tried, lost), strict=True)]
    if table:
        table["all"] = [sum(column) for column in zip(*table.values(), strict=True)]
        width = max(map(len, table))
        terminalreporter.section("faults")
        terminalreporter.line(f"{'fault':{width}} | tried | results lost")
        for fault, (tried, lost) in table.items():
            terminalreporter.line(f"{fault:{width}} | {tried:5} | {lost}")
