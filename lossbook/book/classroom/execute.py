"""Cells that may do anything, executed in a kernel, a working folder and a home of their own, gone afterwards."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook.book import _jobs
from lossbook.book._jobs import Job
from lossbook.book.classroom.kernel import adopt_orphans
from lossbook.book.classroom.release import quiet

if TYPE_CHECKING:
    from lossbook.book.prewarm import Zygote

_LARGEST_OUTPUT = 10 << 20  # of a cell; a loop that prints reaches it in seconds
# A student's code sees nothing else of the teacher's environment, which may hold passwords.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Limits:
    """timeout: seconds for a cell of a student or a test; a cell of the book has ten times as long. memory: GiB."""

    timeout: float
    memory: float
    threads: int

    def seconds(self, cell: Any) -> float:
        return self.timeout * (1 if cell.metadata.role in ("student", "test") else 10)


def execute(
    cells: list[Any], job: Job, zygote: Zygote, limits: Limits, stopped: threading.Event
) -> tuple[int, str] | None:
    """Execute the cells in a new kernel; which cell it ended in and why, None if it came to the end.

    The cells get their outputs, and those that ran without an error `metadata.ran`. Who wants all to end sets
    `stopped`, and then kills the jobs.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbformat import v4

    from lossbook.book.prewarm import ForkProvisioner

    place = Path(tempfile.mkdtemp(prefix="lossbook-grade-"))
    job.killed_because, job.kernel, job.cell = None, None, 0
    judge = engine()(log=quiet(), timeout_func=limits.seconds, job=job)
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
            env=_environment(place, zygote, limits.threads),
            cwd=str(place / "work"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        job.kernel = manager.provisioner.process
        if stopped.is_set():
            job.kill("interrupted")
        judge.preprocess(v4.new_notebook(cells=cells), {}, km=manager)
        return None
    except CellTimeoutError:
        return judge.index, f"a cell took longer than {limits.seconds(cells[judge.index]):g} s and was stopped"
    except (DeadKernelError, RuntimeError) as error:
        if job.kernel is None:
            raise
        return judge.index, job.killed_because or _death(job, error)
    except Exception as error:
        if job.kernel is None:
            raise
        # What the client makes of messages that no kernel sends by itself.
        what = f"{type(error).__name__}: {_jobs.first_line(error)}"
        return judge.index, job.killed_because or f"the kernel's messages cannot be read ({what})"
    finally:
        _end(job)
        with contextlib.suppress(Exception):
            run_sync(manager.cleanup_resources)()
        if judge.kc is not None:
            with contextlib.suppress(Exception):
                judge.kc.stop_channels()
        _remove(place)


def _environment(place: Path, zygote: Zygote, threads: int) -> dict[str, str]:
    from lossbook.book.prewarm import WAITING
    from lossbook.book.runner import _THREAD_VARIABLES
    from lossbook.data import data_root

    return {
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        **WAITING,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        **zygote.environment,
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "LOSSBOOK_DATA": str(data_root().resolve()),
        "LOSSBOOK_STATIC": "1",
    }


@functools.cache
def engine() -> Any:
    """nbgrader's executor, for cells that try to take more than their share. Importing it takes seconds."""
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


def _death(job: Job, error: Exception) -> str:
    status = job.kernel.poll()
    if status is None:
        return f"the kernel no longer answers: {_jobs.first_line(error)}"
    return "the kernel was killed, by a cell or for lack of memory" if status < 0 else "the kernel was ended by a cell"


def _end(job: Job) -> None:
    """Kill a kernel and what it has started, also what has left its group: `kernel.start` makes it adopt that."""
    import psutil

    if job.kernel is None:
        return
    started = []
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(job.kernel.pid).children(recursive=True)
    job.kill("ended")
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(Exception):
        job.kernel.wait(5)


def _remove(folder: Path) -> None:
    """Delete a folder, also what a student has made undeletable by its permissions."""
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def answers(zygote: Zygote) -> bool:
    from lossbook.book.prewarm import ADDRESS

    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(zygote.environment.get(ADDRESS, "")) == 0


@contextlib.contextmanager
def orphans_killed() -> Iterator[None]:
    """Have processes that outlive their kernel become children of this one (Linux), and kill them at the end."""
    import psutil

    here = psutil.Process()
    before = {*here.children(recursive=True)}
    adopts = adopt_orphans(True)
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
            adopt_orphans(False)
