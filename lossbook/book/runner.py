"""Run the book's notebooks: in parallel, resumable, and with nothing half-written whatever happens.

A notebook is executed by papermill in a kernel of its own, which is forked from a pre-warmed process (`prewarm`). The
main thread starts the kernels, watches over them and writes the results; a thread per kernel does the talking. A
notebook whose cells, parameters, package and versions are those of its last good run is not run again.

In the folder `out`, for the notebook `rel.ipynb`: `rel.ipynb` is its last good execution, `rel.json` the record by
which the next run knows whether that still stands, and `rel.failed.ipynb` the last execution if it failed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook._files import write_atomically
from lossbook.book import _jobs, _progress
from lossbook.book._jobs import Job, Result, RunError, clean
from lossbook.train.cluster import in_pieces, still_wanted

if TYPE_CHECKING:
    from lossbook.book.prewarm import Zygote

__all__ = ["PROFILES", "Interrupted", "Result", "RunError", "clean", "run_notebooks"]

PROFILES = ("quick", "full")

# nbclient looks once a second whether its kernel lives; if it has not reported a dead one after this time, it hangs.
_GRACE_S = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the kernels are dead, the finished results are kept, and the next run goes on from them."""

    def __init__(self, signum: int, results: list[Result]) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.results = results


def run_notebooks(
    paths: Sequence[str | Path] | None = None,
    *,
    profile: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int | None = None,
    timeout: float = 600.0,
    out: str | Path = "build/notebooks",
    root: str | Path = "notebooks",
    in_place: bool = False,
    force: bool = False,
    progress: bool = True,
    cluster: str | None = None,
) -> list[Result]:
    """Execute notebooks and write them to `out`, under the same relative paths as in `root`.

    Args:
        paths: notebooks, or folders of them; None means all of root.
        profile: "quick" or "full", handed like device to the notebooks that have a parameter of that name.
        parameters: further ones, handed to every notebook; each must have them.
        device: "auto", "cpu", "cuda" …
        workers: notebooks at a time, by default one per core; when several run, each kernel computes with one thread.
        timeout: seconds for a whole notebook.
        in_place: also write the execution back to the source, which is how the book is committed (quick profile only).
        force: run again what has not changed.
        progress: say on stderr what happens.
        cluster: address of a Dask scheduler, such as `tcp://10.0.0.1:8786`, whose workers then execute the notebooks,
            each worker one at a time; `workers` has no meaning. They need this package, and find data by their own
            LOSSBOOK_DATA. A notebook of a worker that is lost is executed again by another; while there is no other,
            the run waits for one to come.

    Returns:
        a Result per notebook, in the order of the paths.

    Raises:
        ValueError: a bad argument.
        RunError: the run cannot start or go on: no such notebook or parameter, an unwritable folder, a full disk,
            another run in the same folder.
        Interrupted: Ctrl-C or SIGTERM.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, not {profile!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if in_place and (parameters or profile != "quick"):
        raise ValueError("in_place writes the committed form: the quick profile without other parameters")
    out = Path(out).resolve()
    given = {"profile": profile, "device": device}
    # Which device a worker picks is not known here.
    here = _jobs.surroundings("worker" if cluster and device == "auto" else device)
    found = _jobs.find(paths, Path(root))
    jobs = [_jobs.prepare(path, rel, out, given, parameters or {}, here) for path, rel in found.items()]
    with _jobs.locked(out):
        if not force:
            for job in jobs:
                job.result = _jobs.cached(job)
        if any(job.result is None for job in jobs):
            if cluster is None:
                _Run(jobs, workers, timeout, progress).run()
            else:
                _on_cluster(jobs, cluster, Order("", "", {}, profile, device, timeout), progress)
        if in_place:
            for job in jobs:
                _jobs.write_back(job)
    return [job.result for job in jobs if job.result]


@dataclass(frozen=True)
class Order:
    """A notebook for a worker: where it belongs, its text, what it is given."""

    rel: str
    text: str
    parameters: dict[str, Any]
    profile: str
    device: str
    timeout: float


def execute_order(_: None, orders: list[Order]) -> tuple[str | None, str | None, float, float]:
    """By a worker, in a folder that is gone afterwards: executed notebook, error, seconds, seconds before its cells."""
    (order,) = orders
    _stay_warm()
    with tempfile.TemporaryDirectory(prefix="lossbook-") as folder:
        root = Path(folder) / "notebooks"
        source = root / order.rel
        write_atomically(source, order.text)
        try:
            (result,) = run_notebooks(
                [source],
                profile=order.profile,
                parameters=order.parameters,
                device=order.device,
                workers=1,
                timeout=order.timeout,
                out=Path(folder) / "out",
                root=root,
                progress=False,
            )
        except Interrupted as interrupt:
            # Raised by a task, it would end the worker.
            return None, str(interrupt), 0.0, 0.0
        text = result.executed.read_text(encoding="utf-8") if result.executed else None
    return text, result.error, result.seconds, result.overhead


@functools.cache
def _stay_warm() -> None:
    """Start a zygote for all notebooks of this process: it finds it in its environment, as each run does."""
    from lossbook.book.prewarm import Zygote

    zygote = Zygote()
    zygote.__enter__()
    atexit.register(zygote.__exit__)
    if zygote.ready():
        os.environ.update(zygote.environment)


def _on_cluster(jobs: list[Job], address: str, like: Order, progress: bool) -> None:
    import nbformat
    from distributed import Client

    waiting = [job for job in jobs if job.result is None]
    waiting.sort(key=lambda job: -(job.expected or math.inf))
    orders = [
        replace(like, rel=job.rel.as_posix(), text=nbformat.writes(job.nb), parameters=job.parameters)
        for job in waiting
    ]
    report = _progress.reporter(len(jobs), progress)
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise RunError(f"no scheduler answers at {address}: {_jobs.first_line(error)}") from error
    try:
        with _terminable(), report, client:
            if not client.nthreads():
                raise RunError(f"the scheduler at {address} has no workers")
            for job in jobs:
                if job.result:
                    report.finish(job, None)
            watch = _Watch(jobs, waiting, report)
            with contextlib.closing(in_pieces(client, execute_order, None, orders, 1, watch)) as ended:
                for i, future in ended:
                    _take(waiting[i], future)
                    report.finish(waiting[i], watch.seconds_left())
    except ConnectionError as error:
        raise RunError(str(error)) from error
    except KeyboardInterrupt as interrupt:
        signum = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
        raise Interrupted(signum, [job.result for job in jobs if job.result]) from None


class _Watch:
    """Shows which notebooks the workers execute, as `in_pieces` tells it."""

    def __init__(self, jobs: list[Job], waiting: list[Job], report: _progress.Report) -> None:
        self.jobs, self.waiting, self.report = jobs, waiting, report
        self.running: set[int] = set()
        self.workers = 1

    def __call__(self, running: set[int], workers: int) -> None:
        for i in self.running - running:
            self.report.stop(self.waiting[i])
        for i in sorted(running - self.running):
            self.waiting[i].started = time.monotonic()
            self.report.start(self.waiting[i], elsewhere=True)
        self.running, self.workers = running, workers

    def seconds_left(self) -> float | None:
        running = [self.waiting[i] for i in self.running]
        return _seconds_left(self.jobs, running, self.workers) if self.workers else None


def _take(job: Job, future: Any) -> None:
    """Write what a worker made of a notebook as if it had been made here."""
    import nbformat

    now = time.monotonic()
    failure = future.exception()
    if failure is not None:
        job.error = f"on the cluster: {type(failure).__name__}: {_jobs.first_line(failure)}"
        job.started = now
    else:
        text, job.error, seconds, overhead = future.result()
        job.started = now - seconds
        if text is not None:
            job.nb, job.first_cell = nbformat.reads(text, as_version=4), job.started + overhead
    with _jobs.writing(job.executed):
        job.result = _jobs.finish(job)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread like Ctrl-C."""


class _Run:
    """The main thread's part: start threads, watch over kernels, write results."""

    def __init__(self, jobs: list[Job], workers: int | None, timeout: float, progress: bool) -> None:
        import joblib

        cores = joblib.cpu_count()
        self.jobs = jobs
        # Longest first, as far as the last run tells: a long notebook that starts last is waited for by idle cores.
        self.waiting = sorted((job for job in jobs if job.result is None), key=lambda job: -(job.expected or math.inf))
        self.running: list[Job] = []
        self.workers = min(workers or cores, len(self.waiting))
        self.threads = 1 if self.workers > 1 else cores
        self.timeout = timeout
        self.report = _progress.reporter(len(jobs), progress)

    def run(self) -> None:
        from lossbook.book.prewarm import Zygote

        try:
            with _terminable(), self.report, Zygote() as zygote:
                for job in self.jobs:
                    if job.result:
                        self.report.finish(job, None)
                self._loop(self._environment(zygote), zygote.folder)
        except KeyboardInterrupt as interrupt:
            signum = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
            raise Interrupted(signum, [job.result for job in self.jobs if job.result]) from None

    def _environment(self, zygote: Zygote) -> dict[str, str]:
        # Takes seconds too, and is needed next: import it while the zygote is busy with its own imports.
        _engine()
        self.report.say("importing the libraries, once for all notebooks")
        warm = zygote.environment if zygote.ready() else {}
        from lossbook.book.prewarm import WAITING

        threads = dict.fromkeys(_THREAD_VARIABLES, str(self.threads))
        return {**WAITING, **os.environ, **threads, **warm, "LOSSBOOK_STATIC": "1"}

    def _loop(self, environment: dict[str, str], folder: Path | None) -> None:
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.workers:
                    self._start(self.waiting.pop(0), environment, folder)
                for job in list(self.running):
                    self._watch(job)
                self.report.update(self.running)
                if not still_wanted():
                    raise KeyboardInterrupt
                time.sleep(0.05)
        finally:
            # Empty after an ordinary end.
            for job in self.running:
                job.kill("interrupted")
            for job in self.running:
                job.done.wait(_GRACE_S)

    def _start(self, job: Job, environment: dict[str, str], folder: Path | None) -> None:
        job.started = time.monotonic()
        self.running.append(job)
        self.report.start(job)
        threading.Thread(target=_execute, args=(job, environment, folder), name=str(job.rel), daemon=True).start()

    def _watch(self, job: Job) -> None:
        now = time.monotonic()
        if now - job.started > self.timeout:
            job.kill(f"stopped after {self.timeout:g} s, the time limit")
        if job.dead_since is None and job.kernel is not None and job.kernel.poll() is not None:
            job.dead_since = now
        # A thread that says nothing although its kernel is dead, or was never there, is left behind.
        hangs = now - (job.dead_since or math.inf) > _GRACE_S or now - job.started > self.timeout + _GRACE_S
        if hangs and not job.done.is_set():
            job.error = _death(job)
        elif not job.done.is_set():
            return
        self.running.remove(job)
        with _jobs.writing(job.executed):
            job.result = _jobs.finish(job)
        self.report.finish(job, _seconds_left(self.jobs, self.running, self.workers))


def _seconds_left(jobs: list[Job], running: list[Job], workers: int) -> float:
    """What the notebooks took last time, or on average in this run, shared among the workers."""
    known = [job.result.seconds for job in jobs if job.result] or [0.0]
    now, typical, left = time.monotonic(), sum(known) / len(known), 0.0
    begun = {job.rel: job.started for job in running}
    for job in jobs:
        if job.result is None:
            left += max((job.expected or typical) - (now - begun.get(job.rel, now)), 0.0)
    return left / workers


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the run as Ctrl-C does. Signals reach only the main thread; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(job: Job, environment: dict[str, str], folder: Path | None) -> None:
    """A thread's whole life: run one notebook, and leave the outcome in the job."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        papermill.execute_notebook(
            job.nb,
            None,
            job.parameters,
            engine_name=_engine(),
            # Whatever kernel the notebook was last saved with, it runs in this Python.
            kernel_name="python3",
            language="python",
            progress_bar=False,
            job=job,
            environment=environment,
            folder=folder,
        )
    except papermill.PapermillExecutionError as error:
        lines = error.evalue.strip().splitlines()
        job.error = f"{_place(job)}: {': '.join([error.ename, *lines[:1]])}"
    except BaseException as error:
        dead = job.killed_because or isinstance(error, DeadKernelError) or "Kernel died" in str(error)
        job.error = _death(job) if dead else f"{_place(job)}: {type(error).__name__}: {_jobs.first_line(error)}"
    finally:
        job.done.set()


def _place(job: Job) -> str:
    return f"cell {job.cell} (In [{job.executions}])" if job.cell else "before the first cell"


def _death(job: Job) -> str:
    if job.killed_because:
        return f"{_place(job)}: {job.killed_because}"
    status = None if job.kernel is None else job.kernel.poll()
    if status == -signal.SIGKILL:
        return f"{_place(job)}: the kernel was killed (SIGKILL, by hand or for lack of memory)"
    return f"{_place(job)}: the kernel died" + ("" if status is None else f" with exit status {status}")


@functools.cache
def _engine() -> str:
    """Register the papermill engine that runs our jobs; its name."""
    import nbclient.client
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    from lossbook.book.prewarm import ForkProvisioner

    # What papermill and its client report goes into the result; on the terminal it would run through the progress bars.
    quiet = logging.getLogger("lossbook.papermill")
    quiet.setLevel(logging.CRITICAL + 1)

    # What it looks for, from the start of a line only. Its own search starts at each character: for a line of a million
    # it takes a quarter of an hour, in which no other thread of the run gets a turn.
    nbclient.client._RGX_CARRIAGERETURN = re.compile(r"^.*\r(?=[^\n])", re.MULTILINE)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, *, job, environment, folder, **_):
            job.nb = nb_man.nb
            # No kernel folders: of the kernels called python3, the one that belongs to this interpreter.
            manager = AsyncKernelManager(kernel_name=kernel_name, kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
            manager.provisioner = ForkProvisioner(
                kernel_id=str(job.rel), kernel_spec=manager.kernel_spec, parent=manager
            )
            # A kernel that does not leave when asked is not worth the five seconds that jupyter_client grants it.
            manager.shutdown_wait_time = 2.0
            if folder is not None:
                # Sockets in a folder that only this user can enter; a TCP port is open to everyone on the machine.
                manager.transport = "ipc"
                manager.ip = str(folder / _jobs.sha256(str(job.rel))[:12])
                manager.connection_file = f"{manager.ip}.json"
            # What a cell prints is one output, however many pieces the kernel sends it in.
            client = PapermillNotebookClient(
                nb_man, km=manager, timeout=None, startup_timeout=60, log=quiet, coalesce_streams=True
            )
            client.on_cell_execute = lambda cell, cell_index: job.enter(cell_index)
            client.start_new_kernel(
                env=environment, cwd=str(job.source.parent), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            job.kernel = manager.provisioner.process
            if job.killed_because:
                job.kill(job.killed_because)
            client.execute(cleanup_kc=True)

    papermill_engines.register("lossbook", Engine)
    return "lossbook"
