"""Kernels that start in a fraction of a second: forked from a process that has already imported the heavy libraries.

A *zygote* imports torch, pandas, matplotlib and lossbook once, in one thread and without touching a GPU, and then waits
on a unix socket in a private folder. `ForkProvisioner`, a jupyter_client kernel provisioner, asks it for a fork instead
of starting a new interpreter; the fork becomes an ordinary ipykernel. Whoever uses jupyter_client (papermill, nbval)
gets such kernels once the variables of `Zygote.environment` are set.

Nothing outlives its owner. The zygote ends when the pipe that its parent holds is closed, so also when the parent is
killed; a kernel ends when the connection that asked for it is closed, or when the zygote dies. Only Linux can fork a
process that has loaded these libraries safely; elsewhere, and when the zygote fails, kernels start in the ordinary way.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import pathlib
import pkgutil
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner

logger = logging.getLogger(__name__)

# The environment variable that holds the path of the zygote's socket.
ADDRESS = "LOSSBOOK_ZYGOTE"

_INT = struct.Struct("!i")
_KERNEL_COMMAND = ["-m", "ipykernel_launcher"]

# What notebooks import, and what torch imports on the first optimiser step (torch._dynamo, more than a second).
# Not matplotlib_inline: it must be imported by a live kernel, to attach itself to that kernel's shell.
_WARM = [
    "torch",
    "torch._dynamo",
    "torch.func",
    "numpy",
    "pandas",
    "matplotlib.pyplot",
    "matplotlib.animation",
    "mpl_toolkits.mplot3d",
    "seaborn",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "torchmetrics",
    "PIL.Image",
    "ipywidgets",
    "ipykernel.kernelapp",
    "ipykernel.zmqshell",
    "IPython.display",
]

_NOT_FOR_NOTEBOOKS = {"bench", "classroom", "cli", "prewarm", "results", "runner", "scaffold", "site"}

# One thread until the fork: a thread does not survive it, and a lock that it held stays locked for ever. pyarrow, which
# pandas imports where it is installed, would start one to return memory; torch would ask the CUDA driver how many
# devices there are, and a driver that has answered is of no use to a forked process.
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


# Threads that wait for work sleep instead of spinning: where anything else runs on the machine, spinning has been
# measured to cost ten times the work. It is read when torch is loaded, so kernels get it from their environment.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


class Zygote:
    """Context manager: start a zygote, and end it and all its kernels on leaving.

    Entering returns at once; `ready` waits for the imports. Where there is no zygote to be had, `ready` is False and
    `environment` is empty. If LOSSBOOK_ZYGOTE names one already, that one is used, and left running.
    """

    def __init__(self) -> None:
        self.folder: pathlib.Path | None = None  # for sockets; only this user can enter it
        self._address: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: bool | None = None

    def __enter__(self) -> Zygote:
        if sys.platform != "linux":
            logger.warning("kernels start cold: pre-warmed ones need Linux")
            return self
        try:
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lossbook-"))
            self._address = os.environ.get(ADDRESS) or self._start(self.folder)
        except OSError as error:
            self._give_up(str(error))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make jupyter_client take its kernels from this zygote."""
        if self._address is None:
            return {}
        return {ADDRESS: self._address, "JUPYTER_DEFAULT_PROVISIONER_NAME": "lossbook-fork"}

    def ready(self, timeout: float = 120.0) -> bool:
        """Wait for the imports; True if kernels can be forked, else one line is logged and kernels start cold."""
        if self._ready is None and self._process is not None:
            self._ready = self._wait(self._process, timeout)
        elif self._ready is None and self._address is not None:
            with socket.socket(socket.AF_UNIX) as attempt:
                self._ready = attempt.connect_ex(self._address) == 0
            if not self._ready:
                self._give_up(f"there is no zygote at {self._address}")
        return bool(self._ready)

    def _wait(self, process: subprocess.Popen[bytes], timeout: float) -> bool:
        assert process.stdout is not None and self.folder is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            # An end of file, which is what a zygote that failed to import leaves, reads as b"".
            if selector.select(timeout) and process.stdout.read(1) == b"+":
                return True
        log = (self.folder / "log").read_text(errors="replace").strip().splitlines()
        self._give_up(log[-1] if log else "the zygote did not start")
        return False

    def _give_up(self, why: str) -> None:
        self._stop()
        logger.warning("kernels start cold: %s", why)

    def _start(self, folder: pathlib.Path) -> str:
        address = str(folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener, (folder / "log").open("wb") as log:
            # Listening starts here, so that a request made during the imports waits instead of being refused.
            listener.bind(address)
            listener.listen(128)
            self._process = subprocess.Popen(
                # -P: the working folder of the run is not on the import path of its kernels.
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve({listener.fileno()})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={"MPLBACKEND": "module://matplotlib_inline.backend_inline", **WAITING, **os.environ, **_QUIET},
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        return address

    def _stop(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = self._address = self._process = None


class ForkedProcess:
    """A forked kernel: the part of `subprocess.Popen` that jupyter_client uses. Closing it kills the kernel."""

    stdin = stdout = stderr = None

    def __init__(self, address: str, argv: list[str], env: dict[str, str], cwd: str | None) -> None:
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(60)
            self._socket.connect(address)
            self._socket.sendall(json.dumps({"argv": argv, "env": env, "cwd": cwd}).encode() + b"\n")
            reply = self._socket.recv(_INT.size)
            if not reply:
                raise ConnectionResetError("the zygote ended")
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.pid: int = _INT.unpack(reply)[0]

    def poll(self) -> int | None:
        """The exit status (minus the signal's number for a killed kernel), None while the kernel runs."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self.returncode is None:
                try:
                    status = self._socket.recv(_INT.size)
                except ConnectionResetError:
                    status = b""
                # Without a status the zygote has died, and its kernels are killed with it.
                self.returncode = _INT.unpack(status)[0] if status else -signal.SIGKILL
                self._socket.close()
            return self.returncode
        return None

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("ipykernel", timeout or 0.0)
            time.sleep(0.02)
        return status

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkProvisioner(LocalProvisioner):
    """Forks the zygote that LOSSBOOK_ZYGOTE names; without one it is jupyter_client's ordinary provisioner."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        address = kwargs["env"].get(ADDRESS)
        # A kernel of another environment, or in another language, is not ours to fork.
        ours = pathlib.Path(cmd[0]).parent == pathlib.Path(sys.executable).parent and cmd[1:3] == _KERNEL_COMMAND
        if not address or not ours:
            return await super().launch_kernel(cmd, **kwargs)
        try:
            process = ForkedProcess(address, cmd[3:], kwargs["env"], kwargs.get("cwd"))
        except OSError as error:
            logger.warning("this kernel starts cold: %s", error)
            return await super().launch_kernel(cmd, **kwargs)
        self.process: Any = process
        self.pid = self.pgid = process.pid
        self.cwd = kwargs.get("cwd") or pathlib.Path.cwd()
        return self.connection_info


def serve(listener_fd: int) -> None:
    """The zygote's main function: import, answer requests, and in each fork become a kernel."""
    import gc

    _import_heavy_modules()
    # What is loaded now is garbage for nobody; untouched by the collector, its pages stay shared with the forks.
    gc.freeze()
    os.write(1, b"+")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    listener = socket.socket(fileno=listener_fd)
    folder = pathlib.Path(listener.getsockname()).parent
    request = _Server(listener).run()
    if request is None:
        # A parent that was killed could not do it.
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _become_kernel(request)


def _import_heavy_modules() -> None:
    import lossbook

    ours = [module.name for module in pkgutil.walk_packages(lossbook.__path__, "lossbook.", onerror=lambda _: None)]
    # Of lossbook.book what notebooks use; the rest belongs to the process that runs them.
    for name in _WARM + [
        name for name in ours if name.removeprefix("lossbook.book.").split(".")[0] not in _NOT_FOR_NOTEBOOKS
    ]:
        # A module that is not installed, or fails, fails where it is used, with its own message.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


class _Server:
    """One thread, one selector: new requests, ended kernels, owners that went away, and the parent's pipe on stdin."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.owners: dict[int, socket.socket] = {}
        self.wake, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ)
        for channel in (listener, self.wake):
            self.selector.register(channel, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> dict[str, Any] | None:
        """Serve until the parent goes away (None); in a forked child, return the request that it is to fulfil."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == 0:
                    self._kill(*self.owners)
                    return None
                if key.fileobj is self.wake:
                    self.wake.recv(4096)
                    self._reap()
                elif key.fileobj is self.listener:
                    request = self._fork()
                    if request is not None:
                        return request
                elif key.data in self.owners:
                    # An owner never speaks again after its request: readable means closed.
                    self.selector.unregister(key.fileobj)
                    self._kill(key.data)

    def _fork(self) -> dict[str, Any] | None:
        owner, _ = self.listener.accept()
        owner.settimeout(10)
        try:
            with owner.makefile("rb") as stream:
                request = json.loads(stream.readline())
            parent = os.getpid()
            pid = os.fork()
        except (OSError, ValueError):
            # The owner sees a closed connection, and starts its kernel in the ordinary way.
            owner.close()
            return None
        if pid == 0:
            owner.close()
            self._close()
            _die_with(parent)
            os.setpgid(0, 0)
            return request
        # Parent and child both set the group, so that it exists for whoever comes first to signal it.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self.owners[pid] = owner
        self.selector.register(owner, selectors.EVENT_READ, pid)
        self._tell(owner, pid)
        return None

    def _reap(self) -> None:
        while self.owners and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            pid = ended.si_pid
            # While the dead kernel waits to be collected, its group is its own: end what it started and left behind.
            self._kill(pid)
            owner = self.owners.pop(pid)
            self._tell(owner, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            with contextlib.suppress(KeyError):
                self.selector.unregister(owner)
            owner.close()

    def _close(self) -> None:
        """In the child: let go of everything that is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for channel in (self.listener, self.wake, self._wake_writer, *self.owners.values()):
            channel.close()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)

    @staticmethod
    def _tell(owner: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            owner.sendall(_INT.pack(number))

    @staticmethod
    def _kill(*pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Have the kernel (Linux) kill this process when its parent ends, whatever ended it."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _become_kernel(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["env"])
    if request["cwd"]:
        os.chdir(request["cwd"])
    sys.argv = ["ipykernel_launcher", *request["argv"]]
    _reseed()
    _set_threads()
    import ipywidgets
    from ipykernel.kernelapp import IPKernelApp
    from matplotlib import rcParams

    rcParams["backend"] = os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # Its default was read from the environment when the class was defined, in the zygote.
    app = IPKernelApp.instance(parent_handle=os.getppid())
    app.initialize(request["argv"])
    # ipywidgets registers with the kernel on import, and it was imported before there was one.
    ipywidgets.load_ipython_extension(app.shell)
    app.start()


def _reseed() -> None:
    """Global generators start from fresh entropy, as in a new interpreter (`random` does so by itself on fork)."""
    import numpy as np
    import torch

    np.random.seed()
    torch.default_generator.seed()


def _set_threads() -> None:
    """Apply the request's OMP_NUM_THREADS: libraries read it when they are loaded, which was in the zygote."""
    import threadpoolctl
    import torch

    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    # The BLAS of NumPy and scikit-learn spins while it waits for its threads, whatever OMP_WAIT_POLICY says: on a busy
    # machine sixteen logistic regressions took over 150 s with two threads, and 10 s with one.
    threadpoolctl.threadpool_limits({"openmp": threads, "blas": 1})
