"""One zygote for all tests of this folder: starting one for each would cost seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest

from lossbook.book.prewarm import Zygote

PARAMETERS = 'profile = "quick"\nseed: int = 0\ndevice = "auto"'
# Says which process the kernel is; notebooks run in their own folder.
PID = "import os, pathlib\n_ = pathlib.Path('pid').write_text(str(os.getpid()))"


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
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
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kernel_pid(folder: Path) -> int:
    """The process that the PID cell of a notebook in this folder has written down."""
    return int(wait_for(lambda: os.path.exists(folder / "pid") and (folder / "pid").read_text(), 60))
